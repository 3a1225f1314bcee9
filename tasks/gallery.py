"""The face gallery: people by their pictures' embeddings, on disk. Enrol, remove, list, search, verify.

    gallery = Gallery.create(Path("gallery"), embedder)       # or Gallery.open
    gallery.enrol("ann", [Picture(encoded, vector)], embedder)
    gallery.recognise(vectors, point.threshold, embedder)
    gallery.verify("ann", vector, point.threshold, embedder)
    gallery.remove("ann")                             # or one picture: gallery.remove_picture("ann", sha256)

Vectors come from outside: one forward pass of `embedder` on an aligned crop, whose encoded bytes are kept so that a
later embedder can embed them again (tasks/reembedding.py). Every call with vectors names what made them; others than
the gallery's are refused. Any number of processes may read while one writes; in each, one object a thread. How it is
kept and why: tasks/gallerystore.py, docs/gallery.md.
"""

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import numpy as np

from data.files import whole_folder
from tasks.gallerystore import (
    DATABASE,
    Embedder,
    Enrolled,
    Hit,
    Person,
    Picture,
    Recognition,
    State,
    StoredPicture,
    Verification,
    check_people,
    connect,
    create_database,
    damaged,
    finish_removals,
    leave_slots,
    names_at,
    picture_of,
    read_gaps,
    read_state,
    reading,
    require_embedder,
    tidy,
    tidy_if_free,
    writing,
)
from tasks.identification import templates
from tasks.matrix import matrix_of
from tasks.paths import called
from tasks.vectors import is_tidy, make_planes, map_planes, sync_folder, write_rows
from tasks.verification import check_unit


