"""Given first attempts: taken as they are, conditioned on, never trained on."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from score_cli.cli import run_command
from score_cli.config import SampleConfig, Stage2Config, VerifyConfig
from score_cli.errors import UserError
from score_cli.sampling.seeds import offline_samples
from score_cli.stages.sample import sample
from score_cli.stages.verify import verify
from score_cli.tables.checkpoints import load_policy
from score_cli.tables.parquet import TRACES, read_footer
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import Trace
from score_cli.tables.traces import read_traces
from tests.conftest import rewrite, take_gradient, write_checkpoint

BASE = SampleConfig(samples=4, max_tokens=6, threads=1, seed=5)
CONFIG = SampleConfig(samples=4, max_tokens=6, threads=1, seed=9)
STAGE2 = Stage2Config(alpha=10.0, beta1=0.0, baseline="leave-one-out", log_grad_norm_by_attempt=True, threads=1)


@pytest.fixture
def folder(tmp_path: Path, checkpoint: Path, problems: Path) -> Path:
    """Traces of a base policy, and the checkpoint of another policy."""
    sample(BASE, policy=load_policy(checkpoint), problems=problems, out=tmp_path / "base.parquet")
    write_checkpoint(tmp_path / "next", seed=1)
    return tmp_path


def go_on(folder: Path, config: SampleConfig = CONFIG, name: str = "traces") -> list[Trace]:
    out = folder / f"{name}.parquet"
    sample(
        config,
        policy=load_policy(folder / "next"),
        problems=folder / "problems.parquet",
        first_attempts=folder / "base.parquet",
        out=out,
        overwrite=True,
    )
    return read_traces(out)


def first_attempt(trace: Trace) -> tuple[list[int], list[float], str, str]:
    own = trace.attempt_ids == 1
    return trace.token_ids[own].tolist(), trace.logprobs[own].tolist(), trace.attempts[0], trace.finish_reasons[0]


def test_first_attempts_are_those_of_the_file_and_the_rest_is_this_policys(folder: Path) -> None:
    given = {(t.problem_id, t.sample_index): t for t in read_traces(folder / "base.parquet")}
    traces = go_on(folder)
    assert {trace.finish_reasons[0] for trace in traces} == {"stop", "length"}
    model = load_policy(folder / "next").model
    for trace in traces:
        base = given[trace.problem_id, trace.sample_index]
        assert trace.offline_attempts == 1
        assert first_attempt(trace) == first_attempt(base)
        end = int(np.flatnonzero(base.attempt_ids == 2)[0])
        assert trace.token_ids[:end].tolist() == base.token_ids[:end].tolist(), "prompt, attempt and bridge alike"
        assert trace.attempt_ids[:end].tolist() == base.attempt_ids[:end].tolist()
        # Brute force: the second attempt's logprobs from a plain pass of the other policy over all before it.
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor(trace.token_ids[None].astype(np.int64))).logits[0].log_softmax(-1)
        for place in np.flatnonzero(trace.attempt_ids == 2):
            assert trace.logprobs[place] == pytest.approx(logprobs[place - 1, trace.token_ids[place]].item(), abs=1e-5)
    footer = read_footer(folder / "traces.parquet", TRACES)
    assert footer is not None and footer.inputs["first_attempts"] == file_sha256(folder / "base.parquet")
    assert footer.config["offline_share"] == 1.0


@pytest.mark.parametrize(("share", "count"), [(0.5, 2), (0.25, 1), (0.1, 0), (0.9, 4), (0.0, 0)])
def test_a_share_of_each_problems_samples_is_given_and_the_rest_sampled_as_ever(
    folder: Path, share: float, count: int
) -> None:
    mixed = go_on(folder, replace(CONFIG, offline_share=share))
    sample(
        CONFIG,
        policy=load_policy(folder / "next"),
        problems=folder / "problems.parquet",
        out=folder / "online.parquet",
    )
    given = Counter(trace.problem_id for trace in mixed if trace.offline_attempts)
    assert set(given.values()) <= {count} and len(given) == (12 if count else 0)
    for trace, online in zip(mixed, read_traces(folder / "online.parquet"), strict=True):
        if not trace.offline_attempts:
            assert trace.token_ids.tolist() == online.token_ids.tolist()
            # Other neighbours in the batch may change the last bits, nothing else.
            assert trace.logprobs.tolist() == pytest.approx(online.logprobs.tolist(), abs=1e-5)


def test_which_samples_are_given_is_a_fair_draw_of_the_seed() -> None:
    drawn = [tuple(offline_samples(0, 0, f"p{i}", 4, 0.5)) for i in range(6000)]
    counts = Counter(drawn)
    assert len(counts) == 6, "every pair of four samples"
    # Chi-square with five degrees of freedom; 20.5 is its 99.9th percentile.
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5
    assert [offline_samples(0, 0, "p", 4, 0.5)] * 2 == [offline_samples(0, 0, "p", 4, 0.5) for _ in range(2)]
    others = [offline_samples(seed, iteration, "p", 40, 0.5) for seed, iteration in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(other) for other in others}) == 3


def test_three_attempts_go_on_from_a_given_first(folder: Path) -> None:
    for trace in go_on(folder, replace(CONFIG, attempts=3, max_tokens=6)):
        assert trace.offline_attempts == 1 and len(trace.attempts) == 3
        assert sorted(set(trace.attempt_ids.tolist())) == [0, 1, 2, 3]


def test_shards_with_given_attempts_are_the_whole(folder: Path) -> None:
    from score_cli.stages.sample import merge

    config = replace(CONFIG, chunk_problems=3, offline_share=0.5)
    go_on(folder, config, "whole")
    for number in (1, 2):
        go_on(folder, replace(config, shard=f"{number}/2"), f"part{number}")
    merge([folder / "part1.parquet", folder / "part2.parquet"], out=folder / "merged.parquet")
    assert (folder / "merged.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()


def without_last_problem(folder: Path) -> None:
    import polars as pl

    table = pl.read_parquet(folder / "base.parquet")
    table.filter(pl.col("problem_id") != table["problem_id"][-1]).write_parquet(folder / "base.parquet")


def twice(folder: Path) -> None:
    import polars as pl

    table = pl.read_parquet(folder / "base.parquet")
    pl.concat([table, table[:1]]).write_parquet(folder / "base.parquet")


def other_questions(folder: Path) -> None:
    rewrite(folder / "problems.parquet", lambda row: row.update(question="Divide 7 by 3. "))


def other_template(folder: Path) -> None:
    file = folder / "next" / "chat_template.jinja"
    file.write_text("+" + file.read_text())


def foreign_other_template(folder: Path) -> None:
    other_template(folder)
    rewrite(folder / "base.parquet", lambda row: None, keep_footer=False)


def stop_inside(folder: Path) -> None:
    """A first attempt in which the model stopped and yet went on."""
    stop = load_policy(folder / "next").tokenizer.eos_token_id

    def change(row: dict[str, object]) -> None:
        ids: list[int] = row["token_ids"]  # type: ignore[assignment]
        ids[row["attempt_ids"].index(1)] = stop  # type: ignore[attr-defined]

    rewrite(folder / "base.parquet", change)


REFUSED: list[tuple[Callable[[Path], None], dict[str, object], str]] = [
    (without_last_problem, {}, "lacks 4 of the 48 first attempts needed, such as problem division-"),
    (lambda folder: None, {"samples": 5}, "lacks 12 of the 60 first attempts needed, such as .* sample 4: .*--samples"),
    (twice, {}, "holds two traces of problem division-"),
    (other_questions, {}, "its prompt is not the one this policy would be given"),
    (other_template, {}, "was sampled with another tokenizer, chat template or stop token"),
    (foreign_other_template, {}, "its prompt is not the one this policy would be given"),
    (stop_inside, {}, "its first attempt does not end where this policy's would"),
    (lambda folder: None, {"max_tokens": 5}, "its first attempt has 6 tokens, more than --max-tokens 5"),
    (lambda folder: None, {"attempts": 1}, "nothing is left to sample: raise --attempts"),
    (lambda folder: (folder / "base.parquet").unlink(), {}, "base.parquet does not exist"),
]


@pytest.mark.parametrize(("spoil", "settings", "message"), REFUSED)
def test_first_attempts_that_do_not_fit_are_refused(
    folder: Path, spoil: Callable[[Path], None], settings: dict[str, object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=message):
        go_on(folder, replace(CONFIG, **settings))  # type: ignore[arg-type]
    assert not (folder / "traces.parquet").exists()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_share_without_first_attempts_is_refused(folder: Path) -> None:
    config = replace(CONFIG, offline_share=0.5)
    with pytest.raises(UserError, match="offline_share is set, but no first attempts are given"):
        sample(
            config, policy=load_policy(folder / "next"), problems=folder / "problems.parquet", out=folder / "t.parquet"
        )


def mixed_batch(folder: Path) -> tuple[list[Trace], torch.Tensor, torch.Tensor]:
    """Half-offline traces of three problems, hand-set rewards that vary, and the problems' numbers."""
    traces = go_on(folder, replace(CONFIG, offline_share=0.5))[:12]
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]).repeat(3, 1)
    rewards[5:7] = 1 - rewards[5:7]
    return traces, rewards, torch.arange(3).repeat_interleave(4)


