"""The files of a face gallery: SQLite holds who is in it, tasks/vectors.py the matrix that is searched.

`gallery.sqlite` has every person, every encoded aligned crop with its embedding, and the model, preprocessing, hash and
time of each. The matrix has one row a person, the template of the pictures' embeddings (tasks/identification.py).
docs/gallery.md says why these and not LanceDB, usearch or faiss.

Writers take turns by SQLite's lock. A row of the matrix is on the disk before the transaction that names it, so a
process that is killed leaves a row that nobody is named by, which the next writer cuts off. SQLite's write-ahead log
lets readers go on: each reads in a transaction, of one state. A row changes only when nobody can read it any more:
see `finish_removals`. The log needs a local disk; it does not work on network file systems.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tasks.paths import called
from tasks.vectors import cut, is_tidy, is_whole, remove_other_planes, zero_rows
from tasks.verification import check_unit

DATABASE = "gallery.sqlite"
FORMAT = 2
WAIT_S = 60.0  # for another writer, and for readers before a removal's bytes go
AGAIN_S = 0.01

SCHEMA = """
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    format INTEGER NOT NULL,
    embedder INTEGER NOT NULL REFERENCES embedder(id),
    generation INTEGER NOT NULL,
    num_slots INTEGER NOT NULL,
    epoch INTEGER NOT NULL
);
CREATE TABLE embedder (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, sha256 TEXT NOT NULL,
    preprocessing TEXT NOT NULL, num_dims INTEGER NOT NULL
);
CREATE TABLE person (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, slot INTEGER NOT NULL UNIQUE
);
CREATE TABLE picture (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    person INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
    sha256 TEXT NOT NULL UNIQUE, encoded BLOB NOT NULL, vector BLOB NOT NULL,
    embedder INTEGER NOT NULL REFERENCES embedder(id), enrolled TEXT NOT NULL
);
CREATE INDEX picture_person ON picture(person);
CREATE TABLE pending (
    picture INTEGER PRIMARY KEY REFERENCES picture(id) ON DELETE CASCADE,
    embedder INTEGER NOT NULL REFERENCES embedder(id), vector BLOB NOT NULL
);
CREATE TABLE gap (slot INTEGER PRIMARY KEY, wiped INTEGER NOT NULL);
"""


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """What made a vector: the model with the checksum of its files, and how a picture became its input.

    `version` is "" of a model that is not registered. `preprocessing` is whatever tells one way from another that the
    model's files do not say: detector and alignment. Two embedders that differ in anything make vectors that do not
    compare.
    """

    name: str
    version: str
    sha256: str
    preprocessing: str
    num_dims: int

    def __str__(self) -> str:
        version = f" version {self.version}" if self.version else ""
        return f"{self.name}{version} ({self.sha256[:12]}, {self.num_dims} numbers, {self.preprocessing})"


@dataclass(frozen=True)
class Picture:
    """What a person is enrolled with: the encoded aligned crop, and its embedding (D,) of unit length."""

    encoded: bytes
    vector: np.ndarray


@dataclass(frozen=True)
class Enrolled:
    """What an enrolment did; a picture that the person has already is not added again."""

    name: str
    num_added: int
    num_pictures: int


@dataclass(frozen=True)
class Person:
    name: str
    num_pictures: int
    first_enrolled: str  # UTC
    last_enrolled: str


@dataclass(frozen=True)
class StoredPicture:
    """A picture of the gallery; vector (D,) float32, made by `embedder` (its model and preprocessing)."""

    sha256: str
    encoded: bytes
    vector: np.ndarray
    embedder: Embedder
    enrolled: str


@dataclass(frozen=True)
class Hit:
    """A person of the gallery, and the squared L2 distance to a query, 0 to 4."""

    name: str
    distance: float


@dataclass(frozen=True)
class Recognition:
    """The nearest person, None where that is farther than the threshold ("not recognised") or there is nobody."""

    name: str | None
    nearest: Hit | None
    threshold: float


@dataclass(frozen=True)
class Verification:
    same: bool
    distance: float
    threshold: float


@dataclass(frozen=True)
class State:
    """What the gallery is at one moment. `epoch` changes where a row of the matrix stops meaning somebody."""

    embedder_id: int
    embedder: Embedder
    generation: int
    num_slots: int
    epoch: int


def require_embedder(embedder: Embedder, state: State) -> None:
    """Raises ValueError for vectors that do not compare with the gallery's."""
    if embedder != state.embedder:
        raise ValueError(
            f"the gallery's vectors are of {state.embedder}, these are of {embedder}, and the two do not compare; "
            "embed with the former, or re-embed the gallery for the latter"
        )


