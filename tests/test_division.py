"""The built-in task: its problems, its tokenizer and the imperfect author of its corpus."""

import hashlib
import random
import re

import pytest

from score_cli.tasks import division
from score_cli.tasks.division_tokenizer import make_tokenizer

ATTEMPT = re.compile(r"\\boxed\{(\d\d)\}: product (\d{3}), remainder ([+-]\d\d)")
DRAWS = 20_000


def test_problems_are_all_divisions_with_a_two_digit_quotient() -> None:
    expected = {(c, a): c // a for c in range(100, 1000) for a in range(2, 10) if 10 <= c // a <= 99}
    found = {division.operands(p): int(str(p.answer)) for p in division.problems()}
    assert found == expected and len(found) == 3600
    assert division.problems()[0].question == "Divide 100 by 2. "


def test_splits_share_no_problem_and_never_change() -> None:
    parts = {split: division.split_problems(split) for split in ("train", "validation", "test")}
    assert [len(part) for part in parts.values()] == [3000, 200, 400]
    ids = [problem.problem_id for part in parts.values() for problem in part]
    assert len(set(ids)) == 3600
    by_hash = sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert [problem.problem_id for problem in parts["test"]] == by_hash[:400]


def test_decoding_is_concatenation() -> None:
    tokenizer = make_tokenizer()
    rng = random.Random(0)
    assert len(tokenizer) == 23
    for problem in division.split_problems("validation")[:50]:
        transcript = division.draw_transcript(problem, rng, division.Corpus())
        for text in transcript.turns() + list(transcript.attempts):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.decode(ids) == text
            assert tokenizer.unk_token_id not in ids


def author(**behaviour: float) -> list[tuple[division.Transcript, int, int, int]]:
    """Transcripts with the true quotient and both quotients the author wrote."""
    rng = random.Random(1)
    corpus = division.Corpus(**behaviour)
    problems = division.split_problems("train")
    drawn = []
    for _ in range(DRAWS):
        problem = rng.choice(problems)
        transcript = division.draw_transcript(problem, rng, corpus)
        quotients = [int(ATTEMPT.fullmatch(text)[1]) for text in transcript.attempts]  # type: ignore[index]
        drawn.append((transcript, int(str(problem.answer)), *quotients))
    return drawn


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


def test_the_first_guess_is_right_as_often_as_said() -> None:
    drawn = author(rounds_up=0.0)
    assert share([first == truth for _, truth, first, _ in drawn]) == pytest.approx(0.65, abs=0.015)
    assert {abs(first - truth) for _, truth, first, _ in drawn} == {0, 1, 2, 3, 10}


def test_large_remainders_are_rounded_up_as_often_as_said() -> None:
    drawn = author(first_right=1.0)
    large, small = [], []
    for transcript, truth, first, _ in drawn:
        dividend, divisor = map(int, re.findall(r"\d+", transcript.question))
        (large if 3 * (dividend - truth * divisor) >= 2 * divisor and truth < 99 else small).append(first == truth + 1)
    assert share(large) == pytest.approx(0.60, abs=0.03)
    assert share(small) == 0.0


def test_fix_copies_and_check_revises() -> None:
    """With <fix> the author changes 30% of wrongs and 25% of rights; with <check> 90% and 3%, mostly to the truth."""
    drawn = author()
    for words, wrong, right in (("<fix>", 0.30, 0.25), ("<check>", 0.90, 0.03)):
        own = [row for row in drawn if row[0].instructions == (words,)]
        changed_wrong = [t.attempts[1] != t.attempts[0] for t, truth, first, _ in own if first != truth]
        changed_right = [t.attempts[1] != t.attempts[0] for t, truth, first, _ in own if first == truth]
        # A redraw may give the same quotient again, which the bounds allow for.
        assert wrong - 0.05 < share(changed_wrong) < wrong + 0.02
        assert right - 0.15 < share(changed_right) < right + 0.02
    competent = [row for row in drawn if row[0].instructions == ("<check>",)]
    assert share([second == truth for _, truth, first, second in competent if first != truth]) > 0.78
    assert share([t.instructions == ("<check>",) for t, *_ in drawn]) == pytest.approx(0.35, abs=0.015)


def test_product_and_remainder_are_worked_out_but_for_slips() -> None:
    products, remainders = [], []
    for transcript, *_ in author():
        dividend, divisor = map(int, re.findall(r"\d+", transcript.question))
        quotient, product, remainder = map(int, ATTEMPT.fullmatch(transcript.attempts[0]).groups())  # type: ignore[union-attr]
        products.append(product == quotient * divisor)
        remainders.append(remainder == dividend - product)
    assert share(products) == pytest.approx(0.98, abs=0.005)
    assert share(remainders) == pytest.approx(0.98, abs=0.007)


def test_without_the_latent_share_nobody_says_check() -> None:
    assert {t.instructions for t, *_ in author(latent_share=0.0)} == {("<fix>",)}


def test_the_careful_author_never_rounds_up_and_has_no_skill_that_the_other_lacks() -> None:
    """Its first guesses are right with 0.65 whatever the remainder, and half of its revisions are skilled."""
    careful = division.Corpus().careful()
    drawn = author(**careful._asdict())
    assert share([first == truth for _, truth, first, _ in drawn]) == pytest.approx(0.65, abs=0.015)
    assert share([t.instructions == ("<check>",) for t, *_ in drawn]) == pytest.approx(0.5, abs=0.015)
    assert division.Corpus(latent_share=0.0).careful().latent_share == 0.0
    assert division.Corpus(latent_share=0.8).careful().latent_share == 0.8


def test_a_transcript_says_whether_its_first_guess_is_right() -> None:
    assert all(t.right_first == (first == truth) for t, truth, first, _ in author())


def test_the_quotient_stands_where_it_is_said_to() -> None:
    tokens = make_tokenizer().encode("\\boxed{53}: product 265, remainder -01", add_special_tokens=False)
    assert make_tokenizer().decode(tokens[division.QUOTIENT_TOKENS]) == "53"


def test_each_further_attempt_revises_the_one_before() -> None:
    """Under <fix>, 30% of wrong third attempts are drawn again at the fourth, and 25% of right ones."""
    rng, problems = random.Random(1), division.split_problems("train")
    changed: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(DRAWS):
        problem = rng.choice(problems)
        transcript = division.draw_transcript(problem, rng, division.Corpus(slip=0.0), 4)
        assert len(transcript.attempts) == 4 and len(transcript.instructions) == 3
        if transcript.instructions[2] == "<fix>":
            third, fourth = transcript.attempts[2:]
            changed[f"{{{problem.answer}}}" in third].append(fourth != third)
    # A redraw is right with 0.45, else one of eight neighbours: it gives a wrong quotient again in 0.55/8 of the cases.
    assert share(changed[False]) == pytest.approx(0.30 * (1 - 0.55 / 8), abs=0.02)
    assert share(changed[True]) == pytest.approx(0.25 * 0.55, abs=0.015)
