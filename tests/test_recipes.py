"""The recipes for real data sets, run through on a few problems with a tiny random chat model of a real tokenizer."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from score_cli.cli import run_command
from score_cli.config import VerifyConfig
from score_cli.evaluation.evaluate import metric_rows
from score_cli.evaluation.measured import measure_tables
from score_cli.stages.verify import verify
from score_cli.tables.parquet import PROBLEMS, TRACES, write_table
from score_cli.tables.provenance import Footer
from score_cli.tasks.loaders import gold_responses
from tests.conftest import SHARED_DATA, as_row

ROOT = Path(__file__).parents[1]
needs_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no copy of the real data sets (SCORE_SHARED_DATA)")


def make_chat_model(folder: Path) -> Path:
    """A random one-layer Qwen2 with the real Qwen2.5 tokenizer and chat template."""
    tokenizer = AutoTokenizer.from_pretrained(SHARED_DATA / "tokenizers" / "qwen2.5")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def score(*arguments: object) -> None:
    assert run_command([str(argument) for argument in arguments]) == 0


@needs_data
@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("recipe", "train", "held_out"),
    [
        ("math", ("gsm8k", "gsm8k", "train"), ("gsm8k", "gsm8k", "test")),
        ("code", ("mbpp", "mbpp", "train"), ("humaneval", "humaneval", "test")),
    ],
)
def test_a_recipe_runs_from_problems_to_metrics(
    recipe: str, train: tuple[str, str, str], held_out: tuple[str, str, str], tmp_path: Path
) -> None:
    for name, (dataset, folder, split) in (("train", train), ("test", held_out)):
        source, out = SHARED_DATA / folder, tmp_path / f"{name}.parquet"
        score("data", dataset, "--from", source, "--split", split, "--limit", 5, "--out", out)
    small = ["sample.samples=2", "sample.max_tokens=12", "eval.samples=2", "eval.max_tokens=12"]
    small += ["run.stage1_iterations=1", "run.stage2_iterations=1"]
    score(
        "run",
        ROOT / "pipelines" / f"{recipe}.toml",
        "--model",
        make_chat_model(tmp_path / "model"),
        "--problems",
        tmp_path / "train.parquet",
        "--eval-problems",
        tmp_path / "test.parquet",
        "--limit",
        4,
        "--out",
        tmp_path / "run",
        *[part for change in small for part in ("--set", change)],
    )
    metrics = pl.read_parquet(tmp_path / "run" / "metrics.parquet")
    metrics = metrics.filter(~pl.col("policy").str.contains(" - ", literal=True))
    assert set(metrics["policy"]) == {"base", "stage1", "stage2"}
    assert metrics.filter(pl.col("name") == "acc@t2")["count"].to_list() == [8, 4] * 3
    curve = pl.read_parquet(tmp_path / "run" / "train_metrics.parquet")
    gaps = curve.filter(pl.col("name") == "logprob_diff_abs")["value"]
    assert len(gaps) == 4 and max(gaps) < 1e-4
    traces = pl.read_parquet(tmp_path / "run" / "iterations" / "0000" / "traces.parquet")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    row = traces.row(0, named=True)
    text = tokenizer.decode([t for t, owner in zip(row["token_ids"], row["attempt_ids"], strict=True) if owner == 0])
    assert text.count("<|im_start|>assistant") == 2 and text.count("There might be an error in the") == 1


def traces_of(responses: list[tuple[str, str]], out: Path) -> None:
    """A traces table made by hand: each response as both attempts."""
    rows = [
        {
            "problem_id": name,
            "sample_index": 0,
            "attempts": [text, text],
            "finish_reasons": ["stop", "stop"],
            "token_ids": np.array([0, 1, 2]),
            "attempt_ids": np.array([0, 1, 2]),
            "logprobs": np.zeros(3),
            "offline_attempts": 2,
        }
        for name, text in responses
    ]
    write_table(out, TRACES, rows, Footer(table="traces", stage="by hand"))


@needs_data
@pytest.mark.parametrize(("dataset", "folder", "count"), [("humaneval", "humaneval", 164), ("gsm8k", "gsm8k", 1319)])
def test_reference_solutions_fed_as_attempts_score_a_hundred_percent(
    dataset: str, folder: str, count: int, tmp_path: Path
) -> None:
    golds = gold_responses(dataset, source=str(SHARED_DATA / folder), split="test")
    problems, traces, rewards = (tmp_path / f"{name}.parquet" for name in ("problems", "traces", "rewards"))
    write_table(problems, PROBLEMS, [as_row(g.problem) for g in golds], Footer(table="problems", stage="by hand"))
    traces_of([(g.problem.problem_id, str(g.gold_response)) for g in golds], traces)
    verify(VerifyConfig(), traces=traces, problems=problems, out=rewards)
    values = {
        row["name"]: row for row in metric_rows(measure_tables(traces, rewards), policy="gold", decoding="sampled")
    }
    assert values["acc@t1"]["value"] == values["acc@t2"]["value"] == 1.0
    assert values["acc@t1"]["count"] == count
