"""Remote tables and checkpoints: `s3://bucket/key`, or any other address of fsspec, wherever a command takes a path.

A command knows files of this machine alone. Before it runs, what its addresses name is fetched into a mirror; the
command is given the mirror's paths; after it has succeeded, what it wrote there is sent. So a remote output is whole or
not there, as a local one is: a file appears when all of it has arrived, and of a checkpoint `config.json` arrives last.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """

    def __init__(self, url: str, protocol: str) -> None:
        self.url = url.rstrip("/")
        self.protocol = protocol
        folder = mirror_folder() / _digest(self.url)
        self.local = folder / self.url.rsplit("/", 1)[-1]
        self._keys_file = folder.with_suffix(".json")
        self._before: Mapping[str, Any] = {}

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

    def fetch(self) -> None:
        """Make the mirror equal to what is there; what has the key of last time is not fetched again."""
        from score_cli.tables.atomic import replacing_file

        found, had = self._found(), _read_json(self._keys_file)
        if not found or ("" in found) != self.local.is_file():
            _remove(self.local)
        for name, (path, key) in found.items():
            target = self._place(name)
            if had.get(name) != key or not target.exists():
                with replacing_file(target) as arriving, self._in_one_line("fetched"):
                    self._at[0].get_file(path, str(arriving))
        for name in self._stamps().keys() - found.keys():
            self._place(name).unlink()
        self.remember({name: key for name, (_, key) in found.items()})
        self._before = self._stamps()

    def _place(self, name: str) -> Path:
        return self.local / name if name else self.local

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Size and time of each file in the mirror."""
        files = [self.local] if self.local.is_file() else [each for each in self.local.rglob("*") if each.is_file()]
        names = {"" if each == self.local else each.relative_to(self.local).as_posix(): each.stat() for each in files}
        return {name: (found.st_size, found.st_mtime_ns) for name, found in names.items()}

    @property
    def changed(self) -> bool:
        """Whether the command wrote here."""
        return self._stamps() != self._before

    def remember(self, keys: Keys) -> None:
        """The mirror holds what has these keys."""
        _write_json(self._keys_file, keys)

    def send(self) -> None:
        """Make what is there equal to the mirror; a checkpoint is whole at any moment, or none.

        Raises:
            JobError: it cannot be sent, or did not arrive whole.
        """
        system, path = self._at
        there, here = self._found(), sorted(self._stamps(), key=lambda name: (name == _LAST, name))
        with self._in_one_line("sent"):
            for name in sorted(there.keys() - ({*here} - {_LAST}), key=lambda name: name != _LAST):
                system.rm_file(there[name][0])
            for name in here:
                self._send_file(self._place(name), f"{path}/{name}" if name else path)
            sizes = {name: system.size(f"{path}/{name}" if name else path) for name in here}
        if sizes != {name: size for name, (size, _) in self._stamps().items()}:
            raise JobError(f"{self.url} did not arrive whole: run the same command again, which sends it again")
        self.remember(self.keys())

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

    @cached_property
    def _pending(self) -> Path:
        """Says what this command made earlier and could not send: `outputs`, and `keys` of what it was made from."""
        return mirror_folder() / "unsent" / f"{_digest(*self._given)}.json"

    def fetch(self) -> bool:
        """Bring what is there. False where this command has already been done: its output is still to be sent.

        Raises:
            UserError: a run folder is remote.
        """
        if not self.remotes:
            return True
        _refuse_run_folders(self._given)
        pending = _read_json(self._pending)
        if pending and self._keys(but=pending["outputs"]) == pending["keys"]:
            return False
        self._pending.unlink(missing_ok=True)
        for remote in self.remotes.values():
            remote.fetch()
        return True

    def send(self) -> list[str]:
        """Send what the command wrote, or wrote the time before, and return its addresses."""
        if not self.remotes:
            return []
        pending = _read_json(self._pending)
        outputs: list[str] = (
            pending["outputs"] if pending else [url for url, each in self.remotes.items() if each.changed]
        )
        if outputs and not pending:
            _write_json(self._pending, {"outputs": outputs, "keys": self._keys(but=outputs)})
        for url in outputs:
            self.remotes[url].send()
        self._pending.unlink(missing_ok=True)
        return outputs

    def _keys(self, *, but: Sequence[str]) -> dict[str, Keys]:
        return {url: remote.keys() for url, remote in self.remotes.items() if url not in but}

    def in_addresses(self, text: str) -> str:
        """A message with the addresses in the places of the mirror's paths."""
        for remote in self.remotes.values():
            text = text.replace(str(remote.local), remote.url)
        return text


def _refuse_run_folders(arguments: Sequence[str]) -> None:
    named_by = _ON_RUN_FOLDERS.get(arguments[0], set())
    for before, argument in itertools.pairwise(arguments):
        match = _ADDRESS.fullmatch(argument)
        option = "" if match is None else (match["option"] or "").rstrip("=") or (before if before[:2] == "--" else "")
        if match is not None and option in named_by:
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
