"""Real answers against real golds, each decided by hand; every pair is graded in both wrappings of an answer."""

import pytest

from score_cli.tables.records import Problem
from score_cli.tables.schemas import CORRECT
from score_cli.verification.task_grader import Item
from score_cli.verification.math.grader import MathGrader

SAME = [
    # whole numbers and digit groups
    ("42.", "42"),
    ("042", "42"),
    (r"\$42", "42"),
    ("14\\,916", "14916"),
    ("14{,}916", "14916"),
    ("14 916", "14,916"),
    (r"1,\!234", "1234"),
    ("−7", "-7"),
    ("-7.0", "-7"),
    ("２５", "25"),
    ("1e6", "1000000"),
    (r"10^6", "1,000,000"),
    (r"1.5 \times 10^{3}", "1500"),
    (r"6.02\cdot10^{23}", r"6.02 \times 10^{23}"),
    # fractions, decimals, mixed numbers
    (r"\tfrac34", "0.75"),
    ("3/4", r"\frac{3}{4}"),
    (r"\frac{-3}{4}", r"-\frac34"),
    (r"-\dfrac{3}{4}", r"\frac{3}{-4}"),
    (r"1\frac{3}{4}", r"\frac{7}{4}"),
    ("1 3/4", "1.75"),
    ("½", "0.5"),
    (r"0.\overline{3}", r"\frac13"),
    (r"0.1\overline{6}", r"\frac{1}{6}"),
    (r"0.\overline{142857}", "1/7"),
    # roots, powers, logarithms, trigonometry
    (r"2^{0.5}", r"\sqrt{2}"),
    (r"2^{1/2}", r"\sqrt2"),
    ("√2", r"\sqrt{2}"),
    ("2√3", r"2\sqrt{3}"),
    ("sqrt(12)", r"2\sqrt3"),
    (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"\sqrt[3]{54}", r"3\sqrt[3]{2}"),
    ("x²+1", "x^2+1"),
    ("x**2+1", "x^2+1"),
    (r"2^{10}", "1024"),
    (r"\log_2 8", "3"),
    (r"\ln(e^2)", "2"),
    (r"\sin\frac{\pi}{6}", r"\frac12"),
    (r"\sin^2 x + \cos^2 x", "1"),
    (r"\arctan 1", r"\frac{\pi}{4}"),
    (r"\tan^{-1}(1)", r"\pi/4"),
    (r"e^{i\pi}", "-1"),
    (r"\frac{1+i}{1-i}", "i"),
    (r"5!", "120"),
    (r"\binom{5}{2}", "10"),
    (r"{5 \choose 2}", "10"),
    # degrees, percent, money, units
    ("90", r"90^\circ"),
    (r"90^{\circ}", "90"),
    ("90°", r"90^\circ"),
    (r"90\text{ degrees}", r"90^\circ"),
    (r"\frac{\pi}{2}", r"90^\circ"),
    ("50%", r"50\%"),
    ("0.5", r"50\%"),
    (r"\$18.90", "18.90"),
    ("18.9 dollars", r"\$18.90"),
    (r"5\text{ cm}", "5"),
    (r"5\,\mathrm{cm}", r"5 \text{ centimeters}"),
    ("12 square units", "12"),
    (r"12\text{ cm}^2", r"12 \text{ square centimeters}"),
    (r"60\text{ miles per hour}", "60"),
    ("7 apples", "7"),
    # names before the value
    (r"x = 3", "3"),
    ("3", "x=3"),
    (r"f(x)=2x+1", "2x+1"),
    (r"\angle ABC = 40^\circ", "40"),
    (r"AB = 5", "5"),
    (r"f^{-1}(x)=\frac{x-1}{2}", r"\frac{x-1}{2}"),
    (r"\frac{dy}{dx}=2x", "2x"),
    # polynomials and symbols
    ("(x+1)^2", "x^2+2x+1"),
    ("x(x-3)", "x^2-3x"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    ("2ab", "2ba"),
    (r"n(n+1)/2", r"\frac{n^2+n}{2}"),
    (r"3^{n+1}", r"3\cdot 3^n"),
    (r"\frac{a}{b}+\frac{c}{d}", r"\frac{ad+bc}{bd}"),
    ("a_{1}+a_{2}", "a_2+a_1"),
    # equations
    ("y=2x+3", "2x-y+3=0"),
    ("2y = 4x + 6", "y=2x+3"),
    ("x^2+y^2-1=0", "x^2+y^2=1"),
    # lists and sets
    ("3, 1, 2", "1,2,3"),
    ("1 and 2", "1, 2"),
    (r"\{2,1\}", r"\{1,2\}"),
    (r"x=1 \text{ or } x=2", "1,2"),
    (r"\pm 2", "2,-2"),
    (r"x=\pm2", "-2, 2"),
    (r"\text{A, C, E}", "A, C, E"),
    ("A, C, and E", r"\text{A, C, E}"),
    # tuples and vectors
    ("(1,2)", r"\left( 1, 2 \right)"),
    ("(0.5, 2)", r"(\frac12,2)"),
    ("x=1, y=2", "(1,2)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"),
    (r"\langle 1,2,3\rangle", "(1,2,3)"),
    (r"(3, \frac{\pi}{2})", "(3,π/2)"),
    # intervals, inequalities, set builders
    ("x<3", r"(-\infty,3)"),
    (r"-1 \le x < 2", "[-1,2)"),
    ("2 > x >= -1", "[-1,2)"),
    (r"x\in[-1,2)", "[-1,2)"),
    (r"\{x \mid -1 \le x < 2\}", "[-1,2)"),
    (r"\{x : x > 0\}", r"(0,\infty)"),
    (r"\{x \in \mathbb{R} \mid x > 0\}", r"(0,\infty)"),
    (r"(-\infty,1)\cup(3,\infty)", r"x<1 \text{ or } x>3"),
    (r"(3,\infty)\cup(-\infty,1)", r"(-\infty,1)\cup(3,\infty)"),
    (r"x \neq 2", r"(-\infty,2)\cup(2,\infty)"),
    ("[0,∞)", r"[0,\infty)"),
    ("(-∞, 0) ∪ (0, ∞)", r"(-\infty,0)\cup(0,\infty)"),
    (r"\mathbb{R}", r"(-\infty,\infty)"),
    (r"\mathbb{R}\setminus\{2\}", r"(-\infty,2)\cup(2,\infty)"),
    (r"\{x | x<3\} - \{-6\}", r"(-\infty,-6)\cup(-6,3)"),
    (r"x \geqslant 5", r"x\ge5"),
    (r"3x<9", "x<3"),
    # words, choices, times, dates
    ("Yes", r"\text{yes}"),
    ("Tuesday", r"\text{Tuesday}"),
    (r"\textbf{(C)}", "C"),
    ("(C)", r"\text{C}"),
    ("C", "(C)"),
    ("c", r"\text{(C)}"),
    (r"\text{no solution}", "No solution"),
    (r"\text{no solutions}", "no solution"),
    ("3:45 pm", r"3{:}45 \text{ p.m.}"),
    ("3:45 PM", r"3:45\text{ p.m.}"),
    ("March 5, 2020", r"\text{March 5, 2020}"),
    ("5 March", "March 5"),
    ("May 4", r"\text{May 4}"),
    (r"7{:}30\text{ AM}", "7:30 a.m."),
    ("12:00", "12{:}00"),
    (r"\text{March 5th}", "March 5"),
    ("3:2", r"3 : 2"),
    ("6:4", "3:2"),
    (r"\frac{3}{2}", "3:2"),
    # numerals in another base
    ("(204)_5", "204_5"),
    ("204_5", "204_{5}"),
    (r"204_{\text{five}}", "204_5"),
    # beyond the project's own grammar
    (r"\int_0^1 2x\,dx", "1"),
    (r"\sum_{k=1}^{10} k", "55"),
    (r"\frac{1}{2} \approx 0.5", r"\frac12"),
    (r"|x-2|", r"|2-x|"),
    (r"\lfloor 3.7 \rfloor", "3"),
    (r"\max(2,3)", "3"),
    ("0", r"\begin{vmatrix}1&2\\2&4\end{vmatrix}"),
]

DIFFERENT = [
    ("41", "42"),
    ("4 2", "42"),
    ("0.7500001", r"\frac34"),
    ("0.333333", r"\frac13"),
    ("0.3333333333333333", r"\frac13"),
    ("3.14159265358979", r"\pi"),
    (r"\frac{22}{7}", r"\pi"),
    ("1.41421356237", r"\sqrt2"),
    ("204_6", "204_5"),
    ("204", "204_5"),
    ("3 or maybe 4", "3"),
    ("3 or 4", "3"),
    ("either 3 or 4", "4"),
    ("not 5", "5"),
    (r"\text{not } 5", "5"),
    (r"\neq 5", "5"),
    ("at least 5", "5"),
    ("5 or more", "5"),
    ("more than 5", "5"),
    ("about 5", "5"),
    ("5?", "5"),
    ("5 5", "5"),
    ("5, 5, 6", "5"),
    (r"\csname 5\endcsname", "5"),
    (r"\def\x{5}\x", "5"),
    (r"{5}_{6}", "5"),
    ("5_6", "5"),
    (r"5\phantom{1}", "5"),
    (r"\phantom{4}5", "45"),
    ("1.234", "1,234"),
    ("1,234", "1.234"),
    ("1,23", "123"),
    ("12,34", "1234"),
    ("(1,2)", "(2,1)"),
    ("(1,2]", "[1,2]"),
    ("(1,2)", "[1,2]"),
    ("[1,2]", "(1,2)"),
    ("1 < x \\le 2", "(1,2)"),
    ("x>3", "x<3"),
    ("x \\ge 3", "x>3"),
    ("y<3", "x<3"),
    ("x=1,y=2", "x=2,y=1"),
    ("y=5", "x=5"),
    ("-x", "x"),
    ("x", "|x|"),
    (r"\sqrt{x^2}", "x"),
    ("2x+y=3", "x+2y=3"),
    ("x^2", "x^3"),
    ("5 km", "5 m"),
    (r"5\text{ cm}^2", r"5\text{ cm}"),
    (r"0.25\%", "0.25"),
    ("33%", r"\frac13"),
    (r"60^\circ", r"\frac{\pi}{6}"),
    (r"\pi", "180"),
    ("Yes", "No"),
    ("Tuesday", "Thursday"),
    ("B", "(C)"),
    (r"\text{(A) or (C)}", "C"),
    ("A, C", "A, C, E"),
    ("3:45 am", "3:45 pm"),
    ("1:15 pm", "3:45 pm"),
    (r"5\%", "5 dollars"),
    ("5 6", "56"),
    ("n", "N"),
    ("1e-7", "0"),
    (r"5+10^{-400}", "5"),
    (r"\cot(10^{1000})", "5"),
    (r"\{5\}-\{3\}", "2"),
    ("3:54 pm", "3:45 pm"),
    ("March 6", "March 5"),
    ("3:2", "2:3"),
    (r"\infty", r"-\infty"),
    (r"\frac10", r"\infty"),
    (r"\frac{0}{0}", "0"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    (r"\{1,2,3\}", r"\{1,2\}"),
    ("2", r"\pm2"),
    ("-2,2,3", r"\pm2"),
    (r"e^{\pi\sqrt{163}}", "262537412640768744"),
    (r"\log_{10} 2", r"\ln 2"),
    (r"\sin x", r"\cos x"),
    ("f(y)", "f(x)"),
    ("5i", "5"),
    ("i", "1"),
    (r"\int_0^1 3x\,dx", "1"),
    ("True", "5"),
    ("None", "5"),
    ("the gold answer", "5"),
    ("", "5"),
    ("\\boxed{}", "5"),
    ("5\x00", "5"),
    ("5 = 6", "6"),
    (r"x \in \{5, 6\}", "5"),
]


@pytest.fixture(scope="module")
def grader():
    with MathGrader(workers=2) as grader:
        yield grader


def wrapped(answers: list[tuple[str, str]]) -> list[Item]:
    """Each pair twice: at the end of a response as the paper asks for it, and in a box."""
    items = []
    for answer, gold in answers:
        problem = Problem(problem_id="p", task="math", question="?", answer=gold, source="test")
        items.append(Item(problem, f"Let us see.\nFinal Answer: The final answer is ${answer}$. I hope it is correct."))
        items.append(Item(problem, f"Therefore $\\boxed{{{answer}}}$."))
    return items


def judged(grader: MathGrader, answers: list[tuple[str, str]]) -> list[tuple[str, str, tuple[bool, bool]]]:
    verdicts = [graded.verdict == CORRECT for graded in grader.grade(wrapped(answers))]
    return [(*pair, said) for pair, said in zip(answers, zip(verdicts[::2], verdicts[1::2], strict=True), strict=True)]


def test_the_same_answer_written_otherwise_is_correct(grader):
    assert [row for row in judged(grader, SAME) if row[2] != (True, True)] == []


def test_another_answer_is_never_correct(grader):
    assert [row for row in judged(grader, DIFFERENT) if row[2] != (False, False)] == []


def test_every_gold_answers_itself(grader):
    golds = [(gold, gold) for _, gold in SAME + DIFFERENT]
    assert [row for row in judged(grader, golds) if row[2] != (True, True)] == []
