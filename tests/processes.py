"""Processes of this machine, by their number."""

from collections.abc import Iterator
from pathlib import Path


def runs(process: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent to ask does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descendants(process: int) -> Iterator[int]:
    """The children of a process, and theirs."""
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            yield child
            yield from descendants(child)
