"""What the report says beyond metrics.parquet: flows of answers, who gets changed, traces to show. Pure functions.

`attempt` is the later one of a pair of neighbouring attempts, counted from 1: pair 2 is y1 to y2.
An unscored attempt is left out of whatever needs its verdict.
"""

import bisect
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from score_cli.metrics import Estimate, accuracy, changed_answer, clustered_mean, edit_ratio
from score_cli.tables.records import Trace, Verdict
from score_cli.tables.schemas import CORRECT, UNSCORED

# From verdict to verdict: the order in which flows are listed and drawn.
FLOWS = ("c-c", "c-i", "i-c", "i-i")
MOST_BINS = 8
LEAST_TRACES_A_BIN = 8
# A longer attempt is cut on the page, so that the page's size is bounded.
MOST_CHARACTERS = 4000
# A curve of this many updates or more is drawn with its moving average, over a twentieth of it.
LONG_CURVE = 40

Rows = Sequence[tuple[Trace, Verdict]]


@dataclass(frozen=True)
class LogprobBin:
    """Traces whose earlier attempts the sampler was about as sure of; `mean` is their mean logprob, nats a token."""

    mean: float
    changed: Estimate
    wrong: Estimate


@dataclass(frozen=True)
class PairFacts:
    """What happened between two neighbouring attempts of one policy."""

    attempt: int
    flow: Mapping[str, Estimate]  # share of the scored traces, by FLOWS
    changed: Mapping[str, Estimate]  # share with another answer, by the earlier attempt's letter: c, i
    edit_ratios: Sequence[float]
    bins: Sequence[LogprobBin]


def letter(verdict: str) -> str:
    """A verdict as `score show --only` writes it: c correct, u unscored, i any other."""
    return "c" if verdict == CORRECT else "u" if verdict == UNSCORED else "i"


def chain(reward: Verdict) -> str:
    """The verdicts of a trace as letters: `i-c`."""
    return "-".join(map(letter, reward.verdicts))


def pairs_shown(attempts: int) -> list[int]:
    """The first pair of attempts and the last: with ten attempts, the pairs between would fill the page."""
    return sorted({2, attempts}) if attempts >= 2 else []


def pair_facts(rows: Rows, attempt: int) -> PairFacts:
    """Measure one pair of attempts; traces with fewer attempts are left out."""
    rows = [(trace, reward) for trace, reward in rows if len(trace.attempts) >= attempt]
    return PairFacts(
        attempt=attempt,
        flow=_flow(rows, attempt),
        changed=_changed(rows, attempt),
        edit_ratios=[edit_ratio(trace, reward, attempt) or 0.0 for trace, reward in rows],
        bins=_logprob_bins(rows, attempt),
    )


def verdict_counts(rewards: Iterable[Verdict]) -> list[tuple[str, int]]:
    """How many traces have each chain of verdicts, most first: `incorrect → correct`, 12."""
    counts = Counter(" → ".join(reward.verdicts) for reward in rewards)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def mean_logprob(trace: Trace, attempt: int) -> float | None:
    """Mean over the attempt's sampled tokens, in nats; None for an attempt that was given or is empty."""
    own = trace.logprobs[trace.attempt_ids == attempt]
    return None if attempt <= trace.offline_attempts or not len(own) else float(own.mean(dtype="float64"))


