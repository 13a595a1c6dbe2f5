"""What a run tells while it goes: RUN/log.jsonl, a line an update, and the same figures to those who draw them.

The lines hold seconds and a clock, so they are no part of a run's result: two runs of one recipe differ in them alone.
"""

import importlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from score_cli.alarms import Alarm, alarms_of
from score_cli.errors import UserError
from score_cli.phases import Phase
from score_cli.run_config import AlarmsConfig
from score_cli.run_folder import LOG_FILE
from score_cli.tables.atomic import replacing_file
from score_cli.tables.records import Trace, Verdict

# The parts of an update that a policy learns by; whatever else takes time is overhead.
BUSY = ("sample", "verify", "signal", "train", "refresh", "validate")
SINKS = ("tensorboard", "wandb", "trackio")

Entry = dict[str, Any]


class Sink(Protocol):
    """Who draws the figures of a run."""

    def log(self, update: int, values: Mapping[str, float]) -> None:
        """Take the figures of one update, by name."""

    def close(self) -> None:
        """Write down what is still held."""


class RunLog:
    """The log of one run."""

    def __init__(self, folder: Path, last: int, sinks: Sequence[str] = ()) -> None:
        """Args:
            last: the updates that the whole run will have had.
            sinks: names out of `SINKS`.
        Raises:
            UserError: a sink is unknown, or its package is not installed.
        """
        check_sinks(sinks)
        self._path = folder / LOG_FILE
        self._last = last
        self._names = sinks
        self._sinks: list[Sink] | None = None
        self._entries: list[Entry] = []

    def go_on_from(self, update: int) -> None:
        """Forget what was said of this update and later ones: they are done again."""
        self._entries = [entry for entry in read_log(self._path) if entry["update"] < update]
        if self._path.exists():
            with replacing_file(self._path) as temporary:
                temporary.write_text("".join(json.dumps(entry) + "\n" for entry in self._entries))
        if self._sinks is None:
            self._sinks = [open_sink(name, self._path.parent, update) for name in self._names]

    def entry(
        self,
        phase: Phase,
        update: int,
        *,
        traces: Sequence[Trace],
        verdicts: Sequence[Verdict],
        metrics: Sequence[Mapping[str, Any]],
    ) -> Entry:
        """What an update measured; `write` adds what it took."""
        tokens = sum(int((trace.attempt_ids > trace.offline_attempts).sum()) for trace in traces)
        return {
            "update": update,
            "phase": phase.name,
            "phase_first": phase.first,
            "phase_last": phase.last,
            "run_last": self._last,
            "sampled_tokens": tokens,
            "verdicts": verdict_shares(verdicts),
            "metrics": {metric_name(row): row["value"] for row in metrics},
        }

    def alarms(self, entry: Entry, config: AlarmsConfig) -> tuple[list[Alarm], list[Alarm]]:
        """What is wrong after an update, and which of it was not wrong after the update before."""
        found = alarms_of([*self._entries, entry], config)
        known = self._entries[-1].get("alarms", {}) if self._entries else {}
        return found, [alarm for alarm in found if alarm.name not in known]

    def write(self, entry: Entry, seconds: Mapping[str, float], alarms: Sequence[Alarm] = ()) -> None:
        """Say what an update took and measured, and what is wrong after it."""
        entry |= {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": {part: round(value, 4) for part, value in seconds.items()},
            "alarms": {alarm.name: alarm.words for alarm in alarms},
        }
        self._entries.append(entry)
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        for sink in self._sinks or ():
            sink.log(entry["update"], flat(entry))

    def close(self) -> None:
        """Let everybody who draws write down what they hold."""
        for sink in self._sinks or ():
            sink.close()
        self._sinks = None


