"""The traces of a report: where they lie, what is measured on them, and which of them the page shows to browse.

`attempt` is the later one of a pair of neighbouring attempts, counted from 1: pair 2 is y1 to y2. An unscored attempt
is left out of whatever needs its verdict.
"""

import hashlib
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from score_cli.config import ReportConfig
from score_cli.errors import UserError
from score_cli.evaluation.measured import add_up
from score_cli.evaluation.votes import VOTES
from score_cli.metrics import (
    Estimate,
    accuracy,
    by_solve,
    by_turn,
    changed_answer,
    edit_ratio,
    letters,
    mean_of_sums,
    most_attempts,
    solves_alone,
)
from score_cli.progress import Progress
from score_cli.tables.parquet import METRICS, TRACES, read_footer
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import Problem, Trace, Verdict, turn_title
from score_cli.tables.traces import GradedPiece, iterate_graded
from score_cli.tables.updates import opened_beside

TRACES_SUFFIX = ".traces.parquet"
REWARDS_SUFFIX = ".rewards.parquet"
# From verdict to verdict: the order in which flows are listed and drawn.
FLOWS = ("c-c", "c-i", "i-c", "i-i")
MOST_BINS = 8
LEAST_TRACES_A_BIN = 8
# A longer attempt is cut on the page, so that the page's size is bounded.
MOST_CHARACTERS = 4000


@dataclass(frozen=True)
class Source:
    """Traces and rewards of one policy: evaluated in one decoding, or sampled for one update."""

    key: str  # base-sampled, or update-0007
    title: str
    policy: str
    decoding: str | None  # None for the traces of an update
    traces: Path
    rewards: Path

    @contextmanager
    def opened(self) -> Iterator[tuple[Path, Path]]:
        """Its two tables, where they can be read."""
        with opened_beside(self.traces) as path:
            yield path, path.with_name(self.rewards.name)


class LogprobBin(NamedTuple):
    """Traces whose earlier attempts the sampler was about as sure of; `mean` is their mean logprob, nats a token."""

    mean: float
    changed: Estimate
    wrong: Estimate


@dataclass(frozen=True)
class PairFacts:
    """What happened between two neighbouring attempts of one policy."""

    flow: Mapping[str, Estimate]  # share of the scored traces, by FLOWS
    changed: Mapping[str, Estimate]  # share with another answer, by the earlier attempt's letter: c, i
    edit_ratios: Mapping[float, int]  # how many traces have each
    bins: Sequence[LogprobBin]


@dataclass(frozen=True)
class SourceFacts:
    """What the page says of one evaluated policy."""

    source: Source
    pairs: Mapping[int, PairFacts]
    verdicts: Sequence[tuple[str, int]]  # `incorrect → correct`, its traces; most first
    traces: int
    fingerprint: str | None


def evaluated_sources(folder: Path, policies: Sequence[str]) -> Iterator[Source]:
    """What eval/ holds: policies in the order given, sampled before greedy; then any others."""
    found: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.glob(f"*{TRACES_SUFFIX}")):
        policy, _, decoding = path.name.removesuffix(TRACES_SUFFIX).rpartition("-")
        if decoding != VOTES:
            found[policy or decoding][decoding] = path
    ranks = {policy: rank for rank, policy in enumerate(policies)}
    for policy in sorted(found, key=lambda name: (ranks.get(name, len(ranks)), name)):
        for decoding, traces in sorted(found[policy].items(), reverse=True):
            key = traces.name.removesuffix(TRACES_SUFFIX)
            rewards = folder / f"{key}{REWARDS_SUFFIX}"
            if rewards.exists():
                yield Source(key, f"{policy}, {decoding}", policy, decoding, traces, rewards)


def check_rewards(metrics: Path, sources: Sequence[Source]) -> None:
    """Make sure that the tables and the figures speak of the same traces.

    Raises:
        UserError: rewards that metrics.parquet was not made of.
    """
    footer = read_footer(metrics, METRICS)
    for source in sources:
        recorded = footer.inputs.get(f"{source.key}-rewards") if footer else None
        if recorded is not None and recorded != file_sha256(source.rewards):
            raise UserError(
                f"{source.rewards} is not what {metrics} was made of: evaluate again, or delete {metrics} to report "
                "without it"
            )


