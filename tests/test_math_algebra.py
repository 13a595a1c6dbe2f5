"""The last judge: what only algebra can decide."""

import pytest

from score_cli.verification.math.algebra import same_by_algebra, try_gold
from score_cli.verification.math.answers import needs_algebra, same_answer

SAME = [
    (r"\int_0^1 2x\,dx", "1"),
    (r"\int_{0}^{\infty} e^{-x^2}\,dx", r"\frac{\sqrt{\pi}}{2}"),
    (r"\int \cos x\,dx", r"\sin x"),
    (r"\lim_{x\to 0}\frac{\sin x}{x}", "1"),
    (r"\lim_{n \to \infty}\left(1+\frac1n\right)^n", "e"),
    (r"\sum_{n=1}^{\infty}\frac{1}{n^2}", r"\frac{\pi^2}{6}"),
    (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),
    (r"\prod_{k=1}^{n} k", "n!"),
    (r"\left(\int_0^2 x\,dx,\ 3\right)", "(2, 3)"),
    (r"I = \int_0^1 2x\,dx", "1"),
]
DIFFERENT = [
    (r"\int_0^1 3x\,dx", "1"),
    (r"\lim_{x\to 0}\frac{1}{x}", "1"),
    (r"\sum_{n=1}^{\infty}\frac{1}{n}", "5"),
    (r"\sum_{k=0}^{\infty}\frac{1}{2^k}", "3"),
    (r"\int_0^1 x^{x}\,dx", "1"),
]


@pytest.mark.parametrize(("answer", "gold"), SAME)
def test_algebra_computes_what_digits_cannot(answer, gold):
    assert same_answer(answer, gold) is None and needs_algebra(answer, gold)
    assert same_by_algebra(answer, gold)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_algebra_believes_nothing_else(answer, gold):
    assert same_answer(answer, gold) is not True
    assert not same_by_algebra(answer, gold)


def test_only_integrals_limits_and_long_sums_are_asked_of_algebra():
    pairs = [("9^{9^{9^{9}}}", "5"), (r"\sqrt{2}", r"\sqrt{3}"), ("no idea", "5"), (r"\cot(10^{1000})", "5")]
    assert not any(needs_algebra(*pair) for pair in pairs)


def test_a_gold_answer_is_tried_alone():
    assert try_gold(r"\int_0^1 2x\,dx")
