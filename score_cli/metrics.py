"""What traces and their verdicts show: measures of one trace, and means over many with clustered errors.

A measure is of one attempt, or of an attempt beside the one before; of a script's traces, the solves are the attempts.
An unscored attempt is never counted as wrong: a measure that needs it is null for that trace. Means and errors need
two numbers a problem, however many traces it has: how many values there are, and their sum. Nothing here reads files.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from score_cli.tables.records import SOLVE, Trace, Verdict
from score_cli.tables.schemas import CORRECT, LENGTH, NO_ANSWER, TRUNCATED, UNGRADED, UNSCORED

Values = list[tuple[str, float]]  # (problem_id, value) of each trace, or each turn, that could be scored
Measure = Callable[[int], pl.Expr]
# What a frame of `by_turn` has a list of, an entry a turn.
PER_TURN = ("attempts", "finish_reasons", "answers", "verdicts", "rewards", "tokens", "given")


def by_turn(graded: pl.DataFrame) -> pl.DataFrame:
    """Traces beside their verdicts, with a list for all that a turn has: `tokens` too, and whether it was `given`.

    Args:
        graded: the columns of a traces table and of its rewards.
    """
    own = pl.col("attempts").list.len()
    turns = range(graded.select(own.max()).item())
    return graded.with_columns(
        tokens=pl.concat_list(pl.col("attempt_ids").list.count_matches(turn + 1) for turn in turns).list.head(own),
        given=pl.concat_list(turn < pl.col("offline_attempts") for turn in turns).list.head(own),
    )


def by_solve(graded: pl.DataFrame) -> pl.DataFrame:
    """As `by_turn`, with the solves alone: of a script's traces, these are the attempts."""
    return solves_alone(by_turn(graded))


def solves_alone(frame: pl.DataFrame, *further: str) -> pl.DataFrame:
    """A frame of `by_turn` without the turns that are no solves; `further` are more of its lists."""
    if "roles" not in frame.columns:
        return frame
    solves = pl.col("roles").list.eval((pl.element() == SOLVE).arg_true())
    return frame.with_columns(pl.col(*PER_TURN, *further).list.gather(solves))


def accuracy(attempt: int) -> pl.Expr:
    """Whether the attempt (counted from 1) was judged correct."""
    return pl.when(_of("rewards", attempt).is_not_null()).then((_of("verdicts", attempt) == CORRECT).cast(pl.Float64))


def delta(attempt: int) -> pl.Expr:
    """Accuracy of the attempt minus that of the one before."""
    return accuracy(attempt) - accuracy(attempt - 1)


def incorrect_to_correct(attempt: int) -> pl.Expr:
    """Whether the attempt put right what the one before had wrong."""
    return delta(attempt) > 0


def correct_to_incorrect(attempt: int) -> pl.Expr:
    """Whether the attempt broke what the one before had right."""
    return delta(attempt) < 0


def truncated(attempt: int) -> pl.Expr:
    """Whether the attempt was cut off; null for one that was given, not sampled."""
    return pl.when(~_of("given", attempt)).then(_of("finish_reasons", attempt) == LENGTH)


def length(attempt: int) -> pl.Expr:
    """Tokens sampled in the attempt; null for one that was given."""
    return pl.when(~_of("given", attempt)).then(_of("tokens", attempt))


def edit_ratio(attempt: int) -> pl.Expr:
    """Edit distance in characters between the attempt and the one before, over their summed length."""
    before, now = _of("attempts", attempt - 1), _of("attempts", attempt)
    total = before.str.len_chars() + now.str.len_chars()
    distance = pl.struct(before=before, now=now).map_batches(_distances, return_dtype=pl.UInt32)
    return pl.when(total > 0).then(distance / total).otherwise(total.cast(pl.Float64))


def changed_answer(attempt: int) -> pl.Expr:
    """Whether the answer differs from the one before; an absent answer is an answer too."""
    differs = _answer(attempt).ne_missing(_answer(attempt - 1))
    return pl.when(_of("attempts", attempt).is_not_null()).then(differs)


def _answer(attempt: int) -> pl.Expr:
    """What was extracted; the whole text where the grader extracts nothing, as a user's own; null without an answer."""
    answers = ~_of("verdicts", attempt).is_in([NO_ANSWER, TRUNCATED])
    return pl.when(answers).then(pl.coalesce(_of("answers", attempt), _of("attempts", attempt)))


# Name in the metrics table -> measure; the second group needs an attempt before.
SINGLE: dict[str, Measure] = {"acc": accuracy, "truncated": truncated, "length": length}
PAIRED: dict[str, Measure] = {
    "delta": delta,
    "i_to_c": incorrect_to_correct,
    "c_to_i": correct_to_incorrect,
    "edit_ratio": edit_ratio,
    "changed": changed_answer,
}


