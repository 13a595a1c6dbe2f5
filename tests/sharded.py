"""What several processes compute together beside what one computes, as JSON.

    python -m torch.distributed.run --nproc-per-node 2 -m tests.sharded FOLDER
    python -m torch.distributed.run --nproc-per-node 3 -m tests.sharded FOLDER FROM TO

FOLDER holds ckpt, traces.parquet and rewards.parquet. Prints, for each kind of update, the largest difference that two
updates in float64 leave between two processes and one, in weights and in moments; the same with a trap set; and the
exit code of `score train-stage2`, which writes FOLDER/first. With FROM and TO, takes one update from checkpoint to
checkpoint.
"""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import Qwen2Config, Qwen2ForCausalLM

from score_cli.cli import run_command
from score_cli.config import SftConfig, Stage1Config, Stage2Config
from score_cli.tables.checkpoints import Policy, TrainerState, fingerprint, load_optimizer, load_policy
from score_cli.tables.processes import take_part, team
from score_cli.tables.traces import read_traces, read_verdicts
from score_cli.training import learner
from score_cli.training.sft import fine_tune, make_examples
from score_cli.training.trainer import Trainer
from tests.conftest import small_policy

STAGE1 = Stage1Config(learning_rate=1e-3, kl="full", threads=1, max_grad_norm=1e9, gradient_checkpointing=True)
STAGE2 = Stage2Config(learning_rate=1e-3, kl="sampled", threads=1)
# Padded tokens a pass: of 48 traces one pass, and an odd number of them.
ONE, ODD = 10_000, 400


def untied() -> Policy:
    """A model whose head has weights of its own, with biases in its layers."""
    tied = small_policy()
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(
        vocab_size=len(tied.tokenizer), num_key_value_heads=2, tie_word_embeddings=False, pad_token_id=0, **sizes
    )
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(config).eval()
    return Policy(model, tied.tokenizer, TrainerState(fingerprint=fingerprint(model)), "untied")


def updated(config: Any, policy: Policy, folder: Path, **given: Any) -> dict[str, torch.Tensor]:
    """Weights and moments of a copy of a policy after two updates."""
    base = replace(policy, model=copy.deepcopy(policy.model).double())
    trainer = Trainer(config, replace(policy, model=copy.deepcopy(base.model)), base)
    traces, verdicts = read_traces(folder / "traces.parquet"), read_verdicts(folder / "rewards.parquet")
    for _ in range(2):
        trainer.update(traces, verdicts, check=False, **given)
    return dict(trainer.policy.model.named_parameters()) | trainer._learner.moments()


def go_on(folder: Path, start: str, end: str) -> int:
    """Take an update of Stage II on the folder's batch, with the moments of a checkpoint, and write the next."""
    policy = load_policy(folder / start)
    trainer = Trainer(STAGE2, policy, load_policy(folder / "ckpt"), load_optimizer(folder / start))
    traces, verdicts = read_traces(folder / "traces.parquet"), read_verdicts(folder / "rewards.parquet")
    trainer.update(traces, verdicts, check=False)
    trainer.save(folder / end)
    return 0


def difference(config: Any, policy: Policy, folder: Path, **given: Any) -> float:
    with patch.object(learner, "team", lambda: None):
        one = updated(config, policy, folder, **given)
    several = updated(config, policy, folder, **given)
    assert one.keys() == several.keys()
    return max((one[name] - several[name]).abs().max().item() for name in one)


def run_alike(folder: Path) -> float:
    """The largest difference that `score run` leaves in a policy, seen that its first update's tables are the same."""
    places = ("--model", folder / "ckpt", "--problems", folder / "problems.parquet")
    given = [*map(str, places), "--eval-problems", str(folder / "other.parquet")]
    with patch.object(learner, "team", lambda: None):
        assert run_command(["run", str(folder / "run.toml"), *given, "--out", str(folder / "one")]) == 0
    assert run_command(["run", str(folder / "run.toml"), *given, "--out", str(folder / "two")]) == 0
    ends = [dict(load_policy(folder / name / "stage2").model.named_parameters()) for name in ("one", "two")]
    tables = [(folder / name / "iterations" / "0000" / "traces.parquet").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]
    before = dict(load_policy(folder / "ckpt").model.named_parameters())
    assert max((ends[0][name] - before[name]).abs().max().item() for name in before) > 1e-3
    return max((ends[0][name] - ends[1][name]).abs().max().item() for name in ends[0])


def tuned(folder: Path) -> float:
    """The same of a supervised round, whose second and last batch is smaller."""
    policy = small_policy()
    config = SftConfig(learning_rate=1e-3, threads=1, batch_size=5, micro_batch_tokens=100)
    traces, verdicts = read_traces(folder / "traces.parquet"), read_verdicts(folder / "rewards.parquet")
    examples = make_examples(config, policy, traces, verdicts)[:8]
    models = [copy.deepcopy(policy.model).double() for _ in range(2)]
    with patch.object(learner, "team", lambda: None):
        one = fine_tune(models[0], examples, config)
    several = fine_tune(models[1], examples, config)
    weights = zip(*(model.parameters() for model in models), strict=True)
    return max(*(abs(one[name] - several[name]) for name in one), *((a - b).abs().max().item() for a, b in weights))


def forget_that_the_loss_is_a_sum() -> None:
    """Leave FSDP the mean over processes that it takes unless it is told otherwise."""
    FSDPModule.set_gradient_divide_factor = lambda self, factor: None  # type: ignore[method-assign]


def prove(folder: Path) -> int:
    command = ["train-stage2", "--model", "ckpt", "--traces", "traces.parquet", "--rewards", "rewards.parquet"]
    places = [str(folder / word) if word in ("ckpt", "traces.parquet", "rewards.parquet") else word for word in command]
    found: dict[str, Any] = {
        "command": run_command(
            [*places, "--out", str(folder / "first"), "--threads", "1", "--learning-rate", "1e-3", "--kl", "sampled"]
        )
    }
    found["stage2 tied"] = difference(replace(STAGE2, micro_batch_tokens=ODD), small_policy(), folder)
    engine = replace(STAGE2, micro_batch_tokens=ONE)
    found["stage2 untied, another engine"] = difference(engine, untied(), folder, other_engine=True)
    for name, policy in (("tied", small_policy("llama")), ("untied", untied())):
        found[f"stage1 {name}"] = difference(replace(STAGE1, micro_batch_tokens=ODD), policy, folder)
    found["sft"] = tuned(folder)
    found["run"] = run_alike(folder)
    here = team()
    assert here is not None
    here.make("trap", forget_that_the_loss_is_a_sum)
    found["trap"] = difference(replace(STAGE1, micro_batch_tokens=ODD), small_policy("llama"), folder)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, names = Path(sys.argv[1]), sys.argv[2:]
    sys.exit(take_part(lambda: go_on(place, *names) if names else prove(place)))
