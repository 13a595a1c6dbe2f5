"""What neighbours of SCoRe claim, or what was expected of them on the built-in task, and whether it appears.

Every figure is of sampled traces (T = 1) and a mean over seeds, unless the criterion says otherwise. `before` is the
base, as the row's own run measured it. Differences are paired by seed and judged by their interval, in points.
"""

from collections.abc import Iterator

from score_cli.evaluation.evaluate import GREEDY, SAMPLED
from score_cli.phases import BASE, STAGE2, START
from score_cli.study.intervals import Verdict
from score_cli.study.own_tables import figure
from score_cli.study.results import OWN, TRAINING, Claim, Results, Seeds

PROCESS, OUTCOME = "s2r", "s2r-outcome"
STARTED = "s2r-start", "s2r-start-outcome"
CRITIC = "ctrl"
TRAJECTORY, OWN_TURN = "reflexicoder", "reflexicoder-own-turn"
# Where a base mends a larger share of its errors, paying the whole trajectory pays for making them: found by following
# the exact gradient of a policy of three numbers that keeps 97 percent of its right answers.
TURN_OVER = 0.56
UNMOVED = 0.02
GAP = "judge_gap@t1"


def neighbour_claims(results: Results) -> list[Claim]:
    """The claims that a study has the rows for, method by method."""
    return [
        *_s2r(results),
        *_after_a_start(results),
        *_reflexicoder(results),
        *_rlsf(results),
        *_judge(results),
        *_ctrl(results),
    ]


def _s2r(results: Results) -> Iterator[Claim]:
    for row in (PROCESS, OUTCOME):
        yield from _moves(results, row, "verify_acc", "tells its right solves from its wrong ones better")
        yield from _moves(results, row, "acc@final", "ends in a right solve more often")
        yield from _moves(results, row, "i_to_c@final", "puts more solves right")
        yield from _moves(results, row, "c_to_i@final", "breaks fewer solves", down=True)
    for name, text, process_first in (
        ("verify_acc", "paying every turn for itself lifts verification accuracy more than paying the outcome", True),
        ("error_recall", "paying the outcome finds more errors than paying every turn for itself", False),
    ):
        rows = (PROCESS, OUTCOME) if process_first else (OUTCOME, PROCESS)
        found = [results.find(row, name) for row in rows]
        if found[0] and found[1] and (lead := found[0].minus(found[1])):
            figures = f"{figure(name, found[0])} against {figure(name, found[1])}: {lead}"
            yield Claim(text, f"{name} of {rows[0]} above that of {rows[1]}", figures, lead.above())


def _after_a_start(results: Results) -> Iterator[Claim]:
    """Of reinforcement learning alone: from the policy after the supervised start to the last one."""
    for row in STARTED:
        for name, text in (
            ("verify_acc", "tells its right solves from its wrong ones better"),
            ("error_recall", "finds more of its errors"),
            ("acc@final", "ends in a right solve more often"),
        ):
            before, after = results.find(row, name, policy=START), results.find(row, name, policy=STAGE2)
            if before and after:
                yield from _compared(row, name, text, before, after, down=False)


def _reflexicoder(results: Results) -> Iterator[Claim]:
    before, after = _ends(results, TRAJECTORY, "acc@t1")
    mended, _ = _ends(results, TRAJECTORY, "i_to_c@t2")
    control = results.find(OWN_TURN, "acc@t1")
    if before and after and mended and before.mean < 1 and (more := after.minus(before)):
        share = mended.mean / (1 - before.mean)
        sags = share > TURN_OVER
        yield Claim(
            f"{TRAJECTORY}: the first attempt {'sags, for' if sags else 'gains, for'} the base mends "
            f"{'more' if sags else 'fewer'} than {TURN_OVER:.0%} of its errors",
            f"acc@t1 {'below' if sags else 'above'} the base's",
            f"mends {share:.1%}; acc@t1 {before} before, {after} after: {more}",
            more.below() if sags else more.above(),
        )
    if after and control and (less := after.minus(control)):
        yield Claim(
            f"{TRAJECTORY}: credit for the whole trajectory costs the first attempt",
            f"acc@t1 below that of {OWN_TURN}",
            f"{after} against {control}: {less}",
            less.below(),
        )
    for row in (TRAJECTORY, OWN_TURN):
        yield from _moves(results, row, "acc@t2", "ends in a right answer more often")


def _rlsf(results: Results) -> Iterator[Claim]:
    yield from _moves(results, "rlsf", "acc@t1", "sampled answers become right more often without a gold answer")
    before, after = _ends(results, "rlsf", "acc@t1", GREEDY)
    if before and after and (more := after.minus(before)):
        yield Claim(
            "rlsf: greedy answers stay as right as they were, for it sharpens what the base believes",
            f"greedy acc@t1 within {100 * UNMOVED:.0f} points of the base's",
            f"{before} before, {after} after: {more}",
            more.within(UNMOVED),
        )
    yield from _moves(results, "rlsf", "ece@t1", "confidence ends up worse calibrated than the base's")
    yield from _moves(results, "rlsf", "brier@t1", "confidence and being right come closer, solve by solve", down=True)


def _judge(results: Results) -> Iterator[Claim]:
    policies = results.policies_of("judge", TRAINING)
    ends = [results.find("judge", GAP, condition=TRAINING, policy=policy) for policy in policies]
    if len(ends) == 2 and ends[0] and ends[1]:
        yield from _compared("judge", GAP, "more passes for right than is", ends[0], ends[1], down=False)
    yield from _moves(
        results, "judge", "error_recall", "its own claims, which nobody pays, find fewer errors", down=True
    )
    yield from _moves(results, "judge", "acc@t1", "answers become right more often, by a model's word alone")


def _ctrl(results: Results) -> Iterator[Claim]:
    """Of the arms of one critic's run: its base's critiques against the trained ones."""
    arms = {policy: results.find(CRITIC, "acc@t1", policy=policy) for policy in results.policies_of(CRITIC)}
    firsts = [found for found in arms.values() if found]
    if len(firsts) > 1:
        same = all(found.values == firsts[0].values for found in firsts)
        verdict = Verdict.APPEARS if same else Verdict.ABSENT
        text = f"{CRITIC}: every arm revises the same solves"
        yield Claim(text, "acc@t1 equal in each seed", str(firsts[0]), verdict)
    for name, text, down in (
        ("i_to_c@t2", "its critiques put more solves right", False),
        ("c_to_i@t2", "its critiques break fewer solves", True),
        ("verify_acc", "judges the solves better", False),
    ):
        before, after = (results.find(CRITIC, name, policy=policy) for policy in (BASE, STAGE2))
        if before and after:
            yield from _compared(CRITIC, name, text, before, after, down=down)


def _ends(results: Results, row: str, name: str, decoding: str = SAMPLED) -> tuple[Seeds | None, Seeds | None]:
    """A metric of a row's base and of its last policy."""
    return results.find(row, name, decoding, OWN, BASE), results.find(row, name, decoding)


def _moves(results: Results, row: str, name: str, text: str, *, down: bool = False) -> Iterator[Claim]:
    before, after = _ends(results, row, name)
    if before and after:
        yield from _compared(row, name, text, before, after, down=down)


def _compared(row: str, name: str, text: str, before: Seeds, after: Seeds, *, down: bool) -> Iterator[Claim]:
    """The change, paired by the seeds that both were measured in."""
    if more := after.minus(before):
        figures = f"{figure(name, before)} before, {figure(name, after)} after: {more}"
        criterion = f"{name} {'falls' if down else 'rises'}"
        yield Claim(f"{row}: {text}", criterion, figures, more.below() if down else more.above())
