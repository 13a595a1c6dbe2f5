"""`score train-sft`: traces and rewards, or given dialogues, and a policy to the policy after a supervised round."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from score_cli.config import SampleConfig, SftConfig
from score_cli.progress import SILENT, Progress
from score_cli.sampling.given_dialogues import render_dialogues
from score_cli.settings import check_config
from score_cli.stages.train import check_policy, check_tokens
from score_cli.tables.atomic import check_output, replacing_folder
from score_cli.tables.checkpoints import METRICS_FILE, TRAINER, Policy, load_policy, renderer_digest, save_policy
from score_cli.tables.device import setup_device
from score_cli.tables.parquet import EXAMPLES, EXAMPLES_OF_DIALOGUES, TRAIN_METRICS, write_table
from score_cli.tables.processes import resting_device
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.traces import read_graded
from score_cli.tasks.dialogues import read_dialogues
from score_cli.training.sft import STAGE, SftRound, make_examples, make_given_examples, sft_round
from score_cli.training.sft_examples import Example


def train_sft(
    config: SftConfig,
    *,
    model: Path,
    traces: Path,
    rewards: Path,
    learned: Path,
    out: Path,
    overwrite: bool = False,
    allow_foreign: bool = False,
    progress: Progress = SILENT,
) -> str:
    """Write the examples that traces give, train a policy on them, and write the next policy.

    Args:
        learned: the table of examples to write.
        allow_foreign: learn from another policy's traces too, or from tables without a footer.
    Returns:
        One line that sums the round up.
    Raises:
        UserError: an input does not fit; nothing is written.
        JobError: no trace makes an example, or the loss is not finite.
    """
    check_config(config)
    check_output(learned, overwrite=overwrite)
    check_output(out, overwrite=overwrite, folder=True)
    policy = load_policy(model, device=resting_device(setup_device(config)))
    graded = read_graded(traces, rewards, allow_foreign=allow_foreign)
    ancestors = {policy.state.fingerprint, policy.state.parent, policy.state.reference}
    check_policy(graded.footer, traces, None if allow_foreign else ancestors, policy)
    check_tokens(graded.traces, policy.model, traces)
    made = make_examples(config, policy, graded.traces, graded.verdicts)
    inputs = {"traces": file_sha256(traces), "rewards": file_sha256(rewards)}
    write_examples(learned, made, config, policy, inputs)
    done = sft_round(config, policy, graded.traces, graded.verdicts, made, progress=progress)
    save_sft_round(out, done, examples=file_sha256(learned))
    return done.summary


def train_start(
    config: SftConfig,
    sampling: SampleConfig,
    *,
    model: Path,
    examples: Path,
    learned: Path,
    out: Path,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> str:
    """Train a policy on given dialogues, and write the next policy.

    Args:
        sampling: how the policy will be sampled from: the script, the user's words, the most tokens of a turn.
        examples: the dialogues; learned: the table of examples to write, in the tokens that were learned.
    Returns:
        One line that sums the round up.
    Raises:
        UserError: an input does not fit; nothing is written.
        JobError: the loss is not finite.
    """
    check_config(config)
    check_output(learned, overwrite=overwrite)
    check_output(out, overwrite=overwrite, folder=True)
    policy = load_policy(model, device=resting_device(setup_device(config)))
    traces = render_dialogues(read_dialogues(examples), policy, sampling)
    made = make_given_examples(config, policy, traces)
    write_examples(learned, made, config, policy, start_inputs(examples, policy))
    done = sft_round(config, policy, [], [], made, progress=progress)
    save_sft_round(out, done, examples=file_sha256(learned))
    return done.summary


def start_inputs(examples: Path, policy: Policy) -> dict[str, str]:
    """What the examples of given dialogues are made of, for their footer."""
    return {"dialogues": file_sha256(examples), "renderer": renderer_digest(policy)}


def write_examples(
    path: Path, examples: Sequence[Example], config: SftConfig, policy: Policy, inputs: Mapping[str, str]
) -> None:
    """Write what a round learns, row by row.

    Args:
        policy: before the round.
        inputs: sha256 of what the examples are made of.
    """
    dialogues = examples[0].learned is not None
    table = EXAMPLES_OF_DIALOGUES if dialogues else EXAMPLES
    said = {"method": examples[0].method} | ({"loss_on": config.loss_on} if dialogues else {})
    footer = Footer(
        table=EXAMPLES.name,
        stage="train-sft",
        config=said,
        seed=config.seed,
        inputs=dict(inputs),
        policy=policy.state.fingerprint,
    )
    names = table.schema.names
    rows = [{name: value for name, value in asdict(example).items() if name in names} for example in examples]
    write_table(path, table, rows, footer)


def save_sft_round(out: Path, done: SftRound, *, examples: str) -> None:
    """Write the checkpoint that a round ended in, with its metrics; `examples` is the sha256 of their table."""
    state = done.policy.state
    footer = Footer(table=TRAIN_METRICS.name, stage=STAGE, policy=state.parent, inputs={"examples": examples})
    with replacing_folder(out) as folder:
        save_policy(folder, done.policy.model, done.policy.tokenizer, state, base=done.policy.base)
        write_table(folder / TRAINER / METRICS_FILE, TRAIN_METRICS, done.metrics, footer)