def read_log(path: Path) -> list[Entry]:
    """The entries of a log, one an update, in order; a line that a killed run left half-written is left out.

    Raises:
        UserError: a line before the last is no entry.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    return list(_entries(path, lines))


def _entries(path: Path, lines: Sequence[str]) -> Iterator[Entry]:
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            entry["update"], entry["seconds"], entry["metrics"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                return
            raise UserError(f"{path}, line {number} is no entry of a run's log: delete the file") from None
        yield entry


def metric_name(row: Mapping[str, Any]) -> str:
    """`kl@t2` for a row of the train metrics that is of one attempt; what is over all keeps its name."""
    return str(row["name"]) if row["attempt"] is None else f"{row['name']}@t{row['attempt']}"


def verdict_shares(verdicts: Sequence[Verdict]) -> dict[str, dict[str, float]]:
    """`t1` -> verdict -> its share among the traces that have the attempt."""
    shares = {}
    for attempt in range(max((len(verdict.verdicts) for verdict in verdicts), default=0)):
        counts = Counter(verdict.verdicts[attempt] for verdict in verdicts if attempt < len(verdict.verdicts))
        shares[f"t{attempt + 1}"] = {name: count / counts.total() for name, count in sorted(counts.items())}
    return shares


def overhead(seconds: Mapping[str, float]) -> float:
    """1 - busy / wall: the share of an update's time that went elsewhere than to sampling, grading and learning."""
    wall = sum(seconds.values())
    return 1 - sum(seconds.get(part, 0.0) for part in BUSY) / wall if wall else 0.0


def flat(entry: Entry) -> dict[str, float]:
    """The figures of an entry under one name each, for a plot: `stage2/kl@t1`, `seconds/sample`, `verdicts/t1/correct`.

    What has a phase's name before it starts anew with each phase, since the phases maximise other things.
    """
    seconds = entry["seconds"]
    found = {f"{entry['phase']}/{name}": value for name, value in entry["metrics"].items()}
    if "validation" in entry:
        found[f"{entry['phase']}/validation"] = entry["validation"]
    found |= {f"seconds/{part}": value for part, value in seconds.items()}
    found["seconds/update"] = sum(seconds.values())
    found["overhead"] = overhead(seconds)
    if seconds.get("sample"):
        found["tokens_per_second"] = entry["sampled_tokens"] / seconds["sample"]
    for attempt, shares in entry["verdicts"].items():
        found |= {f"verdicts/{attempt}/{name}": share for name, share in shares.items()}
    return found


def check_sinks(names: Sequence[str]) -> None:
    """See that whoever shall draw the figures is there, before anything is trained.

    Raises:
        UserError: a name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in SINKS:
            raise UserError(f"run.log_to names {name}, expected some of {', '.join(SINKS)}, with commas between")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"run.log_to names {name}, which is not installed: `pip install {name}`, or leave it out")


def open_sink(name: str, folder: Path, first: int) -> Sink:
    """Somebody who draws, with all that was said from update `first` on forgotten where he can forget."""
    kinds: dict[str, Callable[[Path, int], Sink]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
        "trackio": Trackio,
    }
    return kinds[name](folder, first)


class TensorBoard:
    """Event files under RUN/tensorboard."""

    def __init__(self, folder: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder / "tensorboard", purge_step=first or None)

    def log(self, update: int, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        for name, value in values.items():
            # TensorBoard takes `@` out of names with a warning for each.
            self._writer.add_scalar(name.replace("@", "_"), value, update)
        self._writer.flush()

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()


class WeightsAndBiases:
    """Runs under RUN/wandb, offline unless WANDB_MODE says otherwise; `wandb sync` sends them later."""

    def __init__(self, folder: Path, first: int) -> None:
        wandb = importlib.import_module("wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        # One id for all that a run's processes log, however often it is stopped.
        known = folder / "wandb_id"
        if not known.exists():
            known.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project="score", name=folder.name, id=known.read_text(), dir=str(folder), mode=mode, resume="allow"
        )

    def log(self, update: int, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        self._run.log(dict(values), step=update)

    def close(self) -> None:
        """See `Sink`."""
        self._run.finish()


class Trackio:
    """The project `score` of trackio's own store on this machine; `trackio show` draws it."""

    def __init__(self, folder: Path, first: int) -> None:
        self._trackio = importlib.import_module("trackio")
        self._trackio.init(project="score", name=folder.name, resume="allow")

    def log(self, update: int, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        self._trackio.log(dict(values), step=update)

    def close(self) -> None:
        """See `Sink`."""
        self._trackio.finish()
