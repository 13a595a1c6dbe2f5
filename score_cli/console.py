"""Progress on a terminal: rich bars with rate and time left, plain lines where there is no terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from score_cli.progress import Progress, Task

SECONDS_BETWEEN_LINES = 10.0
# Columns of a terminal on which long bars leave room for what is said beside them.
_WIDE = 110
_spell: ContextVar[Callable[[str], str]] = ContextVar("spell", default=str)


@contextmanager
def spelled(spell: Callable[[str], str]) -> Iterator[None]:
    """Pass each line that is said within through `spell`: it may hold other names than the user gave."""
    token = _spell.set(spell)
    try:
        yield
    finally:
        _spell.reset(token)


def say(text: str) -> None:
    """Print one line to standard error."""
    print(_spell.get()(text), file=sys.stderr, flush=True)


def make_progress() -> Progress:
    """The progress display that fits standard error."""
    return _Bars() if sys.stderr.isatty() else _Lines()


class _Bars:
    """Bars of phases, nested phases one under the other."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        console = Console(stderr=True)
        self._rich = RichProgress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24 if console.width >= _WIDE else 8),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            # It alone gives way where the terminal is narrow: a number cut short is another number.
            TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=console,
            expand=True,
        )
        self._open = 0

    @contextmanager
    def phase(self, label: str, total: int) -> Iterator[Task]:
        """Show a bar until the phase ends."""
        if self._open == 0:
            self._rich.start()
        self._open += 1
        bar = self._rich.add_task(label, total=total, note="")
        started = time.monotonic()
        try:
            yield _Bar(self, bar)
        finally:
            self._rich.remove_task(bar)
            self._open -= 1
            if self._open == 0:
                self._rich.stop()
        self.line(f"{label}: {total} in {_clock(time.monotonic() - started)}")

    def advance(self, bar: int, amount: int, note: str) -> None:
        """Move one bar."""
        from rich.progress import TaskID

        if note:
            self._rich.update(TaskID(bar), note=note)
        self._rich.advance(TaskID(bar), amount)

    def line(self, text: str) -> None:
        """Print above the bars."""
        self._rich.console.print(_spell.get()(text), highlight=False, markup=False, soft_wrap=True)


class _Bar:
    def __init__(self, bars: _Bars, bar: int) -> None:
        self._bars = bars
        self._bar = bar

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Move this bar."""
        self._bars.advance(self._bar, amount, note)


class _Lines:
    """A line now and then, for logs."""

    @contextmanager
    def phase(self, label: str, total: int) -> Iterator[Task]:
        """Say where the phase stands every ten seconds, and how long it took."""
        lines = _PhaseLines(label, total)
        yield lines
        lines.say_done()

    def line(self, text: str) -> None:
        """Print one line to standard error."""
        say(text)


class _PhaseLines:
    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._done = 0
        self._started = self._last = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count, and print if the last line is old."""
        self._done += amount
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES or not self._done:
            return
        self._last = now
        rate = self._done / (now - self._started)
        left = _clock((self._total - self._done) / rate)
        told = f"; {note}" if note else ""
        print(
            f"{self._label}: {self._done}/{self._total}, {rate:.1f}/s, {left} left{told}",
            file=sys.stderr,
            flush=True,
        )

    def say_done(self) -> None:
        """Print the phase's length and duration."""
        elapsed = _clock(time.monotonic() - self._started)
        print(f"{self._label}: {self._total} in {elapsed}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)} min {rest:.0f} s" if minutes else f"{rest:.1f} s"
