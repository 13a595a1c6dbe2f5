"""Where a table came from: what its Parquet footer says, and the digests that tie files together."""

import functools
import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from score_cli.errors import UserError
from score_cli.tables.schemas import SCHEMA_VERSION

FOOTER_KEY = b"score"
# What a footer's `inputs` call the tables that conversations were built from.
SOLVES, CRITIQUES = "solves", "critiques"


@dataclass(frozen=True, kw_only=True)
class Footer:
    """What the footer records. It holds no clock, host or path: equal inputs give equal bytes.

    `inputs` maps the role of each input file (`problems`, `traces`, ...) to its sha256;
    `policy` is the fingerprint of the policy whose tokens the table holds.
    """

    table: str
    stage: str
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    policy: str | None = None
    schema: int = SCHEMA_VERSION

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal footers are equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @staticmethod
    def from_bytes(raw: bytes, path: Path) -> "Footer":
        """Read a footer back.

        Raises:
            UserError: the footer is not ours, or was written by a newer schema.
        """
        try:
            values = json.loads(raw)
            found = Footer(**values)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: its `score` footer cannot be read ({error}): make the file again") from error
        if found.schema != SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {found.schema}, this program reads {SCHEMA_VERSION}: make the file again"
            )
        return found


def library_versions(*more: str) -> dict[str, str]:
    """Versions of this program and of the libraries that compute: torch, transformers, and any others named."""
    return {"score": _version("score-cli")} | {name: _version(name) for name in ("torch", "transformers", *more)}


@functools.cache
def _version(name: str) -> str:
    # The CPU build of vLLM is published under a name of its own.
    for published in (name, f"{name}-cpu"):
        with suppress(PackageNotFoundError):
            return version(published)
    return "unknown"


def short_digest(digest: str | None) -> str:
    """The part of a digest shown to people."""
    return digest[:12] if digest else "unknown"


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