def check_people(people: Sequence[tuple[str, Sequence[Picture]]], embedder: Embedder) -> None:
    """Raises ValueError for what cannot be enrolled."""
    names = [name for name, _ in people]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is named twice; give all pictures of a person together")
    for name, pictures in people:
        if not name.strip() or not name.isprintable() or not pictures:
            raise ValueError(
                f"a person needs a name that can be printed and a picture; got {name!r}, {len(pictures)}"
            )
        shapes = {picture.vector.shape for picture in pictures}
        if shapes != {(embedder.num_dims,)}:
            raise ValueError(
                f"vectors of {name!r} have shapes {shapes}; {embedder} makes ({embedder.num_dims},)"
            )
        check_unit(np.stack([picture.vector for picture in pictures]))


def picture_of(name: str, pictures: Sequence[StoredPicture], sha256: str) -> StoredPicture:
    """The picture of a person whose hash begins so; raises ValueError where that is none, or several."""
    found = [each for each in pictures if each.sha256.startswith(sha256.lower())]
    if not sha256 or len(found) != 1:
        known = ", ".join(each.sha256[:12] for each in pictures[:5]) + ", …" * (len(pictures) > 5)
        raise ValueError(
            f"{sha256!r} begins the hash of {len(found)} of the {len(pictures)} pictures of {name!r}; "
            f"give one of {known}"
        )
    return found[0]


def create_database(file: Path, embedder: Embedder) -> None:
    """A gallery of nobody."""
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMA)
        number = put_embedder(connection, embedder)
        connection.execute("INSERT INTO state VALUES (1, ?, ?, 1, 0, 0)", (FORMAT, number))
    finally:
        connection.close()


def connect(folder: Path) -> sqlite3.Connection:
    """Open the database of a gallery; raises FileNotFoundError, or ValueError for what is none of ours."""
    file = folder / DATABASE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} is no gallery: it has no {DATABASE}; make one by enrolling somebody"
        )
    connection = sqlite3.connect(file, isolation_level=None, timeout=WAIT_S)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # deleted bytes become zeros
        connection.execute("PRAGMA synchronous = FULL")  # who was told "enrolled" is on the disk
        [found] = connection.execute("SELECT format FROM state").fetchone()
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ValueError(f"{file} cannot be read as a gallery: {error}; restore it from a backup") from None
    if found != FORMAT:
        connection.close()
        raise ValueError(f"{file} is a gallery of format {found}; this code reads format {FORMAT}")
    return connection


@contextmanager
def reading(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is read within is of one state."""
    connection.execute("BEGIN")
    try:
        connection.execute("SELECT id FROM state").fetchone()  # a transaction begins with its first read
        yield
    finally:
        connection.execute("COMMIT")


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """Wait for other writers, then all or nothing; raises TimeoutError after `WAIT_S`."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        raise TimeoutError(
            f"another process has been writing to the gallery for {WAIT_S:.0f} s; try again"
        ) from None
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def read_state(connection: sqlite3.Connection) -> State:
    row = connection.execute(
        "SELECT embedder.id, generation, num_slots, epoch, name, version, sha256, preprocessing, num_dims "
        "FROM state JOIN embedder ON embedder.id = state.embedder"
    ).fetchone()
    number, generation, num_slots, epoch, name, version, sha256, preprocessing, num_dims = row
    embedder = Embedder(
        name=name, version=version, sha256=sha256, preprocessing=preprocessing, num_dims=num_dims
    )
    return State(number, embedder, generation, num_slots, epoch)


def read_embedder(folder: Path) -> Embedder:
    """What makes a gallery's vectors, whatever has become of its matrix; raises as `connect`."""
    connection = connect(folder)
    try:
        return read_state(connection).embedder
    finally:
        connection.close()


