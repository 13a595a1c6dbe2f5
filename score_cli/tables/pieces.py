"""A table in pieces, of which the first are in memory and the others in a file without a name."""

import mmap
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple, overload

import pyarrow as pa

from score_cli.tables.atomic import naming

# An update's batch of some thousand traces stays in memory; ten million would be 10 GB.
IN_MEMORY = 256 * 2**20


class Place(NamedTuple):
    """Where in the file a piece stands, in bytes."""

    start: int
    size: int


class Pieces(Sequence[pa.Table]):
    """Pieces of one table, to be read again and again, in any order.

    From `in_memory` bytes of columns on they are kept in a file in TMPDIR, which goes with this process however it
    ends. A piece of it is mapped when it is asked for, as long as anything holds it.
    """

    def __init__(self, *, in_memory: int = IN_MEMORY) -> None:
        self._room = in_memory
        self._held: list[pa.Table] = []
        self._places: list[Place] = []
        self._file: IO[bytes] | None = None
        self._schema: pa.Schema = None

    def append(self, piece: pa.Table) -> None:
        """Keep one more.

        Raises:
            OSError: TMPDIR has no room.
        """
        if self._file is None and piece.nbytes <= self._room:
            self._room -= piece.nbytes
            self._held.append(piece)
            return
        if self._file is None:
            self._schema = piece.schema
            # It lives as long as this object.
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        (batch,) = piece.combine_chunks().to_batches()
        # A mapping begins at a page.
        start = -(-self._file.tell() // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._file.seek(start)
        with naming(Path(tempfile.gettempdir())):
            self._places.append(Place(start, self._file.write(batch.serialize())))
            self._file.flush()

    def __len__(self) -> int:
        return len(self._held) + len(self._places)

    @overload
    def __getitem__(self, index: int) -> pa.Table: ...

    @overload
    def __getitem__(self, index: slice) -> list[pa.Table]: ...

    def __getitem__(self, index: int | slice) -> pa.Table | list[pa.Table]:
        numbers = range(len(self))[index]
        return self._piece(numbers) if isinstance(numbers, int) else [self._piece(number) for number in numbers]

    def row(self, number: int, place: int) -> pa.Table:
        """One row of a piece; of one that is mapped a copy, so that rows that are kept do not keep a mapping each."""
        piece = self._piece(number)
        return piece.slice(place, 1) if number < len(self._held) else piece.take([place])

    def _piece(self, number: int) -> pa.Table:
        if number < len(self._held):
            return self._held[number]
        assert self._file is not None
        start, size = self._places[number - len(self._held)]
        mapped = mmap.mmap(self._file.fileno(), size, offset=start, access=mmap.ACCESS_READ)
        return pa.Table.from_batches([pa.ipc.read_record_batch(pa.py_buffer(mapped), self._schema)])
