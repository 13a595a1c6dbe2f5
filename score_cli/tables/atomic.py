"""Writing so that what exists is whole: temporary name, sync, rename."""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from score_cli.errors import UserError


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse, before any work is done, an output that exists or that has no folder to stand in.

    Raises:
        UserError: `path` exists and `overwrite` is off, or its parent is not a folder.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: pass --overwrite to replace it, or name another output")
    parent = path.absolute().parent
    if parent.exists() and not parent.is_dir():
        raise UserError(f"{parent} is not a folder, so {path} cannot be written: name another output")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _workspace(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, gone when the block ends; those of killed processes are removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}."
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError), _lock(left):
            shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    try:
        with _lock(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold a workspace; the kernel lets go of it when the process dies, however it dies.

    Raises:
        OSError: a living process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file path; when the block succeeds it becomes `path`, else it vanishes.

    An earlier `path` stays whole until the rename, which replaces it in one step.
    """
    path = path.absolute()
    with _workspace(path) as workspace:
        temporary = workspace / path.name
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; when the block succeeds it becomes `path`, else it vanishes.

    Folders cannot be swapped in one step, so an earlier `path` is moved aside first and moved
    back if the second rename fails.
    """
    path = path.absolute()
    with _workspace(path) as workspace:
        temporary = workspace / "new"
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        _sync(temporary)
        earlier = workspace / "earlier"
        if path.exists():
            path.rename(earlier)
        try:
            temporary.rename(path)
        except OSError:
            if earlier.exists():
                earlier.rename(path)
            raise
        _sync(path.parent)