def test_the_gradient_is_that_of_online_tokens_alone_with_online_baselines(folder: Path) -> None:
    """Brute force: returns minus the mean of siblings whose attempt this policy sampled, times plain logprobs."""
    traces, rewards, groups = mixed_batch(folder)
    model = load_policy(folder / "next").model
    batch, _ = take_gradient(model, model, traces, rewards, STAGE2)
    found = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    loss = torch.zeros(())
    for row, trace in enumerate(traces):
        tokens = torch.tensor(trace.token_ids.astype(np.int64))
        logprobs = model(input_ids=tokens[None]).logits[0].log_softmax(-1)
        for attempt in range(1, 3):
            own = [place for place, owner in enumerate(trace.attempt_ids) if owner == attempt > trace.offline_attempts]
            siblings = [
                other
                for other in range(len(traces))
                if groups[other] == groups[row] and other != row and traces[other].offline_attempts < attempt
            ]

            def value(index: int, attempt: int = attempt) -> float:
                first, second = rewards[index].tolist()
                return first if attempt == 1 else second + 10.0 * (second - first)

            mean = sum(map(value, siblings)) / len(siblings)
            for place in own:
                loss = loss - (value(row) - mean) * logprobs[place - 1, tokens[place]]
            expected = 0.0 if trace.offline_attempts >= attempt else value(row) - mean
            assert batch.advantages[row, attempt - 1].item() == pytest.approx(expected, abs=1e-5)
    (loss / len(traces)).backward()
    assert max(gradient.abs().max().item() for gradient in found) > 1e-3
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=2e-5, rtol=1e-4)


