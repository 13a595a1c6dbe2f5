"""Writing so that what exists is whole: temporary name, sync, rename."""

import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from score_cli.errors import NO_ROOM, UserError

_EARLIER = "earlier"


def check_output(path: Path, *, overwrite: bool, folder: bool = False) -> None:
    """Refuse, before any work is done, an output that may not be written or replaced.

    Args:
        folder: the output is a checkpoint folder; only a checkpoint or an empty folder is ever replaced by one.
    Raises:
        UserError: `path` exists and `overwrite` is off, or is of the other kind, or cannot have a parent folder.
    """
    if path.exists():
        if not folder and path.is_dir():
            raise UserError(f"{path} is a folder, expected a file to write: name a file in it")
        if folder and not path.is_dir():
            raise UserError(f"{path} is a file, expected a checkpoint folder to replace: name another output")
        if not overwrite:
            raise UserError(f"{path} exists: pass --overwrite to replace it, or name another output")
        if folder and any(path.iterdir()) and not (path / "config.json").exists():
            raise UserError(f"{path} holds files that are no checkpoint, and would lose them: name another output")
        if folder and path.resolve() in (Path.cwd(), *Path.cwd().parents):
            raise UserError(f"{path} is the folder this command runs in: name another output")
    ancestor = path.absolute().parent
    while not ancestor.exists():
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise UserError(f"{ancestor} is not a folder, so {path} cannot be written: name another output")


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
    prefix = f".{path.name}.score-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError), _lock(left):
            _restore(left, path)
            shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    try:
        with _lock(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _restore(workspace: Path, path: Path) -> None:
    """Move a folder that was set aside back, if nothing took its place."""
    if (workspace / _EARLIER).exists() and not path.exists():
        (workspace / _EARLIER).rename(path)


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
def locked_folder(folder: Path) -> Iterator[int]:
    """Hold a folder for this process and the children that inherit the descriptor yielded.

    The kernel lets go when the last of them has ended, however that came about.

    Raises:
        UserError: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is at work there: wait until it has ended, or name another output"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether some process holds a folder. A process that takes hold of it in this very instant is refused."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def resumable_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` for finished parts of it.

    It stays when the block fails or the process dies, for the next writer of `path` to go on from, and
    is gone when the block succeeds.

    Raises:
        UserError: a living process is writing parts of `path`.
    """
    path = path.absolute()
    folder = path.parent / f".{path.name}.parts"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(_lock(folder))
        except BlockingIOError:
            raise UserError(
                f"another process is writing {path}: wait until it has ended, or name another output"
            ) from None
        try:
            yield folder
            shutil.rmtree(folder)
        finally:
            with suppress(OSError):  # what holds no part is no use to anybody
                folder.rmdir()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let whoever finds no room for a file say so alike, with the place: libraries in Rust raise what they like."""
    try:
        yield
    except Exception as error:
        said = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
        if number not in NO_ROOM:
            raise
        assert number is not None
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file path; when the block succeeds it becomes `path`, else it vanishes.

    An earlier `path` stays whole until the rename, which replaces it in one step.
    """
    path = path.absolute()
    with naming(path), _workspace(path) as workspace:
        temporary = workspace / path.name
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; when the block succeeds it becomes `path`, else it vanishes.

    Folders cannot be swapped in one step, so an earlier `path` is moved aside first. It is moved back
    if this process is stopped between the two steps, or by the next one that writes there if it is killed.
    """
    path = path.absolute()
    with naming(path), _workspace(path) as workspace:
        temporary = workspace / "new"
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        _sync(temporary)
        try:
            if path.exists():
                path.rename(workspace / _EARLIER)
            temporary.rename(path)
        finally:
            _restore(workspace, path)
        _sync(path.parent)
