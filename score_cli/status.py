"""`score status`: where a run stands, from its log."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from score_cli.errors import UserError
from score_cli.phases import CONFIG_FILE
from score_cli.run_folder import LOG_FILE, RunFolder
from score_cli.run_log import Entry, overhead, read_log
from score_cli.tables.atomic import is_locked

# An expected end goes by the latest updates: lengths change while a policy learns.
LATEST = 20


@dataclass(frozen=True)
class Pace:
    """What the latest updates took.

    Attributes:
        seconds: median of an update, wall-clock.
        shares: part of the work -> its share of that time.
        overhead: 1 - busy / wall.
        tokens_per_second: sampled tokens over the seconds of sampling.
        count: how many updates these are.
    """

    seconds: float
    shares: dict[str, float]
    overhead: float
    tokens_per_second: float
    count: int


def pace_of(entries: Sequence[Entry]) -> Pace:
    """The pace of the latest updates of the latest phase."""
    latest = [entry for entry in entries if entry["phase"] == entries[-1]["phase"]][-LATEST:]
    totals: dict[str, float] = {}
    for entry in latest:
        for part, seconds in entry["seconds"].items():
            totals[part] = totals.get(part, 0.0) + seconds
    wall = sum(totals.values())
    sampling = totals.get("sample", 0.0)
    return Pace(
        seconds=statistics.median(sum(entry["seconds"].values()) for entry in latest),
        shares={part: seconds / wall if wall else 0.0 for part, seconds in totals.items()},
        overhead=overhead(totals),
        tokens_per_second=sum(entry["sampled_tokens"] for entry in latest) / sampling if sampling else 0.0,
        count=len(latest),
    )


def status_lines(root: Path) -> list[str]:
    """What a person wants to know of a run, line by line.

    Raises:
        UserError: the folder holds no run.
    """
    if not (root / CONFIG_FILE).exists():
        raise UserError(f"{root} holds no run: name a folder that `score run` wrote into, such as runs/quickstart")
    entries = read_log(root / LOG_FILE)
    running = is_locked(root)
    finished = RunFolder(root).metrics.exists()
    state = "running" if running else "finished" if finished else "stopped: the command that began it goes on with it"
    if not entries:
        return [f"{root}: {state}; no update yet"]
    last = entries[-1]
    done, phase_done = last["update"] + 1, last["update"] + 1 - last["phase_first"]
    lines = [
        f"{root}: {state}",
        f"{last['phase']}: update {phase_done} of {last['phase_last'] - last['phase_first']}; "
        f"{done} of the run's {last['run_last']}",
        *_pace_lines(pace_of(entries)),
        *_verdict_lines(last),
        f"last update: {_figures(last)}",
        *(f"alarm {name}: {words}" for name, words in last.get("alarms", {}).items()),
    ]
    if running and done < last["run_last"]:
        end = datetime.fromisoformat(last["time"]) + timedelta(seconds=_left(entries))
        lines.append(f"ends about {end.astimezone():%Y-%m-%d %H:%M}, at this pace; the evaluation comes after")
    return lines


def _left(entries: Sequence[Entry]) -> float:
    """Seconds that the updates to come will take, at the pace of the latest."""
    updates: int = entries[-1]["run_last"] - entries[-1]["update"] - 1
    return updates * pace_of(entries).seconds


def _pace_lines(pace: Pace) -> list[str]:
    parts = ", ".join(f"{part} {share:.0%}" for part, share in sorted(pace.shares.items(), key=lambda item: -item[1]))
    return [
        f"an update takes {pace.seconds:.3g} s (median of {pace.count}): {parts}; overhead {pace.overhead:.1%}",
        f"{pace.tokens_per_second:,.0f} tokens sampled a second",
    ]


def _verdict_lines(entry: Entry) -> list[str]:
    return [
        f"verdicts {attempt}: " + ", ".join(f"{name} {share:.0%}" for name, share in _by_share(shares))
        for attempt, shares in entry["verdicts"].items()
    ]


def _by_share(shares: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda item: (-item[1], item[0]))


def _figures(entry: Entry) -> str:
    """Those of the last update by which a run that goes wrong is seen first."""
    wanted = ("reward", "kl", "entropy", "length", "grad_norm", "logprob_diff_abs")
    named = {name: value for name, value in entry["metrics"].items() if name.split("@")[0] in wanted}
    return ", ".join(f"{name} {value:.3g}" for name, value in named.items())
