"""Answers to verdicts, and the stage that grades files."""

from pathlib import Path

import pytest

from score_cli.config import DataConfig, VerifyConfig
from score_cli.errors import JobError, UserError
from score_cli.stages.data import write_problems
from score_cli.stages.verify import verify
from score_cli.tables.parquet import REWARDS, read_footer
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import Problem
from score_cli.tables.traces import read_traces, read_verdicts
from score_cli.tasks.latex_boxes import last_boxed
from score_cli.verification.number import NumberGrader, same_number
from score_cli.verification.task_grader import Item
from tests.conftest import rewrite


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{53}: product 265, remainder -01", "53"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} and so on", r"\frac{1}{2}"),
        (r"\boxed{7} but then \boxed{}", "7"),
        (r"\boxed{7} but then \boxed{8", "7"),
        ("the answer is 5", None),
        ("", None),
    ],
)
def test_the_last_whole_box_that_holds_something_is_the_answer(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("52", "52", True),
        ("052", "52", True),
        ("+52", "52", True),
        ("52.0", "52", True),
        ("1/2", "0.5", True),
        ("53", "52", False),
        ("5 2", "52", False),
        ("1/0", "0", False),
        ("-52", "52", False),
        ("fifty", "52", False),
    ],
)
def test_numbers_are_compared_exactly(answer: str, gold: str, same: bool) -> None:
    assert same_number(answer, gold) is same


def problem(answer: str | None) -> Problem:
    return Problem(problem_id="p", task="division", question="", answer=answer, source="test")


def test_each_verdict_says_whose_fault_it_is() -> None:
    items = [
        Item(problem("52"), r"\boxed{52}"),
        Item(problem("52"), r"\boxed{51}"),
        Item(problem("52"), "no box"),
        Item(problem(None), r"\boxed{52}"),
        Item(problem(" "), r"\boxed{52}"),
    ]
    graded = NumberGrader().grade(items)
    assert [each.verdict for each in graded] == ["correct", "incorrect", "no_answer", "unscored", "unscored"]
    assert [each.reason for each in graded[2:]] == [None, *["of problems without a gold answer that can be read"] * 2]


def answer_with(folder: Path, texts: list[list[str]], reasons: list[list[str]]) -> None:
    rows = iter(range(10**6))

    def change(row: dict[str, object]) -> None:
        index = next(rows) % len(texts)
        row["attempts"], row["finish_reasons"] = texts[index], reasons[index]

    rewrite(folder / "traces.parquet", change)


def run_verify(folder: Path, config: VerifyConfig | None = None, name: str = "graded.parquet") -> Path:
    verify(
        config or VerifyConfig(),
        traces=folder / "traces.parquet",
        problems=folder / "problems.parquet",
        out=folder / name,
    )
    return folder / name


def test_rewards_stand_row_by_row_and_a_cut_attempt_scores_zero_whatever_it_says(batch: Path) -> None:
    rewrite(batch / "problems.parquet", lambda row: row.update(answer="7"))
    rewrite(batch / "traces.parquet", lambda row: None, keep_footer=False)
    answer_with(
        batch, [[r"\boxed{7}", r"\boxed{7}"], [r"\boxed{8}", r"\boxed{7}"]], [["stop", "length"], ["stop", "stop"]]
    )
    rewards = read_verdicts(run_verify(batch))
    traces = read_traces(batch / "traces.parquet")
    assert [(r.problem_id, r.sample_index) for r in rewards] == [(t.problem_id, t.sample_index) for t in traces]
    assert rewards[0].verdicts == ["correct", "truncated"] and rewards[0].rewards == [1.0, 0.0]
    assert rewards[1].verdicts == ["incorrect", "correct"] and rewards[1].answers == ["8", "7"]
    assert [r.verdicts for r in rewards[::2]] == [rewards[0].verdicts] * 24