def put_embedder(connection: sqlite3.Connection, embedder: Embedder) -> int:
    """Record what makes vectors; its number."""
    cursor = connection.execute(
        "INSERT INTO embedder (name, version, sha256, preprocessing, num_dims) "
        "VALUES (:name, :version, :sha256, :preprocessing, :num_dims)",
        asdict(embedder),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def read_unwiped(connection: sqlite3.Connection) -> list[int]:
    """Slots of nobody whose bytes are still to go."""
    return [slot for (slot,) in connection.execute("SELECT slot FROM gap WHERE wiped = 0 ORDER BY slot")]


def read_gaps(connection: sqlite3.Connection) -> np.ndarray:
    """Slots (G,) int64, sorted, that mean nobody."""
    return np.array([slot for (slot,) in connection.execute("SELECT slot FROM gap ORDER BY slot")], np.int64)


def leave_slots(connection: sqlite3.Connection, slots: list[int]) -> None:
    """Inside a transaction that takes the last names off slots: note that their bytes are still to go."""
    connection.executemany("INSERT INTO gap VALUES (?, 0)", [(slot,) for slot in slots])
    if slots:
        connection.execute("UPDATE state SET epoch = epoch + 1")


def names_at(connection: sqlite3.Connection, slots: list[int]) -> dict[int, str]:
    """The people of slots."""
    rows = connection.execute(
        "SELECT slot, name FROM person WHERE slot IN (SELECT value FROM json_each(?))", (json.dumps(slots),)
    )
    return dict(rows.fetchall())


def tidy(folder: Path, state: State) -> None:
    """Inside a writing transaction: drop what a writer that was killed left in the folder; raises ValueError where
    the matrix is damaged."""
    shape = (state.num_slots, state.embedder.num_dims)
    if not is_whole(folder, state.generation, *shape):
        raise damaged(folder)
    if not is_tidy(folder, state.generation, *shape):
        remove_other_planes(folder, state.generation)
        cut(folder, state.generation, *shape)


def tidy_if_free(connection: sqlite3.Connection, folder: Path) -> None:
    """`tidy`, but where another process is writing nothing is done, and nobody waits: what lies there is that one's."""
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        with suppress(TimeoutError), writing(connection):
            tidy(folder, read_state(connection))
    finally:
        connection.execute(f"PRAGMA busy_timeout = {WAIT_S * 1000:.0f}")


def damaged(folder: Path) -> ValueError:
    return ValueError(
        f"the matrix of the gallery {called(folder)}, its files templates-*, is missing or cut short; write it anew "
        f"from the database: ./convoy faces gallery rebuild --gallery {called(folder)}"
    )


def finish_removals(connection: sqlite3.Connection, folder: Path) -> None:
    """Make the bytes of removed people go: out of the database, its log, and the matrix. Safe to repeat.

    The log's end is what waits for readers of earlier states, so that no row becomes zero under a search that still
    counts on it. Raises TimeoutError where a reader stays for longer than `WAIT_S`.
    """
    give_up = time.monotonic() + WAIT_S
    while True:
        with reading(connection):
            generation, slots = read_state(connection).generation, read_unwiped(connection)
        if not slots:
            return
        [busy, _, _] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            with writing(connection):
                _wipe(connection, folder, generation, slots)
            continue
        if time.monotonic() > give_up:
            raise TimeoutError(
                f"removed, but a process has been reading an earlier state for {WAIT_S:.0f} s, so that the bytes are "
                "still in the gallery's log; end that process and open the gallery again"
            )
        # another process may be finishing the same removal, which SQLite does not wait for
        time.sleep(AGAIN_S)


def _wipe(connection: sqlite3.Connection, folder: Path, generation: int, slots: list[int]) -> None:
    """Inside a writing transaction: zeros for those of `slots` that are still to go.

    `slots` were named before the log was emptied. What was removed after that waits for another end of the log: its
    bytes may be in the database, and a search may still count on its row.
    """
    state = read_state(connection)
    if state.generation != generation:  # the matrix was replaced, and the old one goes as a whole
        return
    left = sorted(set(slots) & set(read_unwiped(connection)))
    zero_rows(folder, generation, np.array(left, np.int64), state.embedder.num_dims)
    connection.executemany("UPDATE gap SET wiped = 1 WHERE slot = ?", [(slot,) for slot in left])
