"""The task of stories: chains told in English, splits apart, an author whose attempts are what he is said to write."""

import itertools
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from score_cli.cli import run_command
from score_cli.config import DialoguesConfig, VerifyConfig
from score_cli.tables.problems import read_problems
from score_cli.tables.records import Problem
from score_cli.tasks import stories
from score_cli.tasks.authors import author_dialogues
from score_cli.tasks.prompts import prompts_of
from score_cli.tasks.script import read_script
from score_cli.verification.grader import make_graders
from score_cli.verification.task_grader import Item
from tests.scripts import S2R

SPLITS = {"train": 3000, "validation": 200, "test": 400}
ALL = {split: stories.split_problems(split) for split in SPLITS}
ANSWER = re.compile(r"\\boxed\{(\d+)\}")


def boxed(text: str) -> str:
    found = ANSWER.findall(text)
    assert len(found) == 1 and text.endswith("}")
    return str(found[0])


def told(question: str) -> int:
    """What a story comes to, computed from its English alone."""
    sentences = re.findall(r"[^.?]+[.?]", question)
    value = int(re.search(r"\d+", sentences[0])[0])  # type: ignore[index]
    for sentence in sentences[1:-1]:
        number = int(re.search(r"\d+", sentence)[0])  # type: ignore[index]
        if re.search("buys|finds|gives (her|him)", sentence):
            value += number
        elif re.search("away|loses|sells", sentence):
            value -= number
        elif re.search("trades each|times as many", sentence):
            value *= number
        else:
            assert re.search("boxes and keeps one|shares all equally", sentence), sentence
            assert value % number == 0, "nothing is cut up"
            value //= number
    return value


@pytest.mark.parametrize("split", SPLITS)
def test_answers_follow_from_the_words_of_the_story(split: str) -> None:
    problems = ALL[split]
    assert len(problems) == SPLITS[split]
    for problem in problems:
        assert int(problem.answer or "") == told(problem.question), problem.question
        assert "{" not in problem.question


def test_splits_share_no_chain_and_no_question() -> None:
    """Whoever it is told of, a chain of numbers and operations is in one split alone, and there once."""
    chains = [problem.problem_id.split("-", 2)[2] for problems in ALL.values() for problem in problems]
    questions = [problem.question for problems in ALL.values() for problem in problems]
    assert len(set(chains)) == len(chains) == 3600 and len(set(questions)) == 3600


