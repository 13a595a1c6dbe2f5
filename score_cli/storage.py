"""Remote tables and checkpoints: `s3://bucket/key`, or any other address of fsspec, wherever a command takes a path.

A command knows files of this machine alone. Before it runs, what its addresses name is fetched into a mirror; the
command is given the mirror's paths; after it has succeeded, what it wrote there is sent. So a remote output is whole or
not there, as a local one is: a file appears when all of it has arrived, and of a checkpoint `config.json` arrives last.

Commands of one machine share the mirror. One that writes an address has its place there for itself; those that read it
hold it together. The kernel lets go of a place when its process dies.
"""

import fcntl
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from score_cli.errors import JobError, UserError

_ADDRESS = re.compile(r"(?P<option>--[a-z-]+=)?(?P<url>(?P<protocol>[a-z][a-z0-9+]+)://.+)")
# Without it nothing loads a folder as a checkpoint: taken away first and sent last.
_LAST = "config.json"
# Here a file that is being sent is seen when all of it is there. Elsewhere it is sent under another name, and renamed.
_WHOLE_BY_NATURE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
# Commands on run folders, and what names one.
_ON_RUN_FOLDERS = {"run": {"--out", "--fork"}, "status": {""}, "replay": {""}}
# Options whose address is only read; that of any other may be written.
_READ = {
    *("--model", "--reference", "--problems", "--eval-problems", "--validation-problems", "--traces", "--rewards"),
    *("--signals", "--from", "--critiques", "--given-rewards", "--revisions", "--first-attempts", "--escalate", "--by"),
}

Keys = dict[str, str]  # file, relative to an address (empty for the address itself) -> another key when it has changed


