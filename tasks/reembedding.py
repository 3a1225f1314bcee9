"""A gallery for a new embedder: all stored pictures embedded again beside the old matrix, then one switch.

Reading and enrolling go on meanwhile, with the old embedder. What was enrolled in the meantime is embedded at the end,
with writers held off; the switch is one transaction, so that a reader sees the old gallery or the new one, all of it.
New vectors wait in a file without a name, which ends with the process: one that is killed leaves the old gallery and
nothing else. `embed` is any function from encoded crops to unit vectors, so that a pool of workers may be behind it.
"""

import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tasks.gallerystore import (
    Embedder,
    State,
    connect,
    finish_removals,
    put_embedder,
    read_state,
    tidy,
    writing,
)
from tasks.identification import templates
from tasks.vectors import make_planes, write_rows
from tasks.verification import check_unit

Embed = Callable[[Sequence[bytes]], np.ndarray]  # encoded aligned crops -> (N, D) float32 of unit length
PEOPLE_AT_ONCE = 4096


class NewVectors:
    """Vectors by the number of their picture, in a file without a name."""

    def __init__(self, folder: Path, num_dims: int) -> None:
        self.num_dims = num_dims
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as this object
        self._ids: list[int] = []  # rising

    @property
    def last(self) -> int:
        return self._ids[-1] if self._ids else 0

    def add(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        self._file.seek(0, 2)
        self._file.write(vectors.astype("<f4").tobytes())
        self._ids.extend(ids)

    def of(self, ids: np.ndarray) -> np.ndarray:
        """The vectors of pictures, (N, D)."""
        self._file.flush()
        every = np.memmap(self._file, "<f4", "r", shape=(len(self._ids), self.num_dims))
        return np.asarray(every[np.searchsorted(self._ids, ids)])

    def close(self) -> None:
        self._file.close()


def re_embed(
    folder: Path,
    embedder: Embedder,
    embed: Embed,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Embed every picture of a gallery anew and switch; the number of pictures. `progress` gets how many of how many.

    Raises ValueError, and changes nothing, where `embed` gives what is not one unit vector a picture.
    """
    connection = connect(folder)
    vectors = NewVectors(folder, embedder.num_dims)
    done = 0
    try:
        while len(batch := _after(connection, vectors.last, batch_size)) == batch_size:
            _embed(batch, vectors, embed)
            done += len(batch)
            if progress:
                progress(done, int(connection.execute("SELECT COUNT(*) FROM picture").fetchone()[0]))
        with writing(connection):
            state = read_state(connection)
            tidy(folder, state)
            while batch := _after(connection, vectors.last, batch_size):
                _embed(batch, vectors, embed)
            count = _switch(connection, folder, state, put_embedder(connection, embedder), vectors.of)
        _tidy_up(connection, folder)
        if progress:
            progress(count, count)
        return count
    finally:
        vectors.close()
        connection.close()


def rebuild(folder: Path) -> int:
    """Write the matrix anew from the vectors in the database, without rows of nobody; the number of pictures.

    For a matrix that was lost or damaged, and after many removals.
    """
    connection = connect(folder)

    def stored(ids: np.ndarray) -> np.ndarray:
        found = [
            connection.execute("SELECT vector FROM picture WHERE id = ?", (number,)).fetchone()[0]
            for number in ids.tolist()
        ]
        return np.stack([np.frombuffer(vector, "<f4") for vector in found])

    try:
        with writing(connection):
            state = read_state(connection)
            count = _switch(connection, folder, state, state.embedder_id, stored)
        _tidy_up(connection, folder)
        return count
    finally:
        connection.close()


def _after(connection: sqlite3.Connection, last: int, limit: int) -> list[tuple[int, bytes]]:
    return connection.execute(
        "SELECT id, encoded FROM picture WHERE id > ? ORDER BY id LIMIT ?", (last, limit)
    ).fetchall()


def _embed(batch: Sequence[tuple[int, bytes]], vectors: NewVectors, embed: Embed) -> None:
    ids, encoded = zip(*batch, strict=True)
    found = np.asarray(embed(encoded))
    if found.shape != (len(batch), vectors.num_dims):
        raise ValueError(
            f"embedding {len(batch)} pictures gave an array {found.shape}; it must be {(len(batch), vectors.num_dims)}"
        )
    check_unit(found)
    vectors.add(ids, found)


def _switch(
    connection: sqlite3.Connection,
    folder: Path,
    state: State,
    embedder_id: int,
    vectors_of: Callable[[np.ndarray], np.ndarray],
) -> int:
    """Inside a writing transaction: the next generation of the matrix, of the vectors that pictures now have."""
    rows = np.array(
        connection.execute("SELECT person, id FROM picture ORDER BY person, id").fetchall(), np.int64
    ).reshape(-1, 2)
    people, starts = np.unique(rows[:, 0], return_index=True)
    ends = np.append(starts[1:], len(rows))
    generation = state.generation + 1
    make_planes(folder, generation)
    connection.execute("UPDATE person SET slot = -id")  # out of the way of the new ones
    for first in range(0, len(people), PEOPLE_AT_ONCE):
        last = min(first + PEOPLE_AT_ONCE, len(people))
        part = rows[starts[first] : ends[last - 1]]
        vectors = vectors_of(part[:, 1])
        found, _ = templates(vectors, part[:, 0].astype(str).tolist())
        write_rows(folder, generation, first, found)
        connection.executemany(
            "UPDATE person SET slot = ? WHERE id = ?",
            zip(range(first, last), people[first:last].tolist(), strict=True),
        )
        if embedder_id != state.embedder_id:
            connection.executemany(
                "UPDATE picture SET vector = ?, embedder = ? WHERE id = ?",
                [
                    (vector.astype("<f4").tobytes(), embedder_id, number)
                    for number, vector in zip(part[:, 1].tolist(), vectors, strict=True)
                ],
            )
    connection.execute("DELETE FROM gap")
    connection.execute(
        "UPDATE state SET embedder = ?, generation = ?, num_slots = ?, epoch = epoch + 1",
        (embedder_id, generation, len(people)),
    )
    connection.execute("DELETE FROM embedder WHERE id != ?", (embedder_id,))
    return len(rows)


def _tidy_up(connection: sqlite3.Connection, folder: Path) -> None:
    """After the switch: the old matrix goes, and the log, which holds the old vectors."""
    with writing(connection):
        tidy(folder, read_state(connection))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finish_removals(connection, folder)