def test_levels_are_as_many_steps_as_they_say_and_evenly_spread() -> None:
    for problems in ALL.values():
        counts = Counter(problem.level for problem in problems)
        assert set(counts.values()) == {len(problems) // 4}
        for problem in problems:
            steps = len(re.findall(r"[-+*/]\d+", problem.problem_id.split("-", 2)[2]))
            assert steps == {"1": 1, "2": 2, "3": 2, "4": 3}[str(problem.level)]
            assert bool(re.search("[*/]", problem.problem_id)) == (problem.level in ("3", "4"))


def grade(problem: Problem, text: str) -> str:
    (graded,) = make_graders({"stories"}, VerifyConfig())["stories"].grade([Item(problem, text)])
    return graded.verdict


def lines(text: str) -> list[tuple[int, str, int, int]]:
    rows = [re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", line) for line in text.split("\n")[:-1]]
    return [(int(row[1]), row[2], int(row[3]), int(row[4])) for row in rows if row is not None]


def test_an_author_without_mistakes_writes_the_chain_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    perfect = stories.Habits._make([0.0] * len(stories.Habits._fields))
    monkeypatch.setattr(stories, "Habits", lambda: perfect)
    problem = Problem(problem_id="stories-4-30-27*2+6", task="stories", question="", answer="12", source="x")
    author = stories.Author(problem, random.Random(0), skilled=0.0)
    assert author.guess() == "30 - 27 = 3\n3 * 2 = 6\n6 + 6 = 12\n\\boxed{12}"
    assert author.is_right and grade(problem, author.text) == "correct"


# Of 3,000 dialogues without skill, four standard deviations of a share of a half are 0.037.
@pytest.mark.parametrize(("skilled", "gain"), [(0.0, -0.06), (0.1, -0.01), (1.0, 0.37)])
def test_attempts_are_right_in_half_and_skill_is_what_mends_them(skilled: float, gain: float) -> None:
    dialogues = list(author_dialogues(ALL["train"], DialoguesConfig(size=3000, seed=2, skilled=skilled)))
    right = [[boxed(turn.text) == row.problem.answer for turn in row.turns] for row in dialogues]
    first, second = (sum(each[turn] for each in right) / 3000 for turn in (0, 1))
    assert first == pytest.approx(0.57, abs=0.037)
    assert second - first == pytest.approx(gain, abs=0.03)


def test_a_wrong_attempt_goes_wrong_in_a_step_and_right_after_it() -> None:
    """Slips by a few or by ten, an operation misread, a sentence left out; each line begins with what the last gave."""
    kinds: Counter[str] = Counter()
    value_of = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a // b}
    for row in author_dialogues(ALL["train"], DialoguesConfig(size=1000)):
        text, chain = row.turns[0].text, stories.chain_of(row.problem)
        written = lines(text)
        assert boxed(text) == str(written[-1][3]) and written[0][0] == chain.start
        assert all(before[3] == after[0] for before, after in itertools.pairwise(written))
        kinds["skipped"] += len(written) < len(chain.steps)
        for value, sign, number, result in written:
            off = result - max(0, value_of[sign](value, number))
            assert abs(off) in (0, 1, 2, 10) or result == 0
            kinds["slipped"] += off != 0
        if len(written) == len(chain.steps):
            kinds["misread"] += [line[1] for line in written] != [step.operation for step in chain.steps]
    assert min(kinds.values()) > 50 and set(kinds) == {"skipped", "slipped", "misread"}


def test_the_author_judges_where_a_script_asks_him_to() -> None:
    script = read_script(S2R)
    for row in author_dialogues(ALL["train"], DialoguesConfig(size=200, script=script, true_claims=1.0)):
        for solve, verdict in zip(row.turns[::2], row.turns[1::2], strict=True):
            assert (verdict.text == "right") == (boxed(solve.text) == row.problem.answer)


def test_the_commands_write_problems_and_dialogues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems, out = str(tmp_path / "p.parquet"), str(tmp_path / "d.jsonl")
    assert run_command(["data", "stories", "--split", "test", "--limit", "8", "--out", problems]) == 0
    assert [p.problem_id for p in read_problems(tmp_path / "p.parquet")] == [p.problem_id for p in ALL["test"][:8]]
    easy = ["data", "stories", "--split", "test", "--levels", "1,2", "--out", str(tmp_path / "easy.parquet")]
    assert run_command(easy) == 0
    expected = [p.problem_id for p in ALL["test"] if p.problem_id.startswith(("stories-1-", "stories-2-"))]
    assert [p.problem_id for p in read_problems(tmp_path / "easy.parquet")] == expected and len(expected) == 200
    assert run_command(["dialogues", "--problems", problems, "--size", "10", "--out", out]) == 0
    assert "10 dialogues" in capsys.readouterr().err
    assert run_command(["data", "stories", "--split", "dev", "--out", str(tmp_path / "x")]) == 2
    assert "stories has no split dev, expected one of train, validation, test" in capsys.readouterr().err
    for task, levels in (("stories", "2,5"), ("division", "1")):
        assert run_command(["data", task, "--levels", levels, "--out", str(tmp_path / "x")]) == 2
        assert f"levels is {levels}, expected levels of stories, 1 to 4, with commas" in capsys.readouterr().err


def test_a_problem_is_asked_for_a_box() -> None:
    asked = prompts_of("stories").first_turn(ALL["train"][0])
    assert asked.startswith(ALL["train"][0].question) and "\\boxed{answer}" in asked