def measures_of(attempts: int) -> dict[str, pl.Expr]:
    """`acc@t1` and so on of traces of that many attempts; a value each of `by_solve`'s rows, null where there is none.

    A trace that ends before an attempt, or whose verdict is needed and missing, has none.
    """
    single = {f"{name}@t{a}": measure(a) for a in range(1, attempts + 1) for name, measure in SINGLE.items()}
    paired = {f"{name}@t{a}": measure(a) for a in range(2, attempts + 1) for name, measure in PAIRED.items()}
    return {name: value.cast(pl.Float64) for name, value in (single | paired).items()}


def most_attempts(frame: pl.DataFrame) -> int:
    """Of the traces of `by_turn` or `by_solve`."""
    return int(frame.select(pl.col("attempts").list.len().max()).item())


def _of(column: str, attempt: int) -> pl.Expr:
    return pl.col(column).list.get(attempt - 1, null_on_oob=True)


def _distances(texts: pl.Series) -> pl.Series:
    pairs = texts.struct.unnest()
    known = pairs.drop_nulls()
    found = cpdist(known["before"].to_list(), known["now"].to_list(), scorer=Levenshtein.distance)
    places = pairs.select(known=pl.all_horizontal(pl.all().is_not_null())).to_series().arg_true()
    return pl.repeat(None, len(texts), dtype=pl.UInt32, eager=True).scatter(places, found.astype(np.uint32))


def solves_of(trace: Trace, verdict: Verdict) -> tuple[Trace, Verdict]:
    """A trace and its verdict with nothing but its solves, counted anew; as they are where all turns are solves."""
    if trace.roles is None:
        return trace, verdict
    turns = [turn for turn, role in enumerate(trace.roles) if role == SOLVE]
    numbers = [0] * (len(trace.roles) + 1)
    for number, turn in enumerate(turns, start=1):
        numbers[turn + 1] = number
    kept = replace(
        trace,
        attempts=[trace.attempts[turn] for turn in turns],
        finish_reasons=[trace.finish_reasons[turn] for turn in turns],
        attempt_ids=np.array(numbers, dtype=np.int8)[trace.attempt_ids],
        offline_attempts=sum(turn < trace.offline_attempts for turn in turns),
        roles=None,
    )
    judged = replace(
        verdict,
        answers=[verdict.answers[turn] for turn in turns],
        verdicts=[verdict.verdicts[turn] for turn in turns],
        rewards=[verdict.rewards[turn] for turn in turns],
    )
    return kept, judged


def letters(verdicts: Sequence[str]) -> str:
    """The verdicts of a trace as letters: c correct, u unscored or ungraded, i any other."""
    return "".join("c" if v == CORRECT else "u" if v in (UNSCORED, UNGRADED) else "i" for v in verdicts)


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error (None with fewer than two problems), and how many things it is over."""

    value: float
    stderr: float | None
    count: int


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Mean of values whose errors are independent between clusters, not within them.

    Samples of one problem share its difficulty; treating them as independent would make the
    standard error too small.

    Args:
        values: [M]; clusters: [M] problem ids.
    Returns:
        The mean over traces; its standard error by the cluster-robust (sandwich) formula with
        the factor G / (G - 1) for G clusters.
    Raises:
        ValueError: no values, or lengths that differ.
    """
    if not values:
        raise ValueError("clustered_mean needs at least one value")
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        parts[cluster].append(value)
    return _mean([len(part) for part in parts.values()], [math.fsum(part) for part in parts.values()])


def sums_of(values: Values) -> pl.DataFrame:
    """Of each problem its `problem_id`, the `count` of its values, and their `sum`: what `mean_of_sums` takes."""
    frame = pl.DataFrame(values, schema={"problem_id": pl.String, "value": pl.Float64}, orient="row")
    return frame.group_by("problem_id", maintain_order=True).agg(count=pl.len(), sum=pl.col("value").sum())


def mean_of_sums(sums: pl.DataFrame) -> Estimate:
    """As `clustered_mean`, from the count and the sum of each problem's values; problems without any are left out."""
    known = sums.filter(pl.col("count") > 0)
    return _mean(known["count"].to_list(), known["sum"].to_list())