def read_sources(
    evaluated: Sequence[Source],
    updates: Sequence[Source],
    problems: Mapping[str, Problem],
    config: ReportConfig,
    progress: Progress,
) -> tuple[list[SourceFacts], list[Any]]:
    """Go through the traces, a piece of a file in memory at a time; texts are kept of the traces shown alone.

    Returns:
        Facts of the evaluated policies; and the browser of traces as the template takes it: a note and the traces,
        nothing where no trace is shown.
    """
    facts: list[SourceFacts] = []
    shown: list[dict[str, Any]] = []
    groups: dict[str, dict[str, str]] = {"evaluated": {}, "training": {}}
    sources = [*evaluated, *(updates[place] for place in spread(len(updates), config.updates_shown))]
    with progress.phase("reading", len(sources)) as task:
        for number, source in enumerate(sources):
            held_out = number < len(evaluated)
            with source.opened() as tables:
                choice = choose_rows(
                    iterate_graded(*tables), config.traces_per_policy if held_out else config.traces_per_update
                )
                for piece, rows in pieces_with(iterate_graded(*tables), choice.rows):
                    shown += [{"source": number} | _shown_trace(*piece.record(row)) for row in rows]
                if held_out:
                    pairs = {a: pair_facts(iterate_graded(*tables), a) for a in pairs_shown(choice.most_solves)}
                    footer = read_footer(tables[0], TRACES)
                    policy = footer.policy if footer else None
                    facts.append(SourceFacts(source, pairs, choice.verdicts, choice.traces, policy))
            group = groups["evaluated" if held_out else "training"]
            group[source.key] = f"{source.title}: {len(choice.rows)} of {choice.traces}"
            task.advance(1)
    if not shown:
        return facts, []
    of_updates = f" and {config.traces_per_update} of each of {len(groups['training'])} of {len(updates)} updates"
    note = (
        f"At most {config.traces_per_policy} traces of each policy and decoding{of_updates if updates else ''} are on "
        "this page, the rare verdicts as likely as the common; all stand in the run's tables. "
        f"Texts are cut after {MOST_CHARACTERS} characters. Words that the other attempt lacks are marked: struck out "
        "in the first attempt, underlined in later ones."
    )
    words = {"c": "right", "i": "wrong", "u": "unscored"}
    chains = sorted({trace["chain"] for trace in shown}, key=lambda chain: (len(chain), chain))
    names = sorted({trace["problem"] for trace in shown} & set(problems))
    browser = {
        "groups": {name: entries for name, entries in groups.items() if entries},
        "chains": {chain: " → ".join(words[part] for part in chain.split("-")) for chain in chains},
        "data": {
            "sources": [{"key": source.key, "title": source.title} for source in sources],
            "problems": {n: shorten(problems[n].question.strip()) | {"answer": problems[n].answer} for n in names},
            "traces": shown,
        },
    }
    return facts, [note, browser]


def pair_facts(pieces: Iterable[GradedPiece], attempt: int) -> PairFacts:
    """Measure one pair of attempts; traces with fewer attempts are left out.

    Of each trace it holds 13 bytes, see `_Doubts`; all else is added up by problem.
    """
    ratios: Counter[float] = Counter()
    doubts = _Doubts()

    def parts() -> Iterator[pl.DataFrame]:
        for piece in pieces:
            rows = _pair_rows(piece, attempt)
            ratios.update(rows["ratio"].to_list())
            doubts.add(rows.drop_nulls(["logprob", "was_right"]))
            yield rows.group_by("problem_id", maintain_order=True).agg(**_PAIR_SUMS)

    sums = add_up(parts(), ["problem_id"])
    flow = {name: _share(sums, "scored", name) for name in FLOWS if sums["scored"].sum()}
    changed = {name: _share(sums, name, f"{name}-changed") for name in "ci" if sums[name].sum()}
    return PairFacts(flow, changed, ratios, doubts.bins())


