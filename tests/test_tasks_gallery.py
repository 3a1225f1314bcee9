"""The gallery on disk: what is enrolled is found, what is removed is gone, and embedders never mix."""

import dataclasses
import hashlib
import multiprocessing
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tasks import gallery as gallery_module
from tasks import gallerystore
from tasks.gallery import Gallery, Picture
from tasks.gallerystore import WAIT_S, Embedder, leave_slots, read_state, writing
from tasks.identification import templates
from tasks.reembedding import Batch, Spread, alone, here, re_embed, rebuild
from tasks.vectors import is_tidy, make_planes, write_rows
from tests.facegalleries import FIRST, SECOND, D, crop, embed, picture

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tasks.gallery", "tasks.reembedding"])


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery.create(tmp_path / "gallery", FIRST) as made:
        yield made


def fill(gallery: Gallery, num: int, each: int = 1) -> list[str]:
    names = [f"person {i:03d}" for i in range(num)]
    gallery.enrol_people([(name, [picture(name, j) for j in range(each)]) for name in names], FIRST)
    return names


def on_disk(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()))


def second(encoded: Batch) -> np.ndarray:
    return np.stack([embed(each, SECOND.num_dims) for each in encoded])


def test_who_is_enrolled_is_found_by_another_process_too(gallery: Gallery):
    names = fill(gallery, 40, each=2)
    queries = np.stack([picture(name, 7).vector for name in names])
    found = gallery.search(queries, 5, FIRST)
    rows = np.stack([picture(name, j).vector for name in names for j in range(2)])
    means, _ = templates(rows, np.repeat(names, 2).tolist())
    distances = 2 - 2 * queries.astype(float) @ means.astype(float).T
    for hits, row in zip(found, distances, strict=True):
        assert [hit.name for hit in hits] == [names[i] for i in np.argsort(row)[:5]]
        np.testing.assert_allclose([hit.distance for hit in hits], np.sort(row)[:5], rtol=1e-12)
    with Gallery.open(gallery.folder) as other:
        assert other.search(queries, 5, FIRST) == found
        assert other.check() == len(other) == 40


def test_one_picture_is_enough_and_more_sharpen_it(gallery: Gallery):
    """Pictures around a direction: the mean of nine lies nearer to it than the first alone."""
    centre = embed(b"ann")
    generator = np.random.default_rng(0)

    def near(number: int) -> Picture:
        row = centre + 0.15 * generator.normal(size=D)
        return Picture(crop("ann", number), (row / np.linalg.norm(row)).astype(np.float32))

    gallery.enrol("ann", [near(0)], FIRST)
    alone = gallery.verify("ann", centre, 1.0, FIRST)
    assert gallery.enrol("ann", [near(i) for i in range(1, 9)], FIRST).num_pictures == 9
    assert gallery.verify("ann", centre, 1.0, FIRST).distance < alone.distance / 3
    assert len(gallery) == gallery.check() == 1


def test_a_picture_is_recognised_by_the_threshold(gallery: Gallery):
    assert gallery.recognise(embed(b"x")[None], 4.0, FIRST)[0].name is None  # nobody is here
    gallery.enrol("ann", [picture("ann")], FIRST)
    [near] = gallery.recognise(picture("ann").vector[None], 0.1, FIRST)
    assert near.name == "ann" and near.nearest is not None and near.nearest.distance < 1e-6
    [far] = gallery.recognise(embed(b"x")[None], 0.1, FIRST)
    assert far.name is None and far.nearest is not None and far.nearest.name == "ann"
    distance = far.nearest.distance
    assert gallery.recognise(embed(b"x")[None], distance, FIRST)[0].name == "ann"
    assert gallery.verify("ann", embed(b"x"), distance, FIRST).same
    assert not gallery.verify("ann", embed(b"x"), distance - 1e-9, FIRST).same


def test_every_vector_says_what_made_it(gallery: Gallery):
    gallery.enrol("ann", [picture("ann", 0), picture("ann", 1)], FIRST)
    first, other = gallery.pictures("ann")
    assert first.encoded == crop("ann", 0) and (first.vector == picture("ann").vector).all()
    assert first.embedder == FIRST and len(first.sha256) == 64 and first.sha256 != other.sha256
    [person] = gallery.people()
    assert (person.name, person.num_pictures) == ("ann", 2)
    assert person.first_enrolled <= person.last_enrolled and person.last_enrolled.endswith("Z")