def paired_difference(ours: pl.DataFrame, theirs: pl.DataFrame) -> Estimate | None:
    """Mean of our values minus mean of theirs, over the problems that both have values of.

    A hard problem is hard for both, so the noise that they share cancels: each problem enters the standard
    error with the difference of its two deviations, not with their squares added.

    Args:
        ours, theirs: sums by problem, see `sums_of`; the two may be of different numbers of traces.
    Returns:
        The difference of the means over traces; its standard error by the formula of `clustered_mean`, which
        with one trace a problem is that of the paired t-test; the number of problems compared.
        None where the two share no problem.
    """
    shared = ours.join(theirs, on="problem_id", suffix="_theirs", maintain_order="left")
    shared = shared.filter((pl.col("count") > 0) & (pl.col("count_theirs") > 0))
    if shared.is_empty():
        return None
    means, pulls = zip(
        *(_pulls(shared[f"count{s}"].to_list(), shared[f"sum{s}"].to_list()) for s in ("", "_theirs")), strict=True
    )
    return Estimate(means[0] - means[1], _spread(a - b for a, b in zip(*pulls, strict=True)), shared.height)


def _mean(counts: Sequence[int], sums: Sequence[float]) -> Estimate:
    mean, pulls = _pulls(counts, sums)
    return Estimate(mean, _spread(pulls), sum(counts))


def _pulls(counts: Sequence[int], sums: Sequence[float]) -> tuple[float, list[float]]:
    """The mean of all values, and what each cluster adds to its error: the sum of its residuals over their number."""
    total = sum(counts)
    mean = math.fsum(sums) / total
    return mean, [(own - count * mean) / total for count, own in zip(counts, sums, strict=True)]


def two_sided_p(value: float, stderr: float | None) -> float | None:
    """Probability of a difference at least this large, were there none: the normal approximation.

    Returns:
        None where the standard error is unknown, or 0 beside a difference that is not: a handful of problems
        that all moved alike show no spread to judge by.
    """
    if stderr is None:
        return None
    if stderr == 0:
        return 1.0 if value == 0 else None
    return math.erfc(abs(value) / stderr / math.sqrt(2))


def _spread(pulls: Iterable[float]) -> float | None:
    """Standard error from each cluster's pull on the estimate (the pulls sum to 0)."""
    squares = [pull**2 for pull in pulls]
    groups = len(squares)
    return None if groups < 2 else math.sqrt(math.fsum(squares) * groups / (groups - 1))


def measure_dialogues(traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> dict[str, Values]:
    """What a script's dialogues show beside the accuracy of their solves; nothing for traces of solves alone.

        verify_acc                  share of claims that tell what the solve is
        error_recall                of the claims on wrong solves, the share that says so
        correct_precision           of the claims that a solve is correct, the share that is right to
        unreadable                  share of turns that judge in which no claim could be read
        acc@final                   accuracy of the last solve
        delta@final, i_to_c@final, c_to_i@final    from the first solve to the last
        mean_trials                 solves a trace

    Of traces without a solve, critiques of one that is given, only `verify_acc` and `unreadable` are known; see
    `evaluation.critics`. A claim on a solve that nobody could score counts nowhere. One that cannot be read is wrong in
    `verify_acc` and finds no error in `error_recall`. S2R (arXiv 2502.12853) calls the first three VA, ER and CP.
    """
    if all(trace.roles is None for trace in traces):
        return {}
    rows = list(zip(traces, verdicts, strict=True))
    found: dict[str, Values] = {}

    def note(name: str, problem: str, value: float) -> None:
        found.setdefault(name, []).append((problem, value))

    for trace, verdict in rows:
        for right, agrees, readable in _claims(trace, verdict):
            note("verify_acc", trace.problem_id, float(agrees))
            note("unreadable", trace.problem_id, float(not readable))
            if right is None:
                continue
            if not right:
                note("error_recall", trace.problem_id, float(agrees))
            if readable and agrees == right:  # it says correct
                note("correct_precision", trace.problem_id, float(agrees))
        _, solves = solves_of(trace, verdict)
        if not solves.verdicts:
            continue
        first, last = solves.correct[0], solves.correct[-1]
        if last is not None:
            note("acc@final", trace.problem_id, float(last))
        if first is not None and last is not None:
            note("delta@final", trace.problem_id, float(last) - float(first))
            note("i_to_c@final", trace.problem_id, float(last and not first))
            note("c_to_i@final", trace.problem_id, float(first and not last))
        note("mean_trials", trace.problem_id, float(len(solves.verdicts)))
    return found


def _claims(trace: Trace, verdict: Verdict) -> Iterator[tuple[bool | None, bool, bool]]:
    """Of each turn that judges a scored solve: whether the solve is right, the claim agrees, and could be read.

    Whether a solve is right that stands in another trace is unknown.
    """
    right: bool | None = None
    elsewhere = SOLVE not in trace.turn_roles
    for turn, role in enumerate(trace.turn_roles):
        if role == SOLVE:
            right = verdict.correct[turn]
        elif verdict.verdicts[turn] not in (UNGRADED, UNSCORED) and (elsewhere or right is not None):
            yield right, verdict.verdicts[turn] == CORRECT, verdict.answers[turn] is not None