def test_a_given_first_attempt_conditions_the_second(folder: Path) -> None:
    """Another first attempt before the same second one gives the second another gradient, and itself none."""
    traces, rewards, _ = mixed_batch(folder)
    traces = [replace(trace, offline_attempts=1) for trace in traces]
    changed = []
    for trace in traces:
        tokens = trace.token_ids.copy()
        start = int(np.flatnonzero(trace.attempt_ids == 1)[0])
        tokens[start] = tokens[start] + 1 if tokens[start] + 1 < 13 else 5
        changed.append(replace(trace, token_ids=tokens))
    model = load_policy(folder / "next").model
    norms = []
    for batch in (traces, changed):
        model.zero_grad()
        norms.append(take_gradient(model, model, batch, rewards, STAGE2)[1].grad_norms_by_attempt)
    assert norms[0][0] == norms[1][0] == 0
    assert abs(norms[0][1] - norms[1][1]) > 1e-3 * norms[0][1] > 0


def test_the_commands_train_on_half_offline_traces(folder: Path) -> None:
    """The on-policy check looks at this policy's own tokens alone: another policy wrote the given ones."""
    model, problems, traces = folder / "next", folder / "problems.parquet", folder / "traces.parquet"
    options = ["--samples", "4", "--max-tokens", "6", "--offline-share", "0.5", "--threads", "1"]
    given = ["--first-attempts", str(folder / "base.parquet"), "--problems", str(problems)]
    assert run_command(["sample", "--model", str(model), *given, *options, "--out", str(traces)]) == 0
    verify(VerifyConfig(), traces=traces, problems=problems, out=folder / "rewards.parquet")
    # Rewards that differ, so that there is something to learn.
    rewrite(
        folder / "rewards.parquet",
        lambda row: row.update(rewards=[float(row["sample_index"] % 2), float(row["sample_index"] < 2)]),  # type: ignore[operator]
    )
    files = ["--traces", str(traces), "--rewards", str(folder / "rewards.parquet"), "--out", str(folder / "new")]
    assert run_command(["train-stage2", "--model", str(model), *files, "--threads", "1"]) == 0
    assert load_policy(folder / "new").state.parent == load_policy(model).state.fingerprint