def _pair_rows(piece: GradedPiece, attempt: int) -> pl.DataFrame:
    """Of each trace that has the attempt: was the one before right, is this one, and how sure the sampler was."""
    frame = by_turn(piece.frame())
    frame = solves_alone(frame.hstack([_mean_logprobs(frame)]), "logprobs_by_turn")
    return frame.filter(pl.col("attempts").list.len() >= attempt).select(
        "problem_id",
        was_right=accuracy(attempt - 1).cast(pl.Boolean),
        is_right=accuracy(attempt).cast(pl.Boolean),
        changed=changed_answer(attempt),
        logprob=pl.when(~pl.col("given").list.get(attempt - 2)).then(pl.col("logprobs_by_turn").list.get(attempt - 2)),
        ratio=edit_ratio(attempt),
    )


def _pair_sums() -> dict[str, pl.Expr]:
    """By problem: how many traces were scored at both attempts, how many went each way of FLOWS, how many changed."""
    was, now, changed = pl.col("was_right"), pl.col("is_right"), pl.col("changed")
    before, after = {"c": was, "i": ~was}, {"c": now, "i": ~now}
    values = {"scored": was.is_not_null() & now.is_not_null()}
    values |= {flow: before[flow[0]] & after[flow[-1]] & values["scored"] for flow in FLOWS}
    values |= before | {f"{name}-changed": known & changed for name, known in before.items()}
    return {name: value.sum().cast(pl.Int64) for name, value in values.items()}


_PAIR_SUMS = _pair_sums()


