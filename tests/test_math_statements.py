"""What a response states: the last answer, in whatever dress, and never a hedge or a word that changes it."""

import pytest

from score_cli.tables.records import Problem
from score_cli.tables.schemas import CORRECT, NO_ANSWER
from score_cli.verification.math.grader import MathGrader
from score_cli.verification.task_grader import Item

LAST_COUNTS = [
    (r"The final answer is $8$. Hold on, I dropped a sign. So it is $\boxed{-8}$.", "-8"),
    (r"\boxed{12}. Let me check: no, 12 fails. Final Answer: The final answer is $14$. I hope it is correct.", "14"),
    ("Final Answer: 9\n\nChecking again, the answer is 11.", "11"),
    ("#### 17\nOn reflection I counted one twice.\n#### 16", "16"),
    (r"First guess: \boxed{x=1}. That is wrong. \boxed{x=2}", "2"),
    ("The initial final answer is 30, which was wrong. The final answer is 36.", "36"),
    (r"The earlier final answer is wrong. The value should be \boxed{21}.", "21"),
    (r"The original final answer is not right because of the sign. \boxed{-21}", "-21"),
    (r"My previous final answer is $5$; the corrected answer is $6$.", "6"),
    (r"So $\boxed{4}$, which is incorrect. Recomputing gives $\boxed{7}$.", "7"),
    (r"The answer is $\boxed{10}$ and not $\boxed{11}$.", "10"),
    (r"\boxed{15}. Note that the answer is unique.", "15"),
    (r"\boxed{15}. So the answer is less than 20, as it must be.", "15"),
    (r"**Final Answer:** $\boxed{3}$. The answer is a prime number.", "3"),
    (r"\boxed{8}. My first try, \boxed{6}, was wrong.", "8"),
    (r"\boxed{8} (not \boxed{6})", "8"),
    ("The previous answer is 6. The correct answer is 8.", "8"),
    ("The final answer is a right triangle.", "a right triangle"),
    ("The final answer is right isosceles.", r"\text{right isosceles}"),
    ("The final answer is: the claim is false.", r"\text{the claim is false}"),
    (r"The area is \boxed{7}. Here A is the option price.", "7"),
    ("The answer is 5. To see why, note that 2 + 3 = 5 and 5 + 0 = 5.", "5"),
]
MARKUP = [
    "**The final answer is 41.**",
    "**The final answer is:** 41",
    "__Final answer__: 41",
    "### Final Answer\n41",
    "## **Final Answer**\n\n**41**",
    "**Answer:** **41**",
    "Final Answer\n\n$$41$$",
    "**Final Answer**\n\\[\n41\n\\]",
    "<answer>41</answer>",
    "So it is <answer>\n$41$\n</answer> as asked.",
    "<b>Final Answer: 41</b>",
    "The final answer is <b>41</b>.",
    "The final answer is <strong>41</strong>.",
    "The final answer is `41`.",
    'The final answer is "41".',
    "The final answer is “41”.",
    "(The final answer is 41.)",
    "The final answer is (41).",
    "✅ The final answer is 41!",
    "The final answer is 41 ✅",
    "🎉 **Final Answer: 41** 🎉",
    "The final answer is 41!",
    "> The final answer is **41**.",
    "- **Final Answer**: 41",
    "*Final Answer: 41*",
    "***Final Answer: 41***",
    "**Final Answer:** The final answer is $41$.",
    "Final answer = 41",
    "Final Answer - 41",
    "FINAL ANSWER: 41",
    "The final answer is \\(41\\).",
    "The final answer is \\\\(41\\\\).",
    "The final answer is $\\mathbf{41}$.",
    "#### 41\n",
    "Final Answer: 41.</s>",
    "Final Answer: 41<|endoftext|>",
    "Final Answer:\n\n41",
    "The correct answer is 41.",
    "Thus, my answer is **41**.",
    r"\textbf{Final Answer:} 41",
    "Final Answer → 41",
    "Ans: 41",
]
WORDS = [
    "41 green bottles",
    "41 old red hens",
    "41 kilometers per hour",
    "41 miles an hour",
    "41 dollars a day",
    "$41 per month",
    "$41 each",
    "41 years old",
    "41 days in a row",
    "41 more apples",
    "41 bus tickets",
    "41 films",
    "41, which is 50 minus 9",
    "$41$, which is prime",
    "41 because 40 + 1 = 41",
    "41, because the rest cancels",
    "41, since $41 = 40 + 1$",
    "41 as shown above",
    "41, as required",
    "41, so we are done",
    "41 and nothing else",
    "thus 41",
    "therefore $41$",
    "just 41",
    "precisely 41",
    "indeed 41",
    "obviously 41",
    "that there are 41 bottles",
    "that she has 41 bottles",
    "that the number of bottles is 41",
    "the number 41",
    "a total of 41 bottles",
    "equal to $41$",
    "given by 41",
    "found to be 41",
    "41 (forty-one)",
    "41 (forty one) bottles",
    "41 bottles (as computed above)",
    "forty-one",
    "41 bottles altogether",
    "41 bottles, in total",
    "41 overall",
    "41 for the given values",
    "41 square inches",
    "41 cm^2",
    "41 ways to choose",
    "41 left over",
    "41 km/h",
    "41 m",
    "$41$ m/s",
    "41 times as many",
    "41, and that's it",
    "41 when rounded to the nearest whole number",
    "41: the sum of all digits",
    "41 — the sum of all digits",
    "a 41",
    "none other than 41",
    "as follows: 41",
    "she needs 41 chairs",
    "it takes 41 minutes",
    "Anna makes $41 per day",
    "5 * 8 + 1 = 41",
    "x = 41 apples",
    "answer = 41",
]
HEDGES = [
    "41 or maybe 42",
    "41 or 42",
    "either 41 or 42",
    "not 41",
    "about 41",
    "approximately 41",
    "around 41 bottles",
    "roughly 41, because I rounded",
    "at least 41",
    "at most 41 bottles",
    "more than 41",
    "less than 41",
    "41 or more",
    "41 or so",
    "41 if x is positive",
    "41 unless x is odd",
    "41?",
    "41, which is wrong",
    "41, but that is not correct",
    "41 (or 42)",
    "41 (forty-two)",
    "41 (not 42)",
    "41 and 42",
    "between 40 and 42, say 41",
    "never 41",
    "perhaps 41",
    "41 plus something",
    "41 minus 1",
    "41 to 42",
    "41 squared",
    "twice 41",
    "half of 41",
    "minus 41",
    "that she does not have 41 bottles",
    "that the number is not 41",
    "the number of bottles is less than 41",
    "41 below zero",
    "41 - maybe not at all",
    "41 — or perhaps 42",
    "41, which might be wrong",
    "41 because I guess so",
    "41 (I think)",
    "41 - xy",
    "41 is wrong",
    "the sum of 41 and 1",
]
CHANGED = [
    ("5 million", "5", False),
    ("5 thousand dollars", "5", False),
    ("5 billion", "5", False),
    (r"5\text{ hundred}", "5", False),
    ("7 dozen eggs", "7", False),
    ("5 halves", "5", False),
    (r"5\text{k}", "5", False),
    (r"5\text{k}", "5000", True),
    ("5 fifths", "5", False),
    ("3 hundredths", "3", False),
    ("5 factorial", "5", False),
    ("2 score", "2", False),
    ("1.5 million", "1,500,000", True),
    ("1.5 million dollars", "1500000", True),
    (r"2.75\text{ billion}", "2750000000", True),
    ("2 hundred thousand", "200000", True),
    ("7 dozen eggs", "84", True),
    ("3 tenths", "0.3", True),
    ("5 halves", r"\frac52", True),
    ("1 third", r"\frac13", True),
    ("3 quarters", "0.75", True),
    ("5 million", "5 million", True),
    ("5 million", r"5\text{ million people}", True),
    ("5 factorial", "5!", True),
    ("5 seconds", "5", True),
    ("5 pairs", "5", True),
    ("twelve", "12", True),
    ("two hundred and five", "205", True),
    ("thirteen", "12", False),
]
QUANTITIES = [
    ("AB = 7, BC = 9", "AB = 9, BC = 7", False),
    ("BC = 7, AB = 9", "AB = 9, BC = 7", True),
    ("BC = 9", "AB = 9", False),
    ("BA = 9", "AB = 9", True),
    ("9", "AB = 9", True),
    ("f(1) = 3, f(2) = 8", "f(1) = 8, f(2) = 3", False),
    ("f(2) = 3, f(1) = 8", "f(1) = 8, f(2) = 3", True),
    ("f(4) = 3", "f(5) = 3", False),
    ("g(x) = 2x", "f(x) = 2x", False),
    ("y = 2x", "f(x) = 2x", True),
    ("30 cats and 12 dogs", "12 cats and 30 dogs", False),
    ("30 dogs and 12 cats", "12 cats and 30 dogs", True),
    (r"30\text{ cats}, 12\text{ dogs}", r"12\text{ cats}, 30\text{ dogs}", False),
    ("12, 30", "12 cats and 30 dogs", True),
    ("4 nickels, 3 dimes, and 2 pennies", "3 nickels, 4 dimes, and 2 pennies", False),
    ("mean = 5, median = 4", "mean = 4, median = 5", False),
    ("median = 5, mean = 4", "mean = 4, median = 5", True),
    ("Mean: 5, Median: 4", "mean = 5, median = 4", True),
    ("Mean: 5, Median: 4", "mean = 4, median = 5", False),
    (r"\text{width} = 2, \text{length} = 8", r"\text{length} = 8, \text{width} = 2", True),
    (r"\angle B = 40^\circ, \angle C = 80^\circ", r"\angle B = 80^\circ, \angle C = 40^\circ", False),
    (r"\angle ABC = 40^\circ", r"\angle CBA = 40^\circ", True),
    (r"\angle ABC = 40^\circ", r"\angle BAC = 40^\circ", False),
    ("P(B) = 0.2", "P(A) = 0.2", False),
    ("(b, a) = (4, 5)", "(a, b) = (4, 5)", False),
    ("(b, a) = (5, 4)", "(a, b) = (4, 5)", True),
    ("3 m, 5 cm", "5 m, 3 cm", False),
    ("5 hours and 20 minutes", "20 hours and 5 minutes", False),
    (r"\max = 3, \min = 1", r"\min = 3, \max = 1", False),
    (r"\min = 1, \max = 3", r"\max = 3, \min = 1", True),
    ("x = 4, AB = 5", "x = 5, AB = 4", False),
    ("60 mph", "60 miles per hour", True),
    ("60 mph", "60 km per hour", False),
    ("12 apples", "12 oranges", False),
    ("12 red apples", "12 apples", True),
]
CHOICES = [
    (r"\textbf{(B)}\ 14", "B", True),
    (r"\textbf{(B)} 14", r"\text{(B)}", True),
    (r"\text{(B) }14", "(B)", True),
    ("B) 14", "B", True),
    ("B. 14", "B", True),
    ("B: fourteen", "B", True),
    ("(B)", "B", True),
    ("(b)", "B", True),
    ("Option B", "B", True),
    ("option (B)", "B", True),
    ("choice B", "(B)", True),
    ("The correct option is B", "B", True),
    ("B) 3 and 5", "B", True),
    ("(B) maybe", "B", False),
    ("(B)?", "B", False),
    ("(B) is wrong", "B", False),
    ("C) 14", "B", False),
    ("Option C", "B", False),
    ("(B) or (C)", "B", False),
    ("B and C", "B", False),
    ("(A), (B)", "B", False),
    ("not B", "B", False),
    ("14", "B", False),
    (r"\textbf{(C)}\ 14", r"\textbf{(B)}", False),
]
THOUGHTS = [
    ("<think>so it is 7</think>The final answer is 41.", CORRECT),
    (r"<think>perhaps \boxed{7}</think>\boxed{41}", CORRECT),
    (r"\boxed{41}<think>or is it \boxed{7}?</think>", CORRECT),
    (r"\boxed{41}<think>or is it \boxed{7}", CORRECT),
    (r"it was opened by the prompt \boxed{7}</think> \boxed{41}", CORRECT),
    (r"<thinking>\boxed{7}</thinking> \boxed{41} <thinking>\boxed{8}</thinking>", CORRECT),
    (r"<think>\boxed{41}</think>", NO_ANSWER),
    (r"<think>\boxed{41}", NO_ANSWER),
    ("<think>The final answer is 41.</think> I am not sure.", NO_ANSWER),
]