@pytest.mark.parametrize(
    "change", [{"version": "2"}, {"sha256": "00" * 32}, {"preprocessing": "box, 112 px"}, {"name": "other"}]
)
def test_vectors_of_another_embedder_are_refused(gallery: Gallery, change: dict[str, str]):
    gallery.enrol("ann", [picture("ann")], FIRST)
    other: Embedder = dataclasses.replace(FIRST, **change)  # type: ignore[arg-type]
    vector = picture("bob").vector
    for use in (
        lambda: gallery.enrol("bob", [picture("bob")], other),
        lambda: gallery.search(vector[None], 1, other),
        lambda: gallery.recognise(vector[None], 1.0, other),
        lambda: gallery.verify("ann", vector, 1.0, other),
    ):
        with pytest.raises(
            ValueError, match=r"the gallery's vectors are of faces version 1 .* do not compare"
        ):
            use()
    assert [person.name for person in gallery.people()] == ["ann"]


def test_what_cannot_be_enrolled_leaves_nothing(gallery: Gallery):
    gallery.enrol("ann", [picture("ann")], FIRST)
    good = ("bob", [picture("bob")])
    for bad, message in [
        (("eve", [picture("ann")]), "a picture for 'eve' is one of 'ann', byte for byte"),
        (("eve", []), "needs a name that can be printed and a picture"),
        ((" ", [picture("eve")]), "needs a name that can be printed"),
        (("eve", [Picture(b"1", np.ones(D, np.float32))]), "no unit length"),
        (("eve", [Picture(b"1", np.ones(3, np.float32))]), r"shapes \{\(3,\)\}"),
        (good, "'bob' is named twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            gallery.enrol_people([good, bad], FIRST)
    assert gallery.check() == 1
    again = gallery.enrol("ann", [picture("ann"), picture("ann")], FIRST)
    assert (again.num_added, again.num_pictures) == (0, 1)


def test_a_person_that_is_not_here_is_named_with_those_alike(gallery: Gallery):
    fill(gallery, 12)
    with pytest.raises(
        ValueError, match=r"'persn 003' is not among the 12 people .*; there are 'person 003', "
    ):
        gallery.remove("persn 003")
    with pytest.raises(ValueError, match="is not among"):
        gallery.verify("eve", picture("eve").vector, 1.0, FIRST)


def test_a_removed_person_is_gone_from_every_byte(tmp_path: Path):
    """Names, pictures and vectors of removed people are in no file, whatever came before and after; others stay."""
    generator = np.random.default_rng(0)
    with Gallery.create(tmp_path / "gallery", FIRST) as gallery:
        there: dict[str, int] = {}
        removed: list[tuple[str, int]] = []
        for step in range(120):
            name = f"Zebedee{generator.integers(10**9):09d}"
            there[name] = int(generator.integers(1, 4))
            gallery.enrol(name, [picture(name, i) for i in range(there[name])], FIRST)
            if generator.random() < 0.5:
                name = sorted(there)[generator.integers(len(there))]
                if generator.random() < 0.3:
                    gallery.enrol(name, [picture(name, there[name])], FIRST)
                    there[name] += 1
                else:
                    gallery.remove(name)
                    removed.append((name, there.pop(name)))
            if step == 60:
                assert rebuild(gallery.folder) == sum(there.values())
        data = on_disk(gallery.folder)
        assert len(removed) > 20 and gallery.check() == len(there)
        for name, num in removed:
            assert name.encode() not in data
            for number in range(num):
                encoded, vector = crop(name, number), embed(crop(name, number)).tobytes()
                assert hashlib.sha256(encoded).hexdigest().encode() not in data
                assert not any(encoded[i : i + 16] in data for i in range(0, len(encoded), 16))
                assert vector[:12] not in data and vector[-12:] not in data
        for name in there:
            assert name.encode() in data and crop(name, 0)[-32:] in data
        assert not {hit.name for hit in gallery.search(embed(b"x")[None], 200, FIRST)[0]} - set(there)


def test_a_removed_picture_is_gone_from_every_byte_and_the_others_stand_for_the_person(gallery: Gallery):
    fill(gallery, 12, each=3)
    for number in range(0, 12, 2):
        name = f"person {number:03d}"
        [first, gone, last] = gallery.pictures(name)
        assert gallery.remove_picture(name, gone.sha256[:10].upper()).sha256 == gone.sha256
        assert [each.sha256 for each in gallery.pictures(name)] == [first.sha256, last.sha256]
        data = on_disk(gallery.folder)
        assert gone.sha256.encode() not in data and first.sha256.encode() in data
        assert not any(gone.encoded[i : i + 16] in data for i in range(0, len(gone.encoded), 16))
        assert gone.vector.tobytes()[:12] not in data and gone.vector.tobytes()[-12:] not in data
        [mean], _ = templates(np.stack([first.vector, last.vector]), [name, name])
        [[hit]] = gallery.search(mean[None], 1, FIRST)
        assert hit.name == name and hit.distance < 1e-6
    assert len(gallery) == gallery.check() == 12


def test_a_removal_that_comes_while_another_is_finished_is_gone_from_every_byte_too(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
):
    """It is committed after the other's end of the log, before its zeros: the log has to be emptied once more."""
    names = fill(gallery, 4)
    late: list[int] = []

    @contextmanager
    def after_another(connection: sqlite3.Connection) -> Iterator[None]:
        if not late:
            with writing(other._connection):
                person, slot = other._find(names[1])
                other._connection.execute("DELETE FROM person WHERE id = ?", (person,))
                leave_slots(other._connection, [slot])
                late.append(slot)
        with writing(connection):
            yield

    # of `finish_removals` alone: the transaction of the removal itself is begun by tasks.gallery's own name
    with Gallery.open(gallery.folder) as other:
        monkeypatch.setattr(gallerystore, "writing", after_another)
        gallery.remove(names[0])
    assert late
    data = on_disk(gallery.folder)
    for name in names[:2]:
        assert name.encode() not in data and crop(name)[:32] not in data
        assert embed(crop(name)).tobytes()[:16] not in data
    assert gallery.check() == 2


@pytest.mark.parametrize(
    ("sha256", "says"),
    [("", "begins the hash of 2"), ("zz", "begins the hash of 0 of the 2 pictures of 'ann'; give one of ")],
)
def test_a_picture_that_cannot_be_removed_stays(gallery: Gallery, sha256: str, says: str):
    gallery.enrol("ann", [picture("ann"), picture("ann", 1)], FIRST)
    gallery.enrol("bob", [picture("bob")], FIRST)
    with pytest.raises(ValueError, match=says):
        gallery.remove_picture("ann", sha256)
    with pytest.raises(ValueError, match="is the only picture of 'bob'; remove the person"):
        gallery.remove_picture("bob", gallery.pictures("bob")[0].sha256)
    assert gallery.check() == 2 and len(gallery.pictures("ann")) == 2


def test_the_last_person_can_be_removed(gallery: Gallery):
    gallery.enrol("ann", [picture("ann")], FIRST)
    gallery.remove("ann")
    assert gallery.people() == [] and gallery.check() == 0
    assert gallery.search(embed(b"x")[None], 3, FIRST) == [[]]


def test_open_readers_see_what_others_write(gallery: Gallery):
    with Gallery.open(gallery.folder) as reader:
        assert reader.search(picture("ann").vector[None], 1, FIRST) == [[]]
        gallery.enrol("ann", [picture("ann")], FIRST)
        assert reader.search(picture("ann").vector[None], 1, FIRST)[0][0].name == "ann"
        gallery.remove("ann")
        assert reader.search(picture("ann").vector[None], 1, FIRST) == [[]]
        gallery.enrol("bob", [picture("bob")], FIRST)
        re_embed(gallery.folder, SECOND, here(second))
        with pytest.raises(ValueError, match="do not compare"):
            reader.search(picture("bob").vector[None], 1, FIRST)
        [[hit]] = reader.search(embed(crop("bob"), SECOND.num_dims)[None], 1, SECOND)
        assert hit.name == "bob" and hit.distance < 1e-6


def test_who_opens_a_gallery_to_read_does_not_wait_for_a_writer(gallery: Gallery):
    gallery.enrol("ann", [picture("ann")], FIRST)
    state = read_state(gallery._connection)
    where = (gallery.folder, state.generation, state.num_slots)
    with writing(gallery._connection):
        write_rows(*where, embed(b"x")[None])  # of a transaction that has not ended
        began = time.monotonic()
        with Gallery.open(gallery.folder) as reader:
            [[hit]] = reader.search(picture("ann").vector[None], 3, FIRST)
        assert hit.name == "ann" and time.monotonic() - began < WAIT_S / 2
        assert not is_tidy(*where, D)  # the writer's rows are not cut off
    with Gallery.open(gallery.folder) as reader:  # what it left is
        assert is_tidy(*where, D) and reader.check() == 1


def test_re_embedding_equals_a_gallery_made_with_the_new_embedder(gallery: Gallery, tmp_path: Path):
    names = fill(gallery, 30, each=2)
    gallery.remove(names[4])
    shown: list[tuple[int, int]] = []
    assert (
        re_embed(gallery.folder, SECOND, here(second), batch_size=7, progress=lambda *at: shown.append(at))
        == 58
    )
    assert shown[0] == (7, 58) and shown[-1] == (58, 58)
    with Gallery.create(tmp_path / "fresh", SECOND) as fresh:
        for name in names[:4] + names[5:]:
            crops = [crop(name, 0), crop(name, 1)]
            fresh.enrol(name, [Picture(each, embed(each, 24)) for each in crops], SECOND)
        queries = np.stack([embed(bytes([i]), 24) for i in range(20)])
        assert gallery.search(queries, 10, SECOND) == fresh.search(queries, 10, SECOND)
    assert gallery.check() == 29 and gallery.embedder == SECOND
    data = on_disk(gallery.folder)
    assert picture(names[0]).vector.tobytes() not in data and FIRST.sha256.encode() not in data


def test_re_embedding_takes_in_who_comes_and_goes_meanwhile(gallery: Gallery):
    names = fill(gallery, 20)

    def embed_slowly(encoded: Batch) -> np.ndarray:
        if not changes:
            with Gallery.open(gallery.folder) as other:
                other.enrol("late", [picture("late")], FIRST)
                other.remove(names[0])
                other.enrol(names[5], [picture(names[5], 1)], FIRST)
            changes.append(1)
        return second(encoded)

    changes: list[int] = []
    assert re_embed(gallery.folder, SECOND, here(embed_slowly), batch_size=8) == 21
    assert {person.name for person in gallery.people()} == {"late", *names[1:]}
    assert gallery.check() == 20


class Stopped(Exception):
    """What a test stops a re-embedding with."""


def stopped_after(num_batches: int) -> Spread:
    """Embeds that many batches, then stops."""

    def spread(batches: Iterable[Batch]) -> Iterator[tuple[int, np.ndarray]]:
        for place, batch in enumerate(batches):
            if place == num_batches:
                raise Stopped
            yield place, second(batch)

    return spread


def test_a_stopped_re_embedding_goes_on_where_it_was(gallery: Gallery):
    names = fill(gallery, 30)
    before = gallery.search(picture(names[3]).vector[None], 3, FIRST)
    with pytest.raises(Stopped):
        re_embed(gallery.folder, SECOND, stopped_after(2), batch_size=8)
    assert gallery.embedder == FIRST and gallery.check() == 30
    assert gallery.search(picture(names[3]).vector[None], 3, FIRST) == before
    embedded: list[bytes] = []

    def counted(encoded: Batch) -> np.ndarray:
        embedded.extend(encoded)
        return second(encoded)

    shown: list[tuple[int, int]] = []
    assert re_embed(gallery.folder, SECOND, here(counted), 8, lambda *at: shown.append(at)) == 30
    assert embedded == [crop(name) for name in names[16:]]  # two batches were kept
    assert shown[0] == (24, 30)
    assert gallery.check() == 30 and gallery.embedder == SECOND


def test_vectors_that_wait_for_another_embedder_are_not_taken(gallery: Gallery):
    names = fill(gallery, 20)
    with pytest.raises(Stopped):
        re_embed(gallery.folder, SECOND, stopped_after(2), batch_size=8)
    third = dataclasses.replace(SECOND, version="3")

    def negative(encoded: Batch) -> np.ndarray:
        return -second(encoded)

    assert re_embed(gallery.folder, third, here(negative), batch_size=8) == 20
    assert gallery.embedder == third and gallery.check() == 20
    for name in names:
        assert (gallery.pictures(name)[0].vector == -embed(crop(name), 24)).all()


def test_who_is_removed_while_a_re_embedding_is_stopped_is_gone_from_every_byte(gallery: Gallery):
    names = fill(gallery, 20)
    with pytest.raises(Stopped):
        re_embed(gallery.folder, SECOND, stopped_after(2), batch_size=8)
    new = embed(crop(names[0]), 24).tobytes()
    assert new in on_disk(gallery.folder)
    gallery.remove(names[0])
    data = on_disk(gallery.folder)
    assert new[:12] not in data and new[-12:] not in data and names[0].encode() not in data
    assert re_embed(gallery.folder, SECOND, here(second), batch_size=8) == 19
    assert gallery.check() == 19


def test_two_re_embeddings_at_once_are_refused(gallery: Gallery):
    fill(gallery, 3)
    with alone(gallery.folder), pytest.raises(ValueError, match="being re-embedded by another process"):
        re_embed(gallery.folder, SECOND, here(second))
    assert re_embed(gallery.folder, SECOND, here(second)) == 3


@pytest.mark.parametrize(
    "bad", [lambda encoded: np.ones((len(encoded), 24)), lambda encoded: second(encoded)[:-1]]
)
def test_a_failed_re_embedding_changes_nothing(gallery: Gallery, bad: object):
    names = fill(gallery, 20)
    before = gallery.search(picture(names[3]).vector[None], 3, FIRST)
    with pytest.raises(ValueError, match=r"unit length|gave an array"):
        re_embed(gallery.folder, SECOND, here(bad), batch_size=8)  # type: ignore[arg-type]
    assert gallery.check() == 20 and gallery.embedder == FIRST
    assert gallery.search(picture(names[3]).vector[None], 3, FIRST) == before


def test_a_lost_matrix_is_named_and_made_anew(gallery: Gallery):
    names = fill(gallery, 9)
    found = gallery.search(picture(names[2]).vector[None], 4, FIRST)
    for damage in (lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-1])):
        damage(next(gallery.folder.glob("*.coarse")))
        with pytest.raises(
            ValueError,
            match=r"missing or cut short; write it anew from the database: ./convoy faces gallery rebuild --gallery /",
        ):
            Gallery.open(gallery.folder)
        assert rebuild(gallery.folder) == 9
        with Gallery.open(gallery.folder) as again:
            assert again.check() == 9 and again.search(picture(names[2]).vector[None], 4, FIRST) == found