class _Doubts:
    """How sure the sampler was of each earlier attempt, and what became of it: columns, a piece at a time."""

    def __init__(self) -> None:
        self._problems: dict[str, int] = {}
        self._parts: list[tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.uint8]]] = []

    def add(self, rows: pl.DataFrame) -> None:
        """Take the rows of `_pair_rows` of which both logprob and verdict are known."""
        problems = self._problems
        numbers = [problems.setdefault(name, len(problems)) for name in rows["problem_id"]]
        fate = rows.select(pl.col("changed").cast(pl.UInt8) + 2 * (~pl.col("was_right")).cast(pl.UInt8)).to_series()
        # Copies: a view would hold the whole piece that the column was cut from.
        self._parts.append((np.array(numbers, np.int32), np.array(rows["logprob"]), np.array(fate)))

    def bins(self) -> list[LogprobBin]:
        """About equally many traces a bin; equal logprobs are never parted."""
        if not self._parts:
            return []
        problems, logprobs, fates = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        wanted = min(MOST_BINS, len(logprobs) // LEAST_TRACES_A_BIN)
        values = np.sort(logprobs)
        edges = sorted({values[index * len(values) // wanted] for index in range(1, wanted)}) if wanted else []
        bounds = [-math.inf, *edges, math.inf]
        bins = []
        for low, high in pairwise(bounds):
            own = (logprobs >= low) & (logprobs < high)
            if own.any():
                mean = math.fsum(logprobs[own]) / int(own.sum())
                shares = (_share_by_number(problems[own], fates[own] & bit != 0) for bit in (1, 2))
                bins.append(LogprobBin(mean, *shares))
        return bins


def pairs_shown(attempts: int) -> list[int]:
    """The first pair of attempts and the last: with ten attempts, the pairs between would fill the page."""
    return sorted({2, attempts}) if attempts >= 2 else []


def mean_logprob(trace: Trace, attempt: int) -> float | None:
    """Mean over the attempt's sampled tokens, in nats; None for an attempt that was given or is empty."""
    own = trace.logprobs[trace.attempt_ids == attempt]
    return None if attempt <= trace.offline_attempts or not len(own) else float(own.mean(dtype="float64"))


class Choice(NamedTuple):
    """Which rows of a source are shown, ascending, and what was seen on the way to them."""

    rows: list[int]
    traces: int
    most_solves: int
    verdicts: list[tuple[str, int]]  # as `SourceFacts`


def choose_rows(pieces: Iterable[GradedPiece], most: int) -> Choice:
    """Which traces to show: every chain of verdicts in turn gives one, until `most` are chosen.

    So the rare chains, which tell most, are there. Within a chain the order is a hash of problem and
    sample, the same for every policy, so that the policies are shown on the same problems where that can be.
    """
    queues: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    counts: Counter[str] = Counter()
    traces = most_solves = 0
    for piece in pieces:
        frame = by_solve(piece.frame())
        most_solves = max(most_solves, most_attempts(frame))
        columns = (piece.rewards.column(name).to_pylist() for name in ("problem_id", "sample_index", "verdicts"))
        for row, (problem, sample, verdicts) in enumerate(zip(*columns, strict=True), start=traces):
            counts[" → ".join(verdicts)] += 1
            rank = hashlib.sha256(f"{problem}\0{sample}".encode()).hexdigest()
            queues["-".join(letters(verdicts))].append((rank, row))
        for queue in queues.values():
            queue[:] = heapq.nsmallest(most, queue)
        traces += frame.height
    turns = sorted((turn, name, row) for name, queue in queues.items() for turn, (_, row) in enumerate(queue))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Choice(sorted(row for _, _, row in turns[:most]), traces, most_solves, ranked)


def pieces_with(pieces: Iterable[GradedPiece], rows: Sequence[int]) -> Iterator[tuple[GradedPiece, list[int]]]:
    """Each piece that has one of some rows, with their places in it."""
    start = 0
    for piece in pieces:
        end = start + piece.traces.num_rows
        own = [row - start for row in rows if start <= row < end]
        if own:
            yield piece, own
        start = end


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread, with the first and the last where two fit."""
    if count <= most or most < 2:
        return list(range(min(count, most)))
    return [round(step * (count - 1) / (most - 1)) for step in range(most)]


def shorten(text: str) -> dict[str, Any]:
    """The text, cut at MOST_CHARACTERS, and how many characters were left out."""
    return {"text": text[:MOST_CHARACTERS], "cut": max(0, len(text) - MOST_CHARACTERS)}


def _shown_trace(trace: Trace, verdict: Verdict) -> dict[str, Any]:
    """One trace as the page's browser takes it."""
    attempts = []
    for index, text in enumerate(trace.attempts):
        logprob = mean_logprob(trace, index + 1)
        facts = {
            "verdict": verdict.verdicts[index],
            "answer": verdict.answers[index],
            "finish": trace.finish_reasons[index],
            "given": index < trace.offline_attempts,
            "tokens": int((trace.attempt_ids == index + 1).sum()),
            "logprob": None if logprob is None else round(logprob, 3),
        }
        attempts.append(shorten(text) | facts)
    for index, facts in enumerate(attempts):
        facts["title"] = turn_title(trace, index)
    chain = "-".join(letters(verdict.verdicts))
    return {"problem": trace.problem_id, "sample": trace.sample_index, "chain": chain, "attempts": attempts}


def _mean_logprobs(frame: pl.DataFrame) -> pl.Series:
    """Of each trace of `by_turn` and each turn the mean of its sampled tokens, nats; null where there are none."""
    tokens = frame.select("attempt_ids", "logprobs").with_row_index().explode("attempt_ids", "logprobs")
    own = [
        pl.col("logprobs").filter(pl.col("attempt_ids") == turn + 1).cast(pl.Float64).mean()
        for turn in range(most_attempts(frame))
    ]
    means = tokens.group_by("index", maintain_order=True).agg(*(mean.alias(str(n)) for n, mean in enumerate(own)))
    return means.select(logprobs_by_turn=pl.concat_list(pl.all().exclude("index"))).to_series()


def _share(sums: pl.DataFrame, count: str, part: str) -> Estimate:
    """Of the traces counted, how many are of a part, with the error clustered by problem."""
    return mean_of_sums(sums.select(count=count, sum=pl.col(part).cast(pl.Float64)))


def _share_by_number(problems: NDArray[np.int32], value: NDArray[np.bool_]) -> Estimate:
    """Of the traces, how many are so, likewise; `problems` numbers the problem of each."""
    counts = np.bincount(problems)
    return mean_of_sums(pl.DataFrame({"count": counts, "sum": np.bincount(problems, value, len(counts))}))
