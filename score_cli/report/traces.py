"""The traces of a report: where they lie, what is measured on them, and which of them the page shows to browse.

`attempt` is the later one of a pair of neighbouring attempts, counted from 1: pair 2 is y1 to y2. An unscored attempt
is left out of whatever needs its verdict.
"""

import bisect
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from score_cli.config import ReportConfig
from score_cli.errors import UserError
from score_cli.evaluation.votes import VOTES
from score_cli.metrics import Estimate, accuracy, changed_answer, clustered_mean, edit_ratio, letters, solves_of
from score_cli.progress import Progress
from score_cli.tables.parquet import METRICS, TRACES, read_footer
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import Problem, Trace, Verdict, turn_title
from score_cli.tables.traces import read_pair
from score_cli.tables.updates import opened_beside

TRACES_SUFFIX = ".traces.parquet"
REWARDS_SUFFIX = ".rewards.parquet"
# From verdict to verdict: the order in which flows are listed and drawn.
FLOWS = ("c-c", "c-i", "i-c", "i-i")
MOST_BINS = 8
LEAST_TRACES_A_BIN = 8
# A longer attempt is cut on the page, so that the page's size is bounded.
MOST_CHARACTERS = 4000

Rows = Sequence[tuple[Trace, Verdict]]


@dataclass(frozen=True)
class Source:
    """Traces and rewards of one policy: evaluated in one decoding, or sampled for one update."""

    key: str  # base-sampled, or update-0007
    title: str
    policy: str
    decoding: str | None  # None for the traces of an update
    traces: Path
    rewards: Path

    def read(self) -> tuple[Rows, str | None]:
        """The rows, and the fingerprint of the policy they were sampled from, where the footer says it.

        Raises:
            UserError: the two files do not belong together.
        """
        with opened_beside(self.traces) as path:
            pair, footer = read_pair(path, path.with_name(self.rewards.name)), read_footer(path, TRACES)
        return list(zip(*pair, strict=True)), footer.policy if footer else None


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
    edit_ratios: Sequence[float]
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
    """Go through the traces, one file in memory at a time.

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
            rows, fingerprint = source.read()
            if number < len(evaluated):
                solves = [solves_of(*row) for row in rows]
                most_solves = max(len(trace.attempts) for trace, _ in solves)
                pairs = {a: pair_facts(solves, a) for a in pairs_shown(most_solves)}
                counts = Counter(" → ".join(verdict.verdicts) for _, verdict in rows)
                ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
                facts.append(SourceFacts(source, pairs, ranked, len(rows), fingerprint))
            most = config.traces_per_policy if number < len(evaluated) else config.traces_per_update
            chosen = choose_rows([verdict for _, verdict in rows], most)
            shown += [{"source": number} | _shown_trace(*rows[row]) for row in chosen]
            group = groups["evaluated" if number < len(evaluated) else "training"]
            group[source.key] = f"{source.title}: {len(chosen)} of {len(rows)}"
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


def pair_facts(rows: Rows, attempt: int) -> PairFacts:
    """Measure one pair of attempts; traces with fewer attempts are left out."""
    rows = [row for row in rows if len(row[0].attempts) >= attempt]
    return PairFacts(
        flow=_flow(rows, attempt),
        changed={name: found for name in "ci" if (found := _changed(rows, attempt, name))},
        edit_ratios=[edit_ratio(*row, attempt) or 0.0 for row in rows],
        bins=_logprob_bins(rows, attempt),
    )


def pairs_shown(attempts: int) -> list[int]:
    """The first pair of attempts and the last: with ten attempts, the pairs between would fill the page."""
    return sorted({2, attempts}) if attempts >= 2 else []


def mean_logprob(trace: Trace, attempt: int) -> float | None:
    """Mean over the attempt's sampled tokens, in nats; None for an attempt that was given or is empty."""
    own = trace.logprobs[trace.attempt_ids == attempt]
    return None if attempt <= trace.offline_attempts or not len(own) else float(own.mean(dtype="float64"))


def choose_rows(verdicts: Sequence[Verdict], most: int) -> list[int]:
    """Which traces to show: every chain of verdicts in turn gives one, until `most` are chosen.

    So the rare chains, which tell most, are there. Within a chain the order is a hash of problem and
    sample, the same for every policy, so that the policies are shown on the same problems where that can be.

    Returns:
        Row numbers, ascending.
    """

    def rank(row: int) -> str:
        return hashlib.sha256(f"{verdicts[row].problem_id}\0{verdicts[row].sample_index}".encode()).hexdigest()

    queues: defaultdict[str, list[int]] = defaultdict(list)
    for row in sorted(range(len(verdicts)), key=rank):
        queues["-".join(letters(verdicts[row]))].append(row)
    turns = sorted((turn, name, row) for name, queue in queues.items() for turn, row in enumerate(queue))
    return sorted(row for _, _, row in turns[:most])


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
    chain = "-".join(letters(verdict))
    return {"problem": trace.problem_id, "sample": trace.sample_index, "chain": chain, "attempts": attempts}


def _estimate(rows: Rows, value: Callable[[Trace, Verdict], float | None]) -> Estimate:
    return clustered_mean([value(*row) or 0.0 for row in rows], [trace.problem_id for trace, _ in rows])


def _flow(rows: Rows, attempt: int) -> dict[str, Estimate]:
    chains = ["-".join(letters(verdict)[attempt - 2 : attempt]) for _, verdict in rows]
    scored = [(row[0].problem_id, chain) for row, chain in zip(rows, chains, strict=True) if "u" not in chain]
    if not scored:
        return {}
    names = [name for name, _ in scored]
    return {flow: clustered_mean([float(chain == flow) for _, chain in scored], names) for flow in FLOWS}


def _changed(rows: Rows, attempt: int, letter: str) -> Estimate | None:
    alike = [row for row in rows if letters(row[1])[attempt - 2] == letter]
    return _estimate(alike, lambda trace, verdict: changed_answer(trace, verdict, attempt)) if alike else None


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
        alike = [row for _, row in part]
        changed = _estimate(alike, lambda trace, verdict: changed_answer(trace, verdict, attempt))
        wrong = _estimate(alike, lambda trace, verdict: 1.0 - (accuracy(trace, verdict, attempt - 1) or 0.0))
        bins.append(LogprobBin(sum(value for value, _ in part) / len(part), changed, wrong))
    return bins
