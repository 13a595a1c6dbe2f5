"""The loop on records alone: no file on disk, the policy that the stages over files make, a journal that sees all."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import score_cli
from score_cli import Grader, Loop, SampleConfig, Sampler, Stage2Config, Trainer, VerifyConfig, run_updates
from score_cli.errors import JobError, UserError
from score_cli.loop import check_logprobs_match
from score_cli.sampling.sampler import SampleJob
from score_cli.tables.checkpoints import load_policy
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.tasks import division
from tests.conftest import small_policy
from tests.runs import GRADE, invented

SAMPLE = SampleConfig(samples=4, problems_per_iteration=3, max_tokens=6, threads=1)
TRAIN = Stage2Config(learning_rate=1e-3, kl="full", threads=1)


@pytest.fixture(autouse=True)
def verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the attempts is right: an untrained policy never is."""

    def grade(grader: Grader, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Verdict]:
        return [invented(verdict) for verdict in GRADE(grader, traces, problems)]

    monkeypatch.setattr(Grader, "grade", grade)


def loop(seed: int = 0) -> Loop:
    policy = small_policy(seed=seed)
    return Loop(
        sampler=Sampler(SAMPLE, policy),
        grader=Grader(VerifyConfig()),
        trainer=Trainer(TRAIN, policy, small_policy(seed=seed)),
        problems=division.split_problems("train")[:12],
    )


class Kept:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []
        self.fingerprints: list[str] = []

    def sampled(self, job: SampleJob, traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> None:
        assert len(job.problems) == 3 and len(traces) == len(verdicts) == 12
        self.traces += traces

    def updated(self, trainer: Trainer) -> None:
        self.fingerprints.append(trainer.policy.state.fingerprint)


def test_updates_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made, kept = loop(), Kept()
    before = [parameter.clone() for parameter in made.trainer.policy.model.parameters()]
    run_updates(made, 3, kept)
    state = made.trainer.policy.state
    assert (state.iteration, state.stage, state.fingerprint) == (3, "stage2", kept.fingerprints[-1])
    assert len(set(kept.fingerprints)) == 3 and state.parent == kept.fingerprints[1]
    after = made.trainer.policy.model.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not list(tmp_path.iterdir())


def test_the_commands_over_files_make_the_same_policy(tmp_path: Path) -> None:
    """Two updates from records; then the stages' commands, one process's files after another's."""
    from score_cli.config import DataConfig
    from score_cli.stages.data import write_problems
    from score_cli.stages.sample import sample
    from score_cli.stages.train import train
    from score_cli.stages.verify import verify
    from score_cli.tables.checkpoints import save_policy

    made = loop()
    run_updates(made, 2)
    base = tmp_path / "base"
    base.mkdir()
    policy = small_policy()
    save_policy(base, policy.model, policy.tokenizer, policy.state)
    problems = tmp_path / "problems.parquet"
    write_problems("division", DataConfig(limit=12), out=problems)
    model = base
    for number in range(2):
        traces, rewards = tmp_path / f"traces{number}.parquet", tmp_path / f"rewards{number}.parquet"
        sample(SAMPLE, policy=load_policy(model), problems=problems, out=traces)
        verify(VerifyConfig(), traces=traces, problems=problems, out=rewards)
        train(TRAIN, model=model, reference=base, traces=traces, rewards=rewards, out=tmp_path / f"next{number}")
        model = tmp_path / f"next{number}"
    found = load_policy(model)
    assert found.state.fingerprint == made.trainer.policy.state.fingerprint


def test_a_verdict_changes_what_is_learned_and_nothing_else_does() -> None:
    """The gold answer is seen by the grader alone: other gold answers with the same verdicts make the same policy."""
    plain, changed = loop(), loop()
    changed = replace(changed, problems=[replace(problem, answer="7") for problem in changed.problems])
    for each in (plain, changed):
        run_updates(each, 2)
    assert plain.trainer.policy.state.fingerprint == changed.trainer.policy.state.fingerprint


def test_a_sampler_that_keeps_the_old_policy_stops_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    made = loop()
    stale = small_policy()
    monkeypatch.setattr(made.sampler, "load", lambda policy: made.sampler.engine.refresh(stale))
    with pytest.raises(JobError, match="the sampler holds another policy"):
        run_updates(made, 1)


def test_traces_of_another_policy_stop_the_loop_before_the_step() -> None:
    made = loop()
    other = small_policy(seed=1)
    made.sampler.engine.refresh(other)
    before = [parameter.clone() for parameter in made.trainer.policy.model.parameters()]
    with pytest.raises(JobError, match="the batch is not on policy"):
        run_updates(made, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, made.trainer.policy.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in made.trainer.policy.model.parameters())


def test_a_policy_cannot_stay_its_own_reference() -> None:
    policy = small_policy()
    made = replace(loop(), sampler=Sampler(SAMPLE, policy), trainer=Trainer(TRAIN, policy))
    with pytest.raises(UserError, match="is its own reference: give the base as --reference"):
        run_updates(made, 2)
    assert made.trainer.policy.state.iteration == 1


def test_more_than_the_allowed_share_unscored_stops_the_loop_with_its_traces_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, kept = loop(), Kept()

    def grade(grader: Grader, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Verdict]:
        found = GRADE(grader, traces, problems)
        return [replace(v, verdicts=["unscored"] * 2, rewards=[None, None]) for v in found]

    monkeypatch.setattr(Grader, "grade", grade)
    with pytest.raises(JobError, match="100.0% of the attempts could not be graded"):
        run_updates(made, 1, kept)
    assert len(kept.traces) == 12 and made.trainer.policy.state.iteration == 0


def test_the_probe_is_checked_by_its_sampled_tokens_alone() -> None:
    made = loop()
    traces = made.sampler.sample(made.problems[:2], replace(SAMPLE, iteration=0))
    check_logprobs_match(made.trainer, made.sampler, traces, 1.0)


def test_every_public_name_is_there() -> None:
    for name in score_cli.__all__:
        assert getattr(score_cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute nothing"):
        _ = score_cli.nothing
