"""How stages tell of their progress, without knowing who watches."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One phase of work under way."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count finished work, and say how it stands."""


class Progress(Protocol):
    """Where phases of work are announced."""

    def phase(self, label: str, total: int) -> AbstractContextManager[Task]:
        """Open a phase of `total` steps."""

    def line(self, text: str) -> None:
        """Say one line."""


class Named:
    """Progress whose phases say what they are of: `sampling` is shown as `sampling base, greedy`."""

    def __init__(self, progress: Progress, of: str) -> None:
        self._progress = progress
        self._of = of

    def phase(self, label: str, total: int) -> AbstractContextManager[Task]:
        """Open a phase under its longer name."""
        return self._progress.phase(f"{label} {self._of}", total)

    def line(self, text: str) -> None:
        """Say one line as it is."""
        self._progress.line(text)


class Once:
    """Progress that says a line the first time alone."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._said: set[str] = set()

    def phase(self, label: str, total: int) -> AbstractContextManager[Task]:
        """Open a phase, whether there was one of its name or not."""
        return self._progress.phase(label, total)

    def line(self, text: str) -> None:
        """Say one line, unless it has been said."""
        if text not in self._said:
            self._said.add(text)
            self._progress.line(text)


class _Silence:
    def advance(self, amount: int = 1, note: str = "") -> None:
        """Nobody watches."""

    @contextmanager
    def phase(self, label: str, total: int) -> Iterator[Task]:
        """Nobody watches."""
        yield self

    def line(self, text: str) -> None:
        """Nobody watches."""


SILENT: Progress = _Silence()
