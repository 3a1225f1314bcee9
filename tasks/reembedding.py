"""A gallery for a new embedder: all stored pictures embedded again beside the old vectors, then one switch.

Reading and enrolling go on meanwhile, with the old embedder. New vectors wait in the database, beside their pictures:
a re-embedding that was stopped goes on where it was, and those of a person that is removed go with the person. What was
enrolled in the meantime is embedded at the end, with writers held off; the switch is one transaction, so that a reader
sees the old gallery or the new one, all of it. `spread` is what embeds many batches: `here`, one after the other, or
`tasks.embedshards.on_ray`.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
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

Batch = Sequence[bytes]  # encoded aligned crops
# batches -> for each, as they end: its place, and the vectors (N, D) float32 of unit length
Spread = Callable[[Iterable[Batch]], Iterator[tuple[int, np.ndarray]]]
BATCH_SIZE = 64  # pictures that are embedded, and kept, together
PEOPLE_AT_ONCE = 4096


def here(embed: Callable[[Batch], np.ndarray]) -> Spread:
    """Embed one batch after the other in this process."""
    return lambda batches: ((place, embed(batch)) for place, batch in enumerate(batches))


def re_embed(
    folder: Path,
    embedder: Embedder,
    spread: Spread,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Embed every picture of a gallery anew and switch; the number of pictures. `progress` gets how many of how many.

    One that was stopped goes on with the vectors it has. Raises ValueError, and leaves the gallery as it was, where
    `spread` gives what is not one unit vector a picture, and while another process re-embeds this gallery.
    """
    connection = connect(folder)
    try:
        with alone(folder):
            with writing(connection):
                target = _begin(connection, embedder)
            for done, total in _embed_waiting(
                connection, target, embedder.num_dims, spread, batch_size, partial(writing, connection)
            ):
                if progress and done < total:
                    progress(done, total)
            with writing(connection):
                state = read_state(connection)
                tidy(folder, state)
                # what was enrolled since
                for _ in _embed_waiting(
                    connection, target, embedder.num_dims, spread, batch_size, nullcontext
                ):
                    pass
                connection.execute(
                    "UPDATE picture SET embedder = ?, "
                    "vector = (SELECT pending.vector FROM pending WHERE pending.picture = picture.id)",
                    (target,),
                )
                count = _switch(connection, folder, state, target)
            _tidy_up(connection, folder)
    finally:
        connection.close()
    if progress:
        progress(count, count)
    return count


def rebuild(folder: Path) -> int:
    """Write the matrix anew from the vectors in the database, without rows of nobody; the number of pictures.

    For a matrix that was lost or damaged, and after many removals. A re-embedding that was stopped starts anew.
    """
    connection = connect(folder)
    try:
        with alone(folder):
            with writing(connection):
                state = read_state(connection)
                count = _switch(connection, folder, state, state.embedder_id)
            _tidy_up(connection, folder)
    finally:
        connection.close()
    return count


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Raises ValueError while another living process re-embeds or rebuilds the gallery."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process ends
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"{folder} is being re-embedded by another process; wait for it") from None
    try:
        yield
    finally:
        os.close(handle)


def _begin(connection: sqlite3.Connection, embedder: Embedder) -> int:
    """Inside a writing transaction: the number of the new embedder; vectors that wait for yet another one go."""
    state = read_state(connection)
    known = connection.execute(
        "SELECT id FROM embedder WHERE id != ? AND (name, version, sha256, preprocessing, num_dims) = (?, ?, ?, ?, ?)",
        (
            state.embedder_id, embedder.name, embedder.version, embedder.sha256, embedder.preprocessing,
            embedder.num_dims,
        ),
    ).fetchone()  # fmt: skip
    target = known[0] if known else put_embedder(connection, embedder)
    connection.execute("DELETE FROM pending WHERE embedder != ?", (target,))
    connection.execute("DELETE FROM embedder WHERE id NOT IN (?, ?)", (target, state.embedder_id))
    return int(target)


def _embed_waiting(
    connection: sqlite3.Connection,
    target: int,
    num_dims: int,
    spread: Spread,
    batch_size: int,
    transaction: Callable[[], AbstractContextManager[None]],
) -> Iterator[tuple[int, int]]:
    """Embed the pictures without a new vector, and keep each batch as it ends; how many have one, of how many."""
    numbers: list[list[int]] = []
    for place, vectors in spread(_waiting(connection, batch_size, numbers)):
        found = np.asarray(vectors)
        wanted = (len(numbers[place]), num_dims)
        if found.shape != wanted:
            raise ValueError(
                f"embedding {wanted[0]} pictures gave an array {found.shape}; it must be {wanted}"
            )
        check_unit(found)
        with transaction():
            connection.executemany(  # but for those of people that were removed meanwhile
                "INSERT INTO pending (picture, embedder, vector) SELECT id, ?, ? FROM picture WHERE id = ?",
                [
                    (target, vector.astype("<f4").tobytes(), number)
                    for number, vector in zip(numbers[place], found, strict=True)
                ],
            )
        done, total = connection.execute(
            "SELECT (SELECT COUNT(*) FROM pending), (SELECT COUNT(*) FROM picture)"
        ).fetchone()
        yield done, total


def _waiting(connection: sqlite3.Connection, batch_size: int, numbers: list[list[int]]) -> Iterator[Batch]:
    """Pictures without a new vector, in batches, whose pictures' numbers are added to `numbers`."""
    last = 0
    while rows := connection.execute(
        "SELECT id, encoded FROM picture WHERE id > ? AND id NOT IN (SELECT picture FROM pending) "
        "ORDER BY id LIMIT ?",
        (last, batch_size),
    ).fetchall():
        last = rows[-1][0]
        numbers.append([number for number, _ in rows])
        yield [encoded for _, encoded in rows]


def _switch(connection: sqlite3.Connection, folder: Path, state: State, embedder_id: int) -> int:
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
        found, _ = templates(_vectors(connection, part[:, 1]), part[:, 0].astype(str).tolist())
        write_rows(folder, generation, first, found)
        connection.executemany(
            "UPDATE person SET slot = ? WHERE id = ?",
            zip(range(first, last), people[first:last].tolist(), strict=True),
        )
    connection.execute("DELETE FROM gap")
    connection.execute("DELETE FROM pending")
    connection.execute(
        "UPDATE state SET embedder = ?, generation = ?, num_slots = ?, epoch = epoch + 1",
        (embedder_id, generation, len(people)),
    )
    connection.execute("DELETE FROM embedder WHERE id != ?", (embedder_id,))
    return len(rows)


def _vectors(connection: sqlite3.Connection, numbers: np.ndarray) -> np.ndarray:
    """The vectors of pictures by their numbers, (N, D) float32."""
    found = [
        connection.execute("SELECT vector FROM picture WHERE id = ?", (number,)).fetchone()[0]
        for number in numbers.tolist()
    ]
    return np.stack([np.frombuffer(vector, "<f4") for vector in found])


def _tidy_up(connection: sqlite3.Connection, folder: Path) -> None:
    """After the switch: the old matrix goes, and the log, which holds the old vectors."""
    with writing(connection):
        tidy(folder, read_state(connection))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finish_removals(connection, folder)
