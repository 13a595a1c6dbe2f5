"""The two rules for an answer that equals the gold answer: it restates nothing and leaves nothing to compute."""

import time

import pytest

from score_cli.tables.records import Problem
from score_cli.tables.schemas import CORRECT, UNFINISHED
from score_cli.verification.math.grader import MathGrader
from score_cli.verification.math.restatement import keeps_rules
from score_cli.verification.task_grader import Item

ANY = "What is the value that was asked for?"
# Question, gold, answer: equal to the gold answer, but not an answer.
UNFINISHED_ANSWERS = [
    # the question itself
    (r"Compute $48 \div 6$.", "8", r"48 \div 6"),
    ("How much is 17 + 25?", "42", "17+25"),
    ("A shop gives 3/8 of its profit away. Write that share as a decimal.", "0.375", r"\frac{3}{8}"),
    (r"Write $0.6$ as a fraction in lowest terms.", r"\frac35", "0.6"),
    (r"Simplify $\frac{x^2-9}{x-3}$.", "x+3", r"\frac{x^2-9}{x-3}"),
    (r"Factor $a^2 - 4b^2$.", "(a-2b)(a+2b)", "a^2-4b^2"),
    (r"Let $f(t) = (t+1)(t-4)$. Expand $f(t)$.", "t^2-3t-4", "(t+1)(t-4)"),
    (r"Find $\log_3 81$.", "4", r"\log_3 81"),
    (r"Find the point \((2^3, \sqrt{16})\) on the grid.", "(8,4)", r"(2^3, \sqrt{16})"),
    (r"What is $\left(\frac12\right)^3$?", r"\frac18", r"(\frac{1}{2})^3"),
    (r"Evaluate $\sum_{k=1}^{5} k^2$.", "55", r"\sum_{k=1}^5 k^2"),
    ("Of 150 bulbs 30% fail, and 15 more are lost. How many are left after 90 are sold?", "30", r"30\%"),
    # numbers: a sum, a product, a power, a quotient
    (ANY, "42", "40+2"),
    (ANY, "42", r"6\cdot 7"),
    (ANY, "42", "(50-8)"),
    (ANY, "42", "84/2"),
    (ANY, "42", r"\frac{42}{1}"),
    (ANY, "64", "2^6"),
    (ANY, "64", "8^2"),
    (ANY, "100000", "10^5"),
    (ANY, r"\frac{3}{4}", r"\frac{9}{12}"),
    (ANY, r"\frac{3}{4}", r"\frac14+\frac12"),
    (ANY, r"\frac{3}{4}", r"1-\frac14"),
    (ANY, r"\frac{3}{4}", r"\frac{0.75}{1}"),
    (ANY, r"\frac{3}{4}", r"3 \cdot \frac14"),
    (ANY, "0.4", r"\frac{4}{10}"),
    (ANY, "-7", "3-10"),
    (ANY, "x=9", "x=3^2"),
    (ANY, "9", "x = 81/9"),
    (ANY, "24 cm", r"4\cdot 6\text{ cm}"),
    (ANY, r"60\%", r"\frac{30}{50}"),
    # counting, steps, functions
    (ANY, "720", "6!"),
    (ANY, "28", r"\binom{8}{2}"),
    (ANY, "28", r"\frac{8!}{2!6!}"),
    (ANY, "4", r"\lceil 3.2 \rceil"),
    (ANY, "8", r"\gcd(24,16)"),
    (ANY, "5", r"\max(2,5)"),
    (ANY, "7", "|3-10|"),
    (ANY, "2", r"\log_{10} 100"),
    (ANY, "1", r"\ln e"),
    (ANY, r"\frac12", r"\cos 60^\circ"),
    (ANY, r"\frac{\pi}{4}", r"\arctan 1"),
    (ANY, "-2", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
    # radicals
    (ANY, r"3\sqrt2", r"\sqrt{18}"),
    (ANY, r"2\sqrt[3]{2}", r"\sqrt[3]{16}"),
    (ANY, "5", r"\sqrt{25}"),
    (ANY, r"\sqrt6", r"\sqrt2\cdot\sqrt3"),
    (ANY, r"3\sqrt5", r"\sqrt5+2\sqrt5"),
    (ANY, r"\frac{\sqrt3}{2}", r"\frac{2\sqrt3}{4}"),
    (ANY, r"2+\sqrt3", r"\frac{4+2\sqrt3}{2}"),
    (ANY, r"3+2\sqrt2", r"(1+\sqrt2)^2"),
    (ANY, r"16\pi", r"4^2\pi"),
    (ANY, r"12\pi", r"2\cdot 6\pi"),
    # complex numbers
    (ANY, "-4", "(1+i)^4"),
    (ANY, "-1", "i^2"),
    (ANY, r"\frac{3-i}{10}", r"\frac{1}{3+i}"),
    # polynomials
    (ANY, "7x-1", "4x+3x-1"),
    (ANY, "x^2-x-12", "x^2-4x+3x-12"),
    (ANY, "x-5", r"\frac{x^2-25}{x+5}"),
    ("Factor $4x^2-16$ completely.", "4(x-2)(x+2)", "4(x^2-4)"),
    ("Factor $4x^2-16$ completely.", "4(x-2)(x+2)", "(2x-4)(2x+4)"),
    ("Factor completely: $y^3-9y$.", "y(y-3)(y+3)", "y(y^2-9)"),
    ("Factor the polynomial.", "(x-1)(x-2)", "x(x-3)+2"),
    ("Expand the product.", "x^2+3x+2", "(x+1)(x+2)"),
    ("Expand.", "10x-15", "5(2x-3)"),
    (r"Complete the square.", "(x-3)^2+1", "x^2-6x+10"),
    # a form that is asked for by name
    ("Write the quotient of 7 and 8 as a decimal.", "0.875", r"\frac78"),
    ("Write the product as a power of 3.", "3^7", "2187"),
    (r"Rationalize the denominator: what is one over the root of three?", r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt3}"),
    # parts of larger answers
    (ANY, "(1,5)", "(1,2+3)"),
    (ANY, r"\{2,4\}", r"\{2,2^2\}"),
    (ANY, "[0,2]", r"[0,\sqrt4]"),
    (ANY, "x<4", r"x<\frac{8}{2}"),
    (ANY, r"(-\infty,3)\cup(3,\infty)", r"(-\infty,1+2)\cup(3,\infty)"),
    (ANY, "2, 6", "2, 3!"),
    (ANY, r"\begin{pmatrix}1\\6\end{pmatrix}", r"\begin{pmatrix}1\\2\cdot3\end{pmatrix}"),
]
# Question, gold, answer: as finished as the gold answer, if not the same.
FINISHED_ANSWERS = [
    (ANY, "42", "42.0"),
    (ANY, "42", "40+2=42"),
    (ANY, "42", "42=6*7"),
    (ANY, "42", "x = 40+2 = 42"),
    (ANY, "1,000,000", "1000000"),
    (ANY, "1500", r"1.5\times 10^3"),
    (ANY, "0.00032", r"3.2\cdot 10^{-4}"),
    (ANY, "5000000", "5 million"),
    (ANY, r"\frac34", "0.75"),
    (ANY, r"\frac34", r"75\%"),
    (ANY, "0.75", "3/4"),
    (ANY, r"\frac74", r"1\frac34"),
    (ANY, r"1\frac34", "7/4"),
    (ANY, r"-\frac34", r"\frac{-3}{4}"),
    (ANY, r"-\frac34", r"\frac{3}{-4}"),
    (ANY, r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt2}"),
    (ANY, r"\frac{3\pi}{2}", r"3\cdot\frac{\pi}{2}"),
    (ANY, r"\frac{3\pi}{2}", r"1.5\pi"),
    (ANY, r"\sqrt2", "2^{1/2}"),
    (ANY, r"11\sqrt2", r"11\cdot 2^{1/2}"),
    (ANY, r"1+\sqrt5", r"\sqrt5+1"),
    (ANY, r"\frac{1+\sqrt5}{2}", r"\frac12+\frac{\sqrt5}{2}"),
    (ANY, r"2\pm\sqrt3", r"2+\sqrt3, 2-\sqrt3"),
    (ANY, "3+4i", "4i+3"),
    (ANY, r"\log_2 5", r"\frac{\ln 5}{\ln 2}"),
    (ANY, r"\sqrt{x^2+1}", r"\sqrt{1+x^2}"),
    (ANY, "|x|", r"\sqrt{x^2}"),
    (ANY, "2^{10}", "2^{10}"),
    (ANY, "2^{10}", "1024"),
    (ANY, r"2^3\cdot 3^2", r"3^2 \cdot 2^3"),
    (ANY, r"\binom{9}{4}", "126"),
    (ANY, r"\binom{9}{4}", r"\binom{9}{5}"),
    (ANY, r"\frac{n(n+1)}{2}", r"\frac{n^2+n}{2}"),
    (ANY, "x^2-3x", "x(x-3)"),
    (ANY, "8a-2", "2(4a-1)"),
    (ANY, "y=2x+3", "2x-y+3=0"),
    (ANY, "10:30", "10:30 AM"),
    (ANY, "12 cm", "12"),
    (ANY, r"90^\circ", r"\frac{\pi}{2}"),
    (ANY, "(3,4)", "(3.0, 4)"),
    (ANY, r"\begin{pmatrix}\frac15\\\frac25\end{pmatrix}", r"\frac15\begin{pmatrix}1\\2\end{pmatrix}"),
    ("Factor $x^2-5x+6$.", "(x-2)(x-3)", "(x-3)(x-2)"),
    ("Factor $4x^2-16$.", "4(x-2)(x+2)", "4(x+2)(x-2)"),
    ("How many factors has 12?", "6", "6.0"),
    # words of the question that are the answer all the same
    (r"Which of $\frac{2}{3}$ and $\frac{3}{5}$ is larger?", r"\frac23", r"\frac{2}{3}"),
    ("The box holds 25 pens. How many pens does it hold?", "25", "25"),
    ("He ran 5.0 km. How far did he run?", "5", "5.0"),
    ("She paid 40% of it. What percentage did she pay?", "40", r"40\%"),
    (r"If $y = 12$, what is $y$?", "12", "y=12"),
    ("She paid for 30 of 50 eggs at once. What share is that?", "60", r"60\%"),
    (r"Is $3^5$ or $5^3$ larger?", "3^5", "3^{5}"),
    (r"\textbf{(A)}\ 3 \qquad \textbf{(B)}\ 4. Which one?", "B", r"\textbf{(B)}\ 4"),
    # nothing is known of what was asked
    ("", "42", "40+2"),
    ("?", "3\\sqrt2", r"\sqrt{18}"),
]


@pytest.fixture(scope="module")
def grader():
    with MathGrader() as grader:
        yield grader


def verdict(grader: MathGrader, question: str, gold: str, answer: str) -> str:
    problem = Problem(problem_id="p", task="math", question=question, answer=gold, source="test")
    return grader.grade([Item(problem, f"The final answer is ${answer}$. I hope it is correct.")])[0].verdict


@pytest.mark.parametrize(("question", "gold", "answer"), UNFINISHED_ANSWERS)
def test_what_is_still_to_be_computed_is_unfinished(grader, question, gold, answer):
    assert verdict(grader, question, gold, answer) == UNFINISHED


@pytest.mark.parametrize(("question", "gold", "answer"), FINISHED_ANSWERS)
def test_a_final_answer_may_be_written_in_many_ways(grader, question, gold, answer):
    assert verdict(grader, question, gold, answer) == CORRECT


@pytest.mark.parametrize(("question", "gold", "answer"), UNFINISHED_ANSWERS)
def test_without_the_rules_an_equal_answer_is_correct(question, gold, answer):
    with MathGrader(refuse_restatements=False, require_finished=False) as grader:
        assert verdict(grader, question, gold, answer) == CORRECT


def test_an_equal_answer_of_any_length_is_judged_at_once():
    primes = [1_099_511_627_689, 1_099_511_627_609, 1_099_511_627_581, 1_099_511_627_573]
    roots = [f"\\sqrt{{{prime - 2 * index}}}" for prime in primes for index in range(10)]
    answers = ["5" + "".join(f"+{root}-{root}" for root in roots), "5" + "+0" * 500, "5" + r"\cdot 1" * 100]
    for answer in answers:
        begin = time.process_time()
        assert not keeps_rules(answer, "5", ANY, restatements=False, unfinished=False)
        assert time.process_time() - begin < 0.05


def test_a_long_question_is_read_at_once():
    question = (
        "Simplify $" + "+".join(f"\\frac{{{k}}}{{x+{k}}}" for k in range(60)) + "$ where " + "1 + 2 - 3.5 * 4, " * 2000
    )
    begin = time.process_time()
    assert keeps_rules("42.0", "42", question, restatements=False, unfinished=False)
    assert time.process_time() - begin < 0.5


def test_each_rule_stands_alone():
    fraction = (r"Write $\frac{3}{20}$ in another way.", "0.15", r"\frac{3}{20}")
    total = (ANY, "42", "40+2")
    for restatements, finished in ((True, False), (False, True)):
        with MathGrader(refuse_restatements=restatements, require_finished=finished) as grader:
            assert (verdict(grader, *fraction) == UNFINISHED) is restatements
            assert (verdict(grader, *total) == UNFINISHED) is finished
            footer = grader.describe()
            assert footer["refuse_restatements"] == str(restatements).lower()
            assert footer["require_finished"] == str(finished).lower()