def test_a_damaged_picture_is_found_by_check(gallery: Gallery):
    fill(gallery, 3)
    gallery._connection.execute("UPDATE picture SET encoded = x'00' WHERE id = 2")
    with pytest.raises(ValueError, match="a picture of 'person 001' is missing, damaged"):
        gallery.check()


def test_what_is_no_gallery_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="is no gallery"):
        Gallery.open(tmp_path)
    (tmp_path / "gallery.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match="cannot be read as a gallery"):
        Gallery.open(tmp_path)
    with pytest.raises(ValueError, match="is there already"):
        Gallery.create(tmp_path, FIRST)


def test_of_two_who_make_a_gallery_at_once_the_second_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def make_late(folder: Path, generation: int) -> None:
        make_planes(folder, generation)
        monkeypatch.undo()
        Gallery.create(tmp_path / "gallery", SECOND).close()

    monkeypatch.setattr(gallery_module, "make_planes", make_late)
    with pytest.raises(ValueError, match="gallery is there already; open it"):
        Gallery.create(tmp_path / "gallery", FIRST)
    with Gallery.open(tmp_path / "gallery") as gallery:
        assert gallery.embedder == SECOND and gallery.check() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]


def read_on(folder: Path, stop: object, begun: object, answers: object) -> None:
    """Search in a process of its own until told to stop; what was wrong goes to `answers`."""
    wrong, num = "", 0
    with Gallery.open(folder) as gallery:
        while not stop.is_set() and not wrong:  # type: ignore[attr-defined]
            embedder = gallery.embedder
            try:
                [hits] = gallery.search(embed(crop("stays"), embedder.num_dims)[None], 3, embedder)
            except ValueError:  # switched between the two lines above
                assert gallery.embedder != embedder
                continue
            if not hits or hits[0].name != "stays" or hits[0].distance > 1e-6:
                wrong = f"{hits}"
            num += 1
            begun.release()  # type: ignore[attr-defined]
    answers.put((wrong, num))  # type: ignore[attr-defined]


def test_readers_in_other_processes_see_whole_states_while_one_writes(gallery: Gallery):
    gallery.enrol("stays", [picture("stays")], FIRST)
    stop, begun, answers = FORKSERVER.Event(), FORKSERVER.Semaphore(0), FORKSERVER.Queue()
    readers = [
        FORKSERVER.Process(target=read_on, args=(gallery.folder, stop, begun, answers)) for _ in range(2)
    ]
    for reader in readers:
        reader.start()
    assert begun.acquire(timeout=WAIT_S)
    for number in range(30):
        name = f"passes {number}"
        gallery.enrol(name, [picture(name)], FIRST)
        gallery.enrol(name, [picture(name, 1)], FIRST)
        if number % 2:
            gallery.remove(name)
    re_embed(gallery.folder, SECOND, here(second), batch_size=4)
    re_embed(gallery.folder, FIRST, here(lambda encoded: np.stack([embed(each) for each in encoded])))
    stop.set()
    found = [answers.get(timeout=WAIT_S) for _ in readers]
    for reader in readers:
        reader.join()
    assert [wrong for wrong, _ in found] == ["", ""] and sum(num for _, num in found) > 0
    assert gallery.check() == 16
