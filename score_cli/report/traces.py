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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from score_cli.config import ReportConfig
from score_cli.errors import UserError
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

    Of each trace it holds a few bytes: which problem it is of, how sure the sampler was, and what became of it.
    """
    ratios: Counter[float] = Counter()
    frames = []
    for piece in pieces:
        frame = by_turn(piece.frame())
        frame = solves_alone(frame.hstack([_mean_logprobs(frame)]), "logprobs_by_turn")
        rows = frame.filter(pl.col("attempts").list.len() >= attempt).select(
            "problem_id",
            was_right=accuracy(attempt - 1).cast(pl.Boolean),
            is_right=accuracy(attempt).cast(pl.Boolean),
            changed=changed_answer(attempt),
            logprob=pl.when(~pl.col("given").list.get(attempt - 2)).then(
                pl.col("logprobs_by_turn").list.get(attempt - 2)
            ),
            ratio=edit_ratio(attempt),
        )
        ratios.update(rows["ratio"].to_list())
        frames.append(rows.drop("ratio"))
    rows = pl.concat(frames)
    return PairFacts(
        flow=_flow(rows),
        changed={
            name: _share(alike, pl.col("changed"))
            for name, right in (("c", True), ("i", False))
            if (alike := rows.filter(pl.col("was_right") == right)).height
        },
        edit_ratios=ratios,
        bins=_logprob_bins(rows),
    )


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


def _share(rows: pl.DataFrame, value: pl.Expr) -> Estimate:
    """Of the traces, how many are so, with the error clustered by problem."""
    sums = rows.group_by("problem_id", maintain_order=True).agg(count=pl.len(), sum=value.sum().cast(pl.Float64))
    return mean_of_sums(sums)


def _flow(rows: pl.DataFrame) -> dict[str, Estimate]:
    scored = rows.drop_nulls(["was_right", "is_right"])
    if scored.is_empty():
        return {}
    sides = [pl.col(name).replace_strict({True: "c", False: "i"}) for name in ("was_right", "is_right")]
    chain = pl.concat_str(sides, separator="-")
    return {flow: _share(scored, chain == flow) for flow in FLOWS}


def _logprob_bins(rows: pl.DataFrame) -> list[LogprobBin]:
    """About equally many traces a bin; equal logprobs are never parted."""
    known = rows.drop_nulls(["logprob", "was_right"])
    values = known["logprob"].sort()
    wanted = min(MOST_BINS, len(values) // LEAST_TRACES_A_BIN)
    edges = sorted({values[index * len(values) // wanted] for index in range(1, wanted)}) if wanted else []
    places = np.searchsorted(edges, known["logprob"].to_numpy(), side="right")
    bins = []
    for part in (
        known.with_columns(bin=pl.Series(places))
        .sort("bin", maintain_order=True)
        .partition_by("bin", maintain_order=True)
    ):
        mean = math.fsum(part["logprob"]) / part.height
        bins.append(LogprobBin(mean, _share(part, pl.col("changed")), _share(part, ~pl.col("was_right"))))
    return bins