def mirror_folder() -> Path:
    """Where remote files lie on this machine: `SCORE_MIRROR`, or `score/mirror` in the user's folder for caches."""
    if given := os.environ.get("SCORE_MIRROR"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "score" / "mirror"


class Remote:
    """One address of a command line, and its place in the mirror.

    Attributes:
        local: where the command finds it and writes it; it keeps the address's last part as its name.
        fetched: the keys of what the mirror was made equal to.
    """

    def __init__(self, url: str, protocol: str) -> None:
        self.url = url.rstrip("/")
        self.protocol = protocol
        self._folder = mirror_folder() / _digest(self.url)
        self.local = self._folder / self.url.rsplit("/", 1)[-1]
        self.fetched: Keys = {}
        self._keys_file = self._folder.with_suffix(".json")
        self._before: Mapping[str, Any] = {}
        self._held: int | None = None
        self._reading = False

    @cached_property
    def _at(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            system, path = url_to_fs(self.url)
        except ImportError as error:
            package = _PACKAGES.get(self.protocol, f"what reads {self.protocol}://")
            raise UserError(f"{self.url} needs a package that is missing ({error}): install {package}") from None
        except ValueError as error:
            raise UserError(f"{self.url}: {error}; expected an address such as s3://bucket/key") from None
        return system, str(path).rstrip("/")

    def _found(self) -> dict[str, tuple[str, str]]:
        """The files that are there: name relative to the address -> path in the file system, and key."""
        system, path = self._at
        with self._in_one_line("reached"):
            system.invalidate_cache()
            if not system.exists(path):
                return {}
            found = {each.removeprefix(path).lstrip("/"): each for each in system.find(path)}
            return {name: (each, str(system.ukey(each))) for name, each in found.items()}

    def keys(self) -> Keys:
        """A key of each file that is there."""
        return {name: key for name, (_, key) in self._found().items()}

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Wait until no other command is taking this place or fetching what is there, and keep others waiting."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._folder.with_suffix(".beginning").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def hold(self, *, reading: bool) -> None:
        """Take the place in the mirror, for this command alone or with others that only read it.

        Raises:
            UserError: another command has it.
        """
        self._held, self._reading = os.open(self._folder, os.O_RDONLY), reading
        if not self._take(fcntl.LOCK_SH if reading else fcntl.LOCK_EX):
            does = "is writing it" if reading else "reads or writes it"
            more = "" if reading else ", or name another output"
            raise UserError(f"{self.url}: another command on this machine {does}: wait until it has ended{more}")

    def let_go(self) -> None:
        """Give the place in the mirror back."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _take(self, kind: int) -> bool:
        assert self._held is not None
        try:
            fcntl.flock(self._held, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def fetch(self) -> None:
        """Make the mirror equal to what is there; what has the key of last time is not fetched again.

        Raises:
            UserError: it has changed, and another command still reads what was there before.
        """
        found = self._found()
        self.fetched = {name: key for name, (_, key) in found.items()}
        if self._mirrored() != self.fetched or (not found and self.local.exists()):
            alone = self._held is None or self._take(fcntl.LOCK_EX)
            if not alone:
                raise UserError(
                    f"{self.url} has changed, and another command on this machine still reads what was there before: "
                    "wait until it has ended"
                )
            self._make_equal(found)
            if self._reading:
                self._take(fcntl.LOCK_SH)  # others wait in `beginning`, so nobody comes between
        self._before = self.stamps()

    def _make_equal(self, found: Mapping[str, tuple[str, str]]) -> None:
        from score_cli.tables.atomic import replacing_file

        had = self._mirrored()
        if not found or ("" in found) != self.local.is_file():
            _remove(self.local)
        for name, (path, key) in found.items():
            target = self._place(name)
            if had.get(name) != key:
                with replacing_file(target) as arriving, self._in_one_line("fetched"):
                    self._at[0].get_file(path, str(arriving))
        for name in self.stamps().keys() - found.keys():
            self._place(name).unlink()
        self._remember(self.fetched)

    def _remember(self, keys: Keys) -> None:
        """The mirror, as it is now, holds what has these keys."""
        stamps = self.stamps()
        _write_json(self._keys_file, {name: [key, stamps[name]] for name, key in keys.items() if name in stamps})

    def _mirrored(self) -> dict[str, str | None]:
        """The key of each file in the mirror as it was fetched or sent; None where it has changed since."""
        known = _read_json(self._keys_file)
        return {
            name: known[name][0] if known.get(name, ())[1:] == [now] else None for name, now in self.stamps().items()
        }

    def _place(self, name: str) -> Path:
        return self.local / name if name else self.local

    def stamps(self) -> dict[str, list[int]]:
        """Size and time of each file in the mirror."""
        files = [self.local] if self.local.is_file() else [each for each in self.local.rglob("*") if each.is_file()]
        names = {"" if each == self.local else each.relative_to(self.local).as_posix(): each.stat() for each in files}
        return {name: [found.st_size, found.st_mtime_ns] for name, found in names.items()}

    @property
    def changed(self) -> bool:
        """Whether the command wrote here."""
        return self.stamps() != self._before

    def send(self) -> None:
        """Make what is there equal to the mirror; a checkpoint is whole at any moment, or none.

        Raises:
            JobError: it cannot be sent, or did not arrive whole.
        """
        system, path = self._at
        there, here = self._found(), sorted(self.stamps(), key=lambda name: (name == _LAST, name))
        if not here:
            raise JobError(f"{self.url}: its place in the mirror is empty, so nothing was sent: run the command again")
        with self._in_one_line("sent"):
            for name in sorted(there.keys() - ({*here} - {_LAST}), key=lambda name: name != _LAST):
                system.rm_file(there[name][0])
            for name in here:
                self._send_file(self._place(name), f"{path}/{name}" if name else path)
            sizes = {name: system.size(f"{path}/{name}" if name else path) for name in here}
        if sizes != {name: size for name, (size, _) in self.stamps().items()}:
            raise JobError(f"{self.url} did not arrive whole: run the same command again, which sends it again")
        self._remember(self.keys())

    def _send_file(self, file: Path, path: str) -> None:
        system, _ = self._at
        if self.protocol in _WHOLE_BY_NATURE:
            system.put_file(str(file), path)
            return
        folder, _, name = path.rpartition("/")
        system.makedirs(folder, exist_ok=True)
        arriving = f"{folder}/.{name}.arriving"
        system.put_file(str(file), arriving)
        system.mv(arriving, path)

    @contextmanager
    def _in_one_line(self, done: str) -> Iterator[None]:
        """What a library raises becomes one line: each has errors of its own."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            more = "; its output is kept, and the same command again sends it" if done == "sent" else ""
            raise JobError(f"{self.url} could not be {done} ({reason}){more}") from error


class Mirror:
    """The addresses among a command line's arguments, and what is still to be sent.

    Attributes:
        arguments: the command line with the mirror's paths in the addresses' places.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.remotes: dict[str, Remote] = {}
        self.arguments = [self._localized(argument) for argument in arguments]
        self._given = arguments

    def _localized(self, argument: str) -> str:
        match = _ADDRESS.fullmatch(argument)
        if match is None:
            return argument
        remote = Remote(match["url"], match["protocol"])
        return f"{match['option'] or ''}{self.remotes.setdefault(remote.url, remote).local}"

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        for remote in self.remotes.values():
            remote.let_go()

    @cached_property
    def _pending(self) -> Path:
        """Says what this command made earlier and could not send.

        `command`: itself; `outputs`: their addresses, with the files' stamps in the mirror; `keys`: of its inputs.
        """
        return _unsent_folder() / f"{_digest(*self._given)}.json"

    def fetch(self) -> bool:
        """Bring what is there. False where this command has already been done: its output is still to be sent.

        Raises:
            UserError: a run folder is remote, another command is at work on an address, or has yet to send it.
        """
        if not self.remotes:
            return True
        _refuse_run_folders(self._given)
        written = {match["url"].rstrip("/") for option, match in _addresses(self._given) if option not in _READ}
        remotes = sorted(self.remotes.values(), key=lambda remote: remote.local)
        with ExitStack() as beginnings:
            for remote in remotes:  # in the order of every other command: none waits for one that waits for it
                beginnings.enter_context(remote.beginning())
            for remote in remotes:
                remote.hold(reading=remote.url not in written)
                self._refuse_unsent_of_others(remote.url)
            if self._is_done():
                return False
            self._pending.unlink(missing_ok=True)
            for remote in remotes:
                remote.fetch()
        return True

    def _is_done(self) -> bool:
        """Whether this command has been done, on the same inputs, and the mirror still holds what it made."""
        pending = _read_json(self._pending)
        if not pending:
            return False
        made = {url: self.remotes[url].stamps() for url in pending["outputs"]}
        inputs = {url: remote.keys() for url, remote in self.remotes.items() if url not in made}
        return bool(made == pending["outputs"] and inputs == pending["keys"])

    def _refuse_unsent_of_others(self, url: str) -> None:
        for file in sorted(_unsent_folder().glob("*.json")):
            pending = _read_json(file)
            if file != self._pending and url in pending.get("outputs", ()):
                raise UserError(
                    f"{url} has yet to be sent by `score {shlex.join(pending['command'])}`: run that command again, "
                    f"or delete {file} to do without its output"
                )

    def send(self) -> list[str]:
        """Send what the command wrote, or wrote the time before, and return its addresses."""
        if not self.remotes:
            return []
        outputs = _read_json(self._pending).get("outputs")
        if outputs is None:
            outputs = {url: each.stamps() for url, each in self.remotes.items() if each.changed}
            keys = {url: each.fetched for url, each in self.remotes.items() if url not in outputs}
            if outputs:
                _write_json(self._pending, {"command": [*self._given], "outputs": outputs, "keys": keys})
        for url in outputs:
            self.remotes[url].send()
        self._pending.unlink(missing_ok=True)
        return list(outputs)

    def in_addresses(self, text: str) -> str:
        """A message with the addresses in the places of the mirror's paths."""
        for remote in self.remotes.values():
            text = text.replace(str(remote.local), remote.url)
        return text


def _unsent_folder() -> Path:
    return mirror_folder() / "unsent"


def _addresses(arguments: Sequence[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """The addresses among arguments, each with the option that it stands behind (empty for none)."""
    for before, argument in itertools.pairwise(["", *arguments]):
        if (match := _ADDRESS.fullmatch(argument)) is not None:
            yield (match["option"] or "").rstrip("=") or (before if before[:2] == "--" else ""), match


def _refuse_run_folders(arguments: Sequence[str]) -> None:
    for option, match in _addresses(arguments):
        if option in _ON_RUN_FOLDERS.get(arguments[0], ()):
            raise UserError(
                f"{match['url']}: a run folder is written again and again, expected a folder of this machine: "
                "copy it to there when the run has ended"
            )


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _write_json(path: Path, value: Any) -> None:
    from score_cli.tables.atomic import replacing_file

    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(value))
