"""Dialogues of any turns to the examples of a supervised round. Nothing here reads files.

| method           | dialogues that are learned                                                             |
|------------------|----------------------------------------------------------------------------------------|
| `given`          | all of a file                                                                          |
| `right`          | traces whose last solve is right                                                       |
| `right-and-true` | of those, the ones whose every verdict is true                                         |
| `search`         | each trace up to its first right solve and the true verdict on it; none where no solve is right |

`loss_on` says which of a dialogue's turns are learned; the others are read alone. A turn that was cut off is never
learned. Tokens are carried over as they were sampled, the stop token with them; nothing is encoded anew.
"""

from collections.abc import Sequence

from score_cli.config import DIALOGUE_METHODS, SftMethod
from score_cli.tables.records import JUDGES, SOLVE, Trace, Verdict
from score_cli.tables.schemas import CORRECT, STOP, UNGRADED
from score_cli.tasks.loss_mask import learned_turns
from score_cli.training.sft_examples import Example

GIVEN = "given"
RIGHT, RIGHT_AND_TRUE, SEARCH = DIALOGUE_METHODS


def given_examples(traces: Sequence[Trace], loss_on: str) -> list[Example]:
    """The examples of given dialogues, all of them but those in which no turn is learned.

    Raises:
        UserError: `loss_on` does not fit the turns.
    """
    ungraded = [Verdict(t.problem_id, t.sample_index, [], [UNGRADED] * len(t.attempts), []) for t in traces]
    made = [
        _example(trace, verdict, len(trace.attempts), GIVEN, loss_on)
        for trace, verdict in zip(traces, ungraded, strict=True)
    ]
    return [example for example in made if example.learned]


def filtered_examples(
    traces: Sequence[Trace], verdicts: Sequence[Verdict], method: SftMethod, loss_on: str
) -> list[Example]:
    """The examples that a method keeps of a policy's own dialogues, in their order; at most one a trace.

    Args:
        traces, verdicts: row by row.
    Raises:
        UserError: `loss_on` does not fit the turns.
    """
    made = []
    for trace, verdict in zip(traces, verdicts, strict=True):
        turns = turns_kept(trace, verdict, method)
        example = _example(trace, verdict, turns, method, loss_on) if turns else None
        if example is not None and example.learned:
            made.append(example)
    return made


def turns_kept(trace: Trace, verdict: Verdict, method: SftMethod) -> int:
    """How many turns of a dialogue a method keeps, from the first on; 0 where it drops the dialogue."""
    roles = trace.turn_roles
    right = [
        turn
        for turn, role in enumerate(roles)
        if role == SOLVE and verdict.correct[turn] and trace.finish_reasons[turn] == STOP
    ]
    if not right:
        return 0
    if method == SEARCH:
        kept = right[0] + 1
        judged = kept < len(roles) and roles[kept] in JUDGES and verdict.verdicts[kept] == CORRECT
        return kept + 1 if judged else kept
    last_solve = max(turn for turn, role in enumerate(roles) if role == SOLVE)
    # A role without a claim says nothing that could be false.
    claims = [verdict.verdicts[turn] for turn, role in enumerate(roles) if role in JUDGES]
    false = method == RIGHT_AND_TRUE and any(claim not in (CORRECT, UNGRADED) for claim in claims)
    return len(roles) if right[-1] == last_solve and not false else 0


def _example(trace: Trace, verdict: Verdict, turns: int, method: str, loss_on: str) -> Example:
    """The first turns of a trace as an example."""
    roles = trace.turn_roles[:turns]
    stop = int((trace.attempt_ids == turns).nonzero()[0][-1]) + 1
    return Example(
        problem_id=trace.problem_id,
        method=method,
        sample_index=trace.sample_index,
        target_sample_index=trace.sample_index,
        target_attempt=turns,
        attempts=trace.attempts[:turns],
        verdicts=verdict.verdicts[:turns],
        token_ids=trace.token_ids[:stop],
        attempt_ids=trace.attempt_ids[:stop],
        roles=roles,
        learned=[turn for turn in learned_turns(loss_on, roles) if trace.finish_reasons[turn - 1] == STOP],
    )