def test_a_broken_gold_is_unscored_with_a_null_reward(batch: Path) -> None:
    rewrite(batch / "problems.parquet", lambda row: row.update(answer=None))
    rewrite(batch / "traces.parquet", lambda row: None, keep_footer=False)
    answer_with(batch, [[r"\boxed{7}", ""]], [["stop", "stop"]])
    reward = read_verdicts(run_verify(batch, VerifyConfig(unscored_limit=1.0)))[0]
    assert reward.verdicts == ["unscored", "unscored"] and reward.rewards == [None, None]
    with pytest.raises(JobError, match="100.0% of the attempts could not be graded, the limit is 5.0%"):
        run_verify(batch, name="again.parquet")
    assert not (batch / "again.parquet").exists()


def test_problems_other_than_the_traces_were_sampled_from_are_refused(batch: Path, tmp_path: Path) -> None:
    write_problems("division", DataConfig(limit=12, split="test"), out=tmp_path / "problems.parquet", overwrite=True)
    with pytest.raises(UserError, match="was sampled from problems .*: verify against the file"):
        run_verify(batch)


def test_a_trace_of_an_unknown_problem_is_refused(batch: Path) -> None:
    rewrite(batch / "traces.parquet", lambda row: row.update(problem_id="nobody"), keep_footer=False)
    with pytest.raises(UserError, match="answers problem nobody, which .* lacks"):
        run_verify(batch)


def test_verifying_again_gives_the_same_bytes(batch: Path) -> None:
    assert file_sha256(run_verify(batch)) == file_sha256(batch / "rewards.parquet")


def math_files(folder: Path, rows: int = 40, question: str = "") -> None:
    """Traces and problems of mathematics made by hand, some of which only algebra can decide."""
    from score_cli.tables.parquet import PROBLEMS, write_table
    from score_cli.tables.provenance import Footer
    from tests.conftest import as_row
    from tests.test_recipes import traces_of

    golds = [r"\frac{1}{2}", r"2\sqrt{2}", "x^2+2x+1", "(3,4)"]
    said = ["0.5", r"\sqrt{8}", "(x+1)^2", "(3,5)", r"\int_0^1 2x\,dx"]
    problems = [
        Problem(problem_id=f"p{i}", task="math", question=question, answer=golds[i % 4], source="by hand")
        for i in range(rows)
    ]
    write_table(
        folder / "problems.parquet", PROBLEMS, [as_row(p) for p in problems], Footer(table="problems", stage="by hand")
    )
    traces_of([(f"p{i}", f"So $\\boxed{{{said[i % 5]}}}$.") for i in range(rows)], folder / "traces.parquet")


def test_an_unfinished_answer_scores_zero_unless_the_rules_are_off(tmp_path: Path) -> None:
    math_files(tmp_path, rows=3, question="How long is the diagonal?")
    lax = VerifyConfig(refuse_restatements=False, require_finished=False)
    strict, free = (read_verdicts(run_verify(tmp_path, config, name)) for config, name in ((None, "a"), (lax, "b")))
    assert strict[1].answers == free[1].answers == [r"\sqrt{8}"] * 2
    assert (strict[1].verdicts, strict[1].rewards) == (["unfinished"] * 2, [0.0] * 2)
    assert (free[1].verdicts, free[1].rewards) == (["correct"] * 2, [1.0] * 2)
    footers = [read_footer(tmp_path / name, REWARDS) for name in "ab"]
    settings = [footer.config["graders"]["math"] for footer in footers if footer is not None]
    assert [one["require_finished"] for one in settings] == ["true", "false"]


def test_the_number_of_workers_does_not_show(tmp_path: Path) -> None:
    math_files(tmp_path)
    digests = {
        file_sha256(run_verify(tmp_path, VerifyConfig(workers=n, math_timeout_seconds=60), f"{n}.parquet"))
        for n in (1, 3)
    }
    assert len(digests) == 1
    verdicts = [reward.verdicts[0] for reward in read_verdicts(tmp_path / "1.parquet")]
    # Row i says said[i % 5] to golds[i % 4]: 0.5 to 1/2 at 0, sqrt 8 at 1, (x+1)^2 at 2, (3,5) to (3,4) at 3.
    assert verdicts[:4] == ["correct", "correct", "correct", "incorrect"]
    assert verdicts[4] == "incorrect" and verdicts[20] == "correct"
