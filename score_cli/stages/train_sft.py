"""`score train-sft`: traces, rewards and a policy to the policy after a supervised round."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from score_cli.config import SftConfig, check_config
from score_cli.progress import SILENT, Progress
from score_cli.stages.train import check_policy, check_tokens
from score_cli.tables.atomic import check_output, replacing_folder
from score_cli.tables.checkpoints import METRICS_FILE, TRAINER, Policy, load_policy, save_policy
from score_cli.tables.device import setup_device
from score_cli.tables.parquet import EXAMPLES, TRAIN_METRICS, write_table
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.traces import read_graded
from score_cli.training.sft import STAGE, SftRound, make_examples, sft_round
from score_cli.training.sft_examples import Example


def train_sft(
    config: SftConfig,
    *,
    model: Path,
    traces: Path,
    rewards: Path,
    examples: Path,
    out: Path,
    overwrite: bool = False,
    allow_foreign: bool = False,
    progress: Progress = SILENT,
) -> str:
    """Write the examples that traces give, train a policy on them, and write the next policy.

    Args:
        allow_foreign: learn from another policy's traces too, or from tables without a footer.
    Returns:
        One line that sums the round up.
    Raises:
        UserError: an input does not fit; nothing is written.
        JobError: no trace makes an example, or the loss is not finite.
    """
    check_config(config)
    check_output(examples, overwrite=overwrite)
    check_output(out, overwrite=overwrite, folder=True)
    policy = load_policy(model, device=setup_device(config))
    graded = read_graded(traces, rewards, allow_foreign=allow_foreign)
    ancestors = {policy.state.fingerprint, policy.state.parent, policy.state.reference}
    check_policy(graded.footer, traces, None if allow_foreign else ancestors, policy)
    check_tokens(graded.traces, policy.model, traces)
    made = make_examples(config, policy, graded.traces, graded.verdicts)
    write_examples(examples, made, config, policy, traces=file_sha256(traces), rewards=file_sha256(rewards))
    done = sft_round(config, policy, graded.traces, graded.verdicts, made, progress=progress)
    save_sft_round(out, done, examples=file_sha256(examples))
    return done.summary


def write_examples(
    path: Path, examples: Sequence[Example], config: SftConfig, policy: Policy, *, traces: str, rewards: str
) -> None:
    """Write what a round learns, row by row.

    Args:
        policy: before the round.
        traces, rewards: sha256 of the tables that the examples are made of.
    """
    footer = Footer(
        table=EXAMPLES.name,
        stage="train-sft",
        config={"method": config.method},
        seed=config.seed,
        inputs={"traces": traces, "rewards": rewards},
        policy=policy.state.fingerprint,
    )
    write_table(path, EXAMPLES, [asdict(example) for example in examples], footer)


def save_sft_round(out: Path, done: SftRound, *, examples: str) -> None:
    """Write the checkpoint that a round ended in, with its metrics; `examples` is the sha256 of their table."""
    state = done.policy.state
    footer = Footer(table=TRAIN_METRICS.name, stage=STAGE, policy=state.parent, inputs={"examples": examples})
    with replacing_folder(out) as folder:
        save_policy(folder, done.policy.model, done.policy.tokenizer, state, base=done.policy.base)
        write_table(folder / TRAINER / METRICS_FILE, TRAIN_METRICS, done.metrics, footer)