@pytest.fixture(scope="module")
def grader():
    with MathGrader() as grader:
        yield grader


def verdict(grader: MathGrader, response: str, gold: str) -> str:
    problem = Problem(problem_id="p", task="math", question="?", answer=gold, source="test")
    return grader.grade([Item(problem, response)])[0].verdict


@pytest.mark.parametrize(("response", "gold"), LAST_COUNTS)
def test_the_last_answer_stated_counts(grader, response, gold):
    assert verdict(grader, response, gold) == CORRECT


@pytest.mark.parametrize("response", MARKUP)
def test_markup_does_not_hide_an_answer(grader, response):
    assert verdict(grader, response, "41") == CORRECT
    assert verdict(grader, response, "4") != CORRECT


@pytest.mark.parametrize("said", WORDS)
def test_words_around_a_number_leave_it_what_it_is(grader, said):
    assert verdict(grader, f"The final answer is {said}.", "41") == CORRECT
    assert verdict(grader, f"Final Answer: The final answer is {said}. I hope it is correct.", "41") == CORRECT


@pytest.mark.parametrize("said", HEDGES)
def test_a_hedge_is_no_answer(grader, said):
    assert verdict(grader, f"The final answer is {said}.", "41") != CORRECT
    assert verdict(grader, f"So $\\boxed{{\\text{{{said}}}}}$.", "41") != CORRECT


@pytest.mark.parametrize(("said", "gold", "same"), CHANGED)
def test_words_that_change_a_number_do_change_it(grader, said, gold, same):
    assert (verdict(grader, f"The final answer is {said}.", gold) == CORRECT) is same
    assert (verdict(grader, f"So $\\boxed{{{said}}}$.", gold) == CORRECT) is same


@pytest.mark.parametrize(("said", "gold", "same"), QUANTITIES)
def test_names_and_units_that_both_give_agree(grader, said, gold, same):
    assert (verdict(grader, f"So $\\boxed{{{said}}}$.", gold) == CORRECT) is same


@pytest.mark.parametrize(("said", "gold", "same"), CHOICES)
def test_a_choice_is_its_letter(grader, said, gold, same):
    assert (verdict(grader, f"So $\\boxed{{{said}}}$.", gold) == CORRECT) is same
    assert (verdict(grader, f"The final answer is {said}.", gold) == CORRECT) is same


@pytest.mark.parametrize(("response", "expected"), THOUGHTS)
def test_what_is_thought_is_not_answered(grader, response, expected):
    assert verdict(grader, response, "41") == expected
