"""A task of one's own through the stages: its words, its rewards in tables, in training and in figures."""

from pathlib import Path

import pytest

from score_cli.cli import run_command
from score_cli.config import Stage1Config, VerifyConfig
from score_cli.errors import UserError
from score_cli.evaluation.samples import sample_records
from score_cli.recipe import read_recipe
from score_cli.run import Run, RunInputs
from score_cli.stages.verify import verify
from score_cli.tables.parquet import REWARDS, read_footer
from score_cli.tables.problems import read_problems, write_problems_table
from score_cli.tables.provenance import Footer
from score_cli.tables.records import Problem, Verdict
from score_cli.tables.traces import read_traces, read_verdicts
from score_cli.training.sft_examples import build_examples
from score_cli.training.step import reward_matrix, shaped_rewards
from tests.conftest import rewrite
from tests.test_cli import one_line

HALF = "def grade(problem, response): return 0.5\n"
RECIPE = """
[prompts.mine]
first = "{question}"
correction = "<fix>"

[sample]
max_tokens = 6
threads = 1

[run]
stage1_iterations = 1
"""


def test_rewards_between_0_and_1_stand_in_the_table(batch: Path) -> None:
    (batch / "half.py").write_text(HALF)
    out = batch / "half.parquet"
    config = VerifyConfig(workers=1, grader=f"{batch / 'half.py'}:grade", correct_at=0.5)
    counts = verify(config, traces=batch / "traces.parquet", problems=batch / "problems.parquet", out=out)
    verdicts = read_verdicts(out)
    sampled = [trace.finish_reasons for trace in read_traces(batch / "traces.parquet")]
    expected = [[0.0 if reason == "length" else 0.5 for reason in reasons] for reasons in sampled]
    assert [verdict.rewards for verdict in verdicts] == expected
    assert counts.counts.get("correct", 0) == sum(row.count(0.5) for row in expected)
    footer = read_footer(out, REWARDS)
    assert footer is not None and footer.config["graders"]["division"]["grader"] == "half.py:grade"
    rewrite(out, lambda row: row.update(rewards=[1.5, 0.0], verdicts=["correct", "incorrect"]))
    with pytest.raises(UserError, match="reward 1.5 for correct, expected 0 to 1, and none where unscored"):
        read_verdicts(out)


def verdict(*rewards: float | None, correct_at: float = 1.0) -> Verdict:
    names = ["unscored" if r is None else "correct" if r >= correct_at else "incorrect" for r in rewards]
    return Verdict("p", 0, [None] * len(rewards), names, list(rewards))


def test_rewards_train_as_they_are() -> None:
    rewards = reward_matrix([verdict(0.25, 0.75), verdict(0.5, None)])
    assert rewards[0].tolist() == [0.25, 0.75]
    assert rewards[1, 0] == 0.5 and rewards[1, 1].isnan()
    assert shaped_rewards(Stage1Config(), rewards)[0].tolist() == [0.0, 0.75]


def test_figures_count_correct_verdicts(batch: Path) -> None:
    traces = read_traces(batch / "traces.parquet")[:1]
    [record] = sample_records(
        zip(traces, [verdict(0.8, 0.2, correct_at=0.5)], strict=True), policy="p", decoding="sampled"
    )
    assert (record["acc"], record["acc@t1"], record["acc@t2"]) == (0.0, 1.0, 0.0)
    [record] = sample_records(zip(traces, [verdict(None, 0.9)], strict=True), policy="p", decoding="sampled")
    assert (record["acc@t1"], record["acc@t2"]) == (None, 0.0)


def test_votes_on_what_a_grader_of_ones_own_judged_are_refused(
    batch: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (batch / "half.py").write_text(HALF)
    files = {"traces": batch / "traces.parquet", "problems": batch / "problems.parquet"}
    grader = f"{batch / 'half.py'}:grade"
    verify(VerifyConfig(workers=1, grader=grader), **files, out=batch / "own.parquet")
    out = batch / "m.parquet"
    for asked in (
        ["--traces", files["traces"], "--rewards", batch / "own.parquet"],
        ["--model", checkpoint, "--problems", files["problems"], "--grader", grader],
    ):
        assert run_command(["eval", *map(str, asked), "--votes", "1", "--out", str(out)]) == 2
        assert "half.py:grade says what a response is worth, not what it answers" in one_line(capsys)
        assert not out.exists()


def test_supervised_examples_go_from_wrong_to_correct(batch: Path) -> None:
    trace = next(t for t in read_traces(batch / "traces.parquet") if t.finish_reasons == ["stop"] * 2)
    for rewards, count in [((0.2, 0.8), 1), ((0.8, 0.9), 0), ((0.2, 0.4), 0)]:
        judged = [verdict(*rewards, correct_at=0.5)]
        assert len(build_examples([trace], judged, "star", seed=0)) == count


def own_problems(problems: Path, out: Path, *rows: int) -> Path:
    known = read_problems(problems)
    made = [Problem(problem_id=known[r].problem_id, task="mine", question=known[r].question, source="t") for r in rows]
    write_problems_table(out, made, Footer(table="problems", stage="test"))
    return out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "no grader for task mine, expected one of"),
        ('\n[verify]\ngrader = "missing.py:grade"\n', "there is no file missing.py for the grader missing.py:grade"),
    ],
)
def test_a_run_without_a_grader_is_refused_before_it_samples(
    tmp_path: Path, checkpoint: Path, problems: Path, more: str, message: str
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE + more)
    inputs = RunInputs(
        model=checkpoint,
        problems=own_problems(problems, tmp_path / "train.parquet", 0, 1),
        eval_problems=own_problems(problems, tmp_path / "test.parquet", 2),
    )
    with pytest.raises(UserError, match=message):
        Run(read_recipe(recipe), tmp_path / "run", inputs).execute()
    assert not (tmp_path / "run" / "iterations").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[prompts.mine]\nfirst = "no place"', "the prompts' field first lacks {question}"),
        ('[prompts.mine]\nfist = "{question}"', "prompts have no field fist: did you mean first"),
        ('[prompts.maths]\nfirst = "{question}"', "no task is named maths: did you mean math"),
    ],
)
def test_wrong_prompts_of_a_task_of_ones_own(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "recipe.toml").write_text(table)
    with pytest.raises(UserError, match=message):
        read_recipe(tmp_path / "recipe.toml")