def choose_rows(rewards: Sequence[Verdict], most: int) -> list[int]:
    """Which traces to show: every chain of verdicts in turn gives one, until `most` are chosen.

    So the rare chains, which tell most, are there. Within a chain the order is a hash of problem and
    sample, the same for every policy, so that the policies are shown on the same problems where that can be.

    Returns:
        Row numbers, ascending.
    """
    queues: defaultdict[str, list[int]] = defaultdict(list)
    for row in sorted(range(len(rewards)), key=lambda row: _rank(rewards[row])):
        queues[chain(rewards[row])].append(row)
    turns = sorted((turn, name, row) for name, queue in queues.items() for turn, row in enumerate(queue))
    return sorted(row for _, _, row in turns[:most])


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread, with the first and the last where two fit."""
    if count <= most or most < 2:
        return list(range(min(count, most)))
    return [round(step * (count - 1) / (most - 1)) for step in range(most)]


def shown_trace(trace: Trace, reward: Verdict) -> dict[str, Any]:
    """One trace as the page's browser takes it."""
    attempts = []
    for index, text in enumerate(trace.attempts):
        tokens = int((trace.attempt_ids == index + 1).sum())
        logprob = mean_logprob(trace, index + 1)
        attempts.append(
            shorten(text)
            | {
                "verdict": reward.verdicts[index],
                "answer": reward.answers[index],
                "finish": trace.finish_reasons[index],
                "given": index < trace.offline_attempts,
                "tokens": tokens,
                "logprob": None if logprob is None else round(logprob, 3),
            }
        )
    return {"problem": trace.problem_id, "sample": trace.sample_index, "chain": chain(reward), "attempts": attempts}


def shorten(text: str) -> dict[str, Any]:
    """The text, cut at MOST_CHARACTERS, and how many characters were left out."""
    return {"text": text[:MOST_CHARACTERS], "cut": max(0, len(text) - MOST_CHARACTERS)}


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean over up to `window` neighbours around each value; narrower at the ends, always centred."""
    means = []
    for index in range(len(values)):
        reach = min(window // 2, index, len(values) - 1 - index)
        near = values[index - reach : index + reach + 1]
        means.append(sum(near) / len(near))
    return means


def _rank(reward: Verdict) -> str:
    return hashlib.sha256(f"{reward.problem_id}\0{reward.sample_index}".encode()).hexdigest()


def _estimate(rows: Rows, value: Callable[[Trace, Verdict], float]) -> Estimate:
    return clustered_mean([value(*row) for row in rows], [trace.problem_id for trace, _ in rows])


def _flow(rows: Rows, attempt: int) -> dict[str, Estimate]:
    scored = [row for row in rows if UNSCORED not in row[1].verdicts[attempt - 2 : attempt]]
    if not scored:
        return {}

    def happened(name: str) -> Callable[[Trace, Verdict], float]:
        return lambda _, reward: float("-".join(map(letter, reward.verdicts[attempt - 2 : attempt])) == name)

    return {name: _estimate(scored, happened(name)) for name in FLOWS}


def _changed(rows: Rows, attempt: int) -> dict[str, Estimate]:
    found = {}
    for name in "ci":
        alike = [row for row in rows if letter(row[1].verdicts[attempt - 2]) == name]
        if alike:
            found[name] = _estimate(alike, lambda trace, reward: changed_answer(trace, reward, attempt) or 0.0)
    return found


def _logprob_bins(rows: Rows, attempt: int) -> list[LogprobBin]:
    """About equally many traces a bin; equal logprobs are never parted."""
    known = [
        (value, row)
        for row in rows
        if (value := mean_logprob(row[0], attempt - 1)) is not None and accuracy(*row, attempt - 1) is not None
    ]
    values = sorted(value for value, _ in known)
    wanted = min(MOST_BINS, len(values) // LEAST_TRACES_A_BIN)
    edges = sorted({values[index * len(values) // wanted] for index in range(1, wanted)}) if wanted else []
    members: defaultdict[int, list[tuple[float, tuple[Trace, Verdict]]]] = defaultdict(list)
    for value, row in known:
        members[bisect.bisect_right(edges, value)].append((value, row))
    bins = []
    for _, part in sorted(members.items()):
        inside, alike = [value for value, _ in part], [row for _, row in part]
        bins.append(
            LogprobBin(
                mean=sum(inside) / len(inside),
                changed=_estimate(alike, lambda trace, reward: changed_answer(trace, reward, attempt) or 0.0),
                wrong=_estimate(alike, lambda trace, reward: 1.0 - (accuracy(trace, reward, attempt - 1) or 0.0)),
            )
        )
    return bins
