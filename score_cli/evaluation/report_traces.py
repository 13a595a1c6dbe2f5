"""The traces of a report: what is measured on them, and which of them its page shows to browse."""

from dataclasses import dataclass
from typing import Any

from score_cli.config import ReportConfig
from score_cli.evaluation.report_run import RunFolder, Source
from score_cli.evaluation.report_stats import (
    MOST_CHARACTERS,
    PairFacts,
    choose_rows,
    pair_facts,
    pairs_shown,
    shorten,
    shown_trace,
    spread,
    verdict_counts,
)
from score_cli.progress import Progress
from score_cli.tables.records import Problem


@dataclass(frozen=True)
class SourceFacts:
    """What the page says of one evaluated policy."""

    source: Source
    pairs: dict[int, PairFacts]
    verdicts: list[tuple[str, int]]
    traces: int
    fingerprint: str | None


@dataclass(frozen=True)
class Listed:
    """A source in the browser of traces, and how many of its traces are on the page."""

    source: Source
    shown: int
    total: int


def read_sources(
    folder: RunFolder, settings: ReportConfig, progress: Progress
) -> tuple[list[SourceFacts], dict[str, Any]]:
    """Go through the traces, one file in memory at a time: facts of the policies, and the traces to show."""
    facts: list[SourceFacts] = []
    shown: list[dict[str, Any]] = []
    listed: list[Listed] = []
    updates = [folder.updates[place] for place in spread(len(folder.updates), settings.updates_shown)]
    every = [*folder.evaluated, *updates]
    with progress.phase("reading", len(every)) as task:
        for source in every:
            rows, fingerprint = source.read()
            evaluated = source.decoding is not None
            if evaluated:
                pairs = {a: pair_facts(rows, a) for a in pairs_shown(max(len(trace.attempts) for trace, _ in rows))}
                verdicts = verdict_counts(reward for _, reward in rows)
                facts.append(SourceFacts(source, pairs, verdicts, len(rows), fingerprint))
            most = settings.traces_per_policy if evaluated else settings.traces_per_update
            chosen = choose_rows([reward for _, reward in rows], most)
            shown += [{"source": len(listed)} | shown_trace(*rows[row]) for row in chosen]
            listed.append(Listed(source, len(chosen), len(rows)))
            task.advance(1)
    return facts, _browser(folder, settings, listed, shown)


def _browser(
    folder: RunFolder, settings: ReportConfig, listed: list[Listed], shown: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the template shows around the traces, and the data of the page's script; None where no trace is shown."""
    groups = {
        "evaluated": [entry for entry in listed if entry.source.decoding is not None],
        "training": [entry for entry in listed if entry.source.decoding is None],
    }
    names = sorted({trace["problem"] for trace in shown})
    words = {"c": "right", "i": "wrong", "u": "unscored"}
    chains = sorted({trace["chain"] for trace in shown}, key=lambda chain: (len(chain), chain))
    of_updates = (
        f" and {settings.traces_per_update} of each of {len(groups['training'])} of {len(folder.updates)} updates"
        if groups["training"]
        else ""
    )
    note = (
        f"At most {settings.traces_per_policy} traces of each policy and decoding{of_updates} are on this page, the "
        "rare verdicts as likely as the common; all stand in the run's tables. "
        f"Texts are cut after {MOST_CHARACTERS} characters. Words that the other attempt lacks are marked: struck out "
        "in the first attempt, underlined in later ones."
    )
    return {
        "note": note,
        "groups": {name: entries for name, entries in groups.items() if entries},
        "chains": [(chain, " → ".join(words[part] for part in chain.split("-"))) for chain in chains],
        "traces": {
            "sources": [{"key": entry.source.key, "title": entry.source.title} for entry in listed],
            "problems": {name: _problem(folder.problems[name]) for name in names if name in folder.problems},
            "traces": shown,
        }
        if shown
        else None,
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return shorten(problem.question.strip()) | {"answer": problem.answer}
