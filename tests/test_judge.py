"""What a frozen judge says of solves, by hand and by brute force."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from score_cli.config import SignalConfig, Stage2Config
from score_cli.errors import UserError
from score_cli.stages.signal import Signaller
from score_cli.tables.checkpoints import Policy
from score_cli.tables.records import Problem, Signal, Verdict
from score_cli.tasks.pay import Pay
from score_cli.training.train_metrics import signal_rows
from score_cli.training.trainer import Trainer
from tests.conftest import small_policy
from tests.scripts import dialogue, script, scripted_policy
from tests.signals import JUDGE, PROBLEM, SOLVED, WORDS, division_trace


def claim_chances(policy: Policy, problem: Problem, solve: str, asked: str) -> tuple[float, float]:
    """Brute force: the chances of the tokens `right` and `wrong` after the whole conversation."""
    text = f"{problem.question}{solve}<eos>{asked}"
    tokens = torch.tensor(policy.tokenizer.encode(text, add_special_tokens=False))
    right, wrong = (policy.tokenizer.convert_tokens_to_ids(word) for word in ("right", "wrong"))
    with torch.no_grad():
        found = policy.model(tokens[None]).logits[0, -1].softmax(-1)
    return found[right].item(), found[wrong].item()


@pytest.mark.parametrize("ask", ["<verify>", "{answer}<verify>"])
def test_a_judges_score_is_its_chance_of_right_out_of_right_and_wrong(ask: str) -> None:
    judge = scripted_policy(WORDS)
    trace = division_trace(judge, SOLVED, "no", "\\boxed{1}: product ", cut=[2])
    config = SignalConfig(**JUDGE | {"ask": ask})  # type: ignore[arg-type]
    [found] = Signaller(config, judge).signals([trace], {PROBLEM.problem_id: PROBLEM})
    assert PROBLEM.answer is not None
    right, wrong = claim_chances(judge, PROBLEM, SOLVED, ask.replace("{answer}", PROBLEM.answer))
    assert found.scores == [pytest.approx(right / (right + wrong), rel=1e-4), None, None]
    assert found.accepted[1:] == [False, False] and found.values[1:] == [0.0, 0.0], "no answer, and one cut off"


def test_a_judge_sees_the_gold_answer_where_its_words_hold_it_and_only_there() -> None:
    judge = scripted_policy(WORDS)
    trace = division_trace(judge, SOLVED)
    other = replace(PROBLEM, answer="99")

    def score(ask: str, problem: Problem) -> float | None:
        config = SignalConfig(**JUDGE | {"ask": ask})  # type: ignore[arg-type]
        return Signaller(config, judge).signals([trace], {PROBLEM.problem_id: problem})[0].scores[0]

    assert score("<verify>", PROBLEM) == score("<verify>", other) == score("<verify>", replace(PROBLEM, answer=None))
    assert score("{answer}<verify>", PROBLEM) != score("{answer}<verify>", other)
    with pytest.raises(UserError, match="has no answer, and the judge is to see it: leave {answer} out of ask"):
        score("{answer}<verify>", replace(PROBLEM, answer=None))


def test_a_solve_is_accepted_from_the_threshold_on_and_worth_what_the_settings_say() -> None:
    judge = scripted_policy(WORDS)
    trace = division_trace(judge, SOLVED, "no")

    def judged(**settings: object) -> Signal:
        config = SignalConfig(**JUDGE | settings)  # type: ignore[arg-type]
        return Signaller(config, judge).signals([trace], {PROBLEM.problem_id: PROBLEM})[0]

    score = judged().scores[0]
    assert score is not None and 0 < score < 1
    for threshold, yes in ((0.0, True), (score, True), (math.nextafter(score, 1), False), (1.0, False)):
        found = judged(accept_at=threshold)
        assert found.accepted == [yes, False] and found.values == [1.0 if yes else 0.1, 0.0]
    found = judged(accept_at=1.0, rejected=0.25, boxed=False)
    assert found.values == [0.25, 0.25], "every finished solve is judged where no box is asked for"


def test_a_judge_that_is_the_exact_verdicts_trains_as_the_verdicts_do() -> None:
    policy = small_policy(seed=1)
    texts = [(SOLVED, "\\boxed{50}: product "), ("\\boxed{50}: product ", SOLVED), (SOLVED, SOLVED)]
    traces, verdicts, signals = [], [], []
    for index, pair in enumerate(texts):
        right = [text == SOLVED for text in pair]
        traces.append(replace(division_trace(policy, *pair), sample_index=index))
        names, values = ["correct" if one else "incorrect" for one in right], [float(one) for one in right]
        verdicts.append(Verdict(PROBLEM.problem_id, index, ["x", "y"], names, list(values)))
        signals.append(Signal(PROBLEM.problem_id, index, "judge", list(values), list(right), list(values)))
    found = []
    for weights, given in (({"right": 1.0}, []), ({"signal:judge": 1.0}, signals)):
        config = Stage2Config(
            pay=Pay(weights={"solve": weights}), baseline="leave-one-out", learning_rate=1e-3, threads=1
        )
        trainer = Trainer(config, small_policy(seed=1))
        trainer.update(traces, verdicts, signals=given, check=False)
        found.append(trainer.policy.state.fingerprint)
    assert found[0] == found[1] != policy.state.fingerprint


def test_accepted_share_and_its_gap_to_what_is_right_by_hand() -> None:
    rows = [
        (dialogue(("solve", "a", "correct"), ("verify", "right", "correct")), 0.9, True),
        (dialogue(("solve", "b", "incorrect"), ("verify", "right", "incorrect")), 0.8, True),
        (dialogue(("solve", "c", "unscored"), ("verify", "wrong", "unscored")), 0.1, False),
        (dialogue(("solve", "d", "no_answer"), ("verify", "wrong", "correct")), None, False),
    ]
    traces, verdicts = [trace for (trace, _), *_ in rows], [verdict for (_, verdict), *_ in rows]
    signals = [Signal("p", 0, "judge", [score, None], [yes, None], [0.0, None]) for _, score, yes in rows]
    assert {(name, turn): value for name, turn, value in signal_rows(traces, verdicts, signals)} == {
        ("judge", 1): pytest.approx(0.6),
        ("judged", 1): 0.5,
        ("judge_gap", 1): pytest.approx(1 / 3),
        ("judge_agrees", 1): pytest.approx(2 / 3),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claim": "yes|no"}, "the judge scripted has no tokens for its claim 'yes': give .signal. others"),
        ({"ask": "Is it?"}, "the judge scripted has no tokens for its words to ask with 'Is it.'"),
        ({"claim": "right"}, "claim is 'right', which could not be read"),
        ({"ask": "{solve}<verify>"}, "ask speaks of {solve}, expected no place but {answer}"),
    ],
)
def test_words_that_no_judge_could_say_are_one_line(change: Mapping[str, str], message: str) -> None:
    judge = scripted_policy(WORDS)
    with pytest.raises(UserError, match=message) as error:
        Signaller(SignalConfig(**JUDGE | change), judge)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_policy_is_never_asked_with_gold_answers() -> None:
    with pytest.raises(UserError, match="no policy is shown gold answers"):
        script(verify={"ask": "{answer}<verify>", "claim": "right|wrong"})