class Gallery:
    """An open gallery; see the module. It is closed at the end of a `with`, or by `close`."""

    def __init__(self, folder: Path) -> None:
        """Open what is there, and finish what a process that was killed left half done."""
        self.folder = folder
        self._connection = connect(folder)
        self._state: State | None = None
        self._matrix = matrix_of(np.empty((0, 0), np.float32))
        self._gaps = np.empty(0, np.int64)
        try:
            if not self._is_tidy():
                tidy_if_free(self._connection, folder)
            finish_removals(self._connection, folder)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, folder: Path) -> "Gallery":
        return cls(folder)

    @classmethod
    def create(cls, folder: Path, embedder: Embedder) -> "Gallery":
        """A gallery of nobody, for vectors of one embedder; raises ValueError where something is already."""
        there = ValueError(f"{folder} is there already; open it, or name a new folder")
        if folder.exists():
            raise there
        try:
            with whole_folder(folder) as partial:
                create_database(partial / DATABASE, embedder)
                make_planes(partial, 1)
        except OSError:
            if not folder.exists():
                raise
            raise there from None  # another process has just made it
        sync_folder(folder.parent)
        return cls(folder)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """How many people."""
        return int(self._connection.execute("SELECT COUNT(*) FROM person").fetchone()[0])

    @property
    def embedder(self) -> Embedder:
        """What makes the gallery's vectors now."""
        return read_state(self._connection).embedder

    def enrol(self, name: str, pictures: Sequence[Picture], embedder: Embedder) -> Enrolled:
        """Add pictures of a person, new or known; it is on the disk when this returns."""
        [enrolled] = self.enrol_people([(name, pictures)], embedder)
        return enrolled

    def enrol_people(
        self, people: Sequence[tuple[str, Sequence[Picture]]], embedder: Embedder
    ) -> list[Enrolled]:
        """Add pictures of several people: all, or none where one is refused with a ValueError.

        A person costs a wait for the disk here, or many people one together.
        """
        check_people(people, embedder)
        done: list[Enrolled] = []
        rows: list[np.ndarray] = []
        with writing(self._connection):
            state = read_state(self._connection)
            require_embedder(embedder, state)
            tidy(self.folder, state)
            for name, pictures in people:
                added, template = self._put(name, pictures, state.embedder_id, state.num_slots + len(rows))
                done.append(added)
                if template is not None:
                    rows.append(template)
            if rows:
                self._append_templates(state, np.stack(rows))
        finish_removals(self._connection, self.folder)
        return done

    def remove(self, name: str) -> None:
        """Delete a person for good: pictures, vectors and name are zeros on the disk, or gone, when this returns.

        Raises ValueError for a person that is not here. Backups, and what a disk keeps of blocks that it rewrote
        elsewhere, are out of reach.
        """
        with writing(self._connection):
            person, slot = self._find(name)
            self._connection.execute("DELETE FROM person WHERE id = ?", (person,))
            leave_slots(self._connection, [slot])
        finish_removals(self._connection, self.folder)

    def remove_picture(self, name: str, sha256: str) -> StoredPicture:
        """Delete one picture of a person for good, as `remove` does; what it was. The others stand for the person.

        `sha256` is the picture's hash, or enough of its beginning. Raises ValueError as `picture_of`, and for the only
        picture.
        """
        with writing(self._connection):
            state = read_state(self._connection)
            tidy(self.folder, state)
            person, slot = self._find(name)
            pictures = self._stored(person, state)
            found = picture_of(name, pictures, sha256)
            if len(pictures) == 1:
                raise ValueError(f"{found.sha256[:12]} is the only picture of {name!r}; remove the person")
            rest = np.stack([each.vector for each in pictures if each.sha256 != found.sha256])
            self._connection.execute("DELETE FROM picture WHERE sha256 = ?", (found.sha256,))
            self._append_templates(state, templates(rest, [name] * len(rest))[0])
            self._connection.execute("UPDATE person SET slot = ? WHERE id = ?", (state.num_slots, person))
            leave_slots(self._connection, [slot])
        finish_removals(self._connection, self.folder)
        return found

    def people(self) -> list[Person]:
        """Everybody, by name."""
        rows = self._connection.execute(
            "SELECT name, COUNT(*), MIN(enrolled), MAX(enrolled) "
            "FROM person JOIN picture ON picture.person = person.id GROUP BY person.id ORDER BY name"
        )
        return [Person(*row) for row in rows.fetchall()]

    def pictures(self, name: str) -> list[StoredPicture]:
        """The pictures of a person, in the order of their enrolment."""
        with reading(self._connection):
            return self._stored(self._find(name)[0], read_state(self._connection))

    def search(self, vectors: np.ndarray, k: int, embedder: Embedder) -> list[list[Hit]]:
        """The `k` nearest people of each of vectors (Q, D), the nearest first; fewer where the gallery has fewer.

        Exact, in float64's order (tasks/nearest.py); of equally near people the one whose row is first comes first.
        """
        check_unit(vectors)
        if k < 1:
            raise ValueError(f"k (={k}) must be 1 or more")
        from tasks.nearest import nearest  # only now, for torch takes seconds

        with self._snapshot(embedder):
            slots, likeness = nearest(self._matrix, vectors, k, self._gaps)
            names = names_at(self._connection, np.unique(slots).tolist())
        distances = np.maximum(2 - 2 * likeness, 0)
        return [
            [Hit(names[slot], distance) for slot, distance in zip(*row, strict=True)]
            for row in zip(slots.tolist(), distances.tolist(), strict=True)
        ]

    def recognise(self, vectors: np.ndarray, threshold: float, embedder: Embedder) -> list[Recognition]:
        """Who is on each picture (Q, D), or that it is nobody of the gallery."""
        found = []
        for hits in self.search(vectors, 1, embedder):
            hit = hits[0] if hits else None
            name = hit.name if hit and hit.distance <= threshold else None
            found.append(Recognition(name, hit, threshold))
        return found

    def verify(self, name: str, vector: np.ndarray, threshold: float, embedder: Embedder) -> Verification:
        """Whether a picture (D,) is of the person it claims to be; raises ValueError for a person not enrolled."""
        check_unit(vector[None])
        with self._snapshot(embedder):
            _, slot = self._find(name)
            template = self._matrix.exact[slot]
        distance = max(0.0, 2 - 2 * float(np.dot(template.astype(np.float64), vector.astype(np.float64))))
        return Verification(distance <= threshold, distance, threshold)

    def check(self) -> int:
        """Compare everything with everything, and return the number of people; raises ValueError for what differs.

        Every picture has its hash and a vector of the gallery's embedder, every person a picture, and a row of the
        matrix that is the template of the vectors; every other row is zero.
        """
        with self._snapshot(None) as state:
            rows = self._connection.execute(
                "SELECT name, slot, sha256, encoded, vector, embedder FROM person LEFT JOIN picture "
                "ON picture.person = person.id ORDER BY person.id, picture.id"
            ).fetchall()
            [(answer,), *_] = self._connection.execute("PRAGMA integrity_check").fetchall()
            if answer != "ok":
                raise ValueError(f"{self.folder / DATABASE} is damaged: {answer}; restore it from a backup")
            matrix = self._matrix.exact
            scanned = np.setdiff1d(np.arange(len(matrix)), self._gaps)
            fresh = matrix_of(matrix[scanned])
            if (self._matrix.coarse[scanned] != fresh.coarse).any() or (
                self._matrix.bounds[scanned] != fresh.bounds
            ).any():
                raise ValueError(f"{self.folder}: a row that is searched is not that of its vector")
            unused = set(self._gaps.tolist())
        for name, _, sha256, encoded, _, embedder in rows:
            if (
                sha256 is None
                or hashlib.sha256(encoded).hexdigest() != sha256
                or embedder != state.embedder_id
            ):
                raise ValueError(
                    f"{self.folder}: a picture of {name!r} is missing, damaged or of another embedder"
                )
        names = {name: slot for name, slot, *_ in rows}
        if names:
            expected, people = templates(
                np.stack([np.frombuffer(row[4], "<f4") for row in rows]), [row[0] for row in rows]
            )
            wrong = (matrix[[names[name] for name in people]] != expected).any(axis=1)
            if wrong.any():
                raise ValueError(
                    f"{self.folder}: the row of {people[int(np.argmax(wrong))]!r} is not of its pictures"
                )
        nobody = set(range(len(matrix))) - set(names.values())
        if nobody != unused or matrix[sorted(nobody)].any():
            raise ValueError(f"{self.folder}: rows that should be nobody's differ from those that are")
        return len(names)

    def _is_tidy(self) -> bool:
        with reading(self._connection):
            state = read_state(self._connection)
            return is_tidy(self.folder, state.generation, state.num_slots, state.embedder.num_dims)

    @contextmanager
    def _snapshot(self, embedder: Embedder | None) -> Iterator[State]:
        """A reading transaction with the matrix of its state."""
        seen = None
        while True:
            with reading(self._connection):
                try:
                    state = self._refresh(embedder)
                except FileNotFoundError:  # its matrix has just been replaced
                    generation = read_state(self._connection).generation
                    if generation == seen:
                        raise damaged(self.folder) from None
                    seen = generation
                    continue
                yield state
                return

    def _refresh(self, embedder: Embedder | None) -> State:
        """Inside a reading transaction: have the matrix as of now; `embedder` is what the caller's vectors are of."""
        state, before = read_state(self._connection), self._state
        if embedder:
            require_embedder(embedder, state)
        if before is None or (before.generation, before.num_slots) != (state.generation, state.num_slots):
            self._matrix = map_planes(self.folder, state.generation, state.num_slots, state.embedder.num_dims)
        if before is None or before.epoch != state.epoch:
            self._gaps = read_gaps(self._connection)
        self._state = state
        return state

    def _find(self, name: str) -> tuple[int, int]:
        """The number and the slot of a person."""
        row = self._connection.execute("SELECT id, slot FROM person WHERE name = ?", (name,)).fetchone()
        if row is None:
            known = [known for (known,) in self._connection.execute("SELECT name FROM person ORDER BY name")]
            near = difflib.get_close_matches(name, known, 5, 0.4) or known[:5]
            raise ValueError(
                f"{name!r} is not among the {len(known):,} people of the gallery {called(self.folder)}"
                + (
                    f"; there are {', '.join(map(repr, near))}"
                    + (" and others" if len(known) > len(near) else "")
                    if near
                    else ""
                )
            )
        return row[0], row[1]

    def _stored(self, person: int, state: State) -> list[StoredPicture]:
        """Inside a transaction: the pictures of a person by number."""
        rows = self._connection.execute(
            "SELECT sha256, encoded, vector, enrolled FROM picture WHERE person = ? ORDER BY id", (person,)
        )
        return [
            StoredPicture(sha256, encoded, np.frombuffer(vector, "<f4"), state.embedder, enrolled)
            for sha256, encoded, vector, enrolled in rows.fetchall()
        ]

    def _append_templates(self, state: State, rows: np.ndarray) -> None:
        """Inside a writing transaction: rows (N, D) of the matrix in the slots from `state.num_slots` on."""
        write_rows(self.folder, state.generation, state.num_slots, rows)
        self._connection.execute("UPDATE state SET num_slots = ?", (state.num_slots + len(rows),))

    def _put(
        self, name: str, pictures: Sequence[Picture], embedder_id: int, slot: int
    ) -> tuple[Enrolled, np.ndarray | None]:
        """Inside a writing transaction: the rows of a person in the database, and the template for `slot`, if new."""
        row = self._connection.execute("SELECT id, slot FROM person WHERE name = ?", (name,)).fetchone()
        person = row[0] if row else None
        new = {}
        for picture in pictures:
            sha256 = hashlib.sha256(picture.encoded).hexdigest()
            other = self._connection.execute(
                "SELECT name, person FROM picture JOIN person ON person.id = picture.person WHERE sha256 = ?",
                (sha256,),
            ).fetchone()
            if other and other[1] != person:
                raise ValueError(
                    f"a picture for {name!r} is one of {other[0]!r}, byte for byte; remove that person first if the "
                    "name was wrong"
                )
            if not other:
                new[sha256] = picture
        kept = [
            np.frombuffer(vector, "<f4")
            for (vector,) in self._connection.execute(
                "SELECT vector FROM picture WHERE person = ? ORDER BY id", (person,)
            )
        ]
        if not new:
            return Enrolled(name, 0, len(kept)), None
        vectors = [*kept, *(picture.vector.astype(np.float32) for picture in new.values())]
        [template], _ = templates(np.stack(vectors), [name] * len(vectors))
        if row:
            self._connection.execute("UPDATE person SET slot = ? WHERE id = ?", (slot, person))
            leave_slots(self._connection, [row[1]])
        else:
            person = self._connection.execute(
                "INSERT INTO person (name, slot) VALUES (?, ?)", (name, slot)
            ).lastrowid
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._connection.executemany(
            "INSERT INTO picture (person, sha256, encoded, vector, embedder, enrolled) VALUES (?, ?, ?, ?, ?, ?)",
            [
                (person, sha256, picture.encoded, picture.vector.astype("<f4").tobytes(), embedder_id, now)
                for sha256, picture in new.items()
            ],
        )
        return Enrolled(name, len(new), len(vectors)), template
