"""A gallery outlives its writer: killed at any moment, it opens and holds whole people only."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tasks.gallery import Gallery
from tasks.reembedding import Batch, here, re_embed
from tests.facegalleries import FIRST, SECOND, crop, embed, picture

NUM_PEOPLE = 1000
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tasks.gallery", "tests.facegalleries"])


def name_of(number: int) -> str:
    return f"person {number:04d}"


def write_on(folder: Path, first: int, words: Path) -> None:
    """Enrol everybody from `first` on, every tenth with a second picture later, and remove every seventh again.

    What is done is said in the file `words`, after the call that did it.
    """
    told = os.open(words, os.O_WRONLY | os.O_APPEND)
    with Gallery.open(folder) as gallery:
        for number in range(first, NUM_PEOPLE):
            name = name_of(number)
            gallery.enrol(name, [picture(name)], FIRST)
            os.write(told, f"+{number}\n".encode())
            if number % 10 == 9:
                gallery.enrol(name, [picture(name, 1)], FIRST)
                os.write(told, f"2{number}\n".encode())
            if number % 7 == 6:
                gallery.remove(name)
                os.write(told, f"-{number}\n".encode())


def killed_after(folder: Path, first: int, wait_s: float) -> list[str]:
    """What a writer said it did until it was killed, so long after its first word, or had done all."""
    words = folder.with_name(f"{folder.name}.words")
    words.write_bytes(b"")
    writer = CONTEXT.Process(target=write_on, args=(folder, first, words))
    writer.start()
    while writer.is_alive() and not words.stat().st_size:
        time.sleep(0.001)
    writer.join(wait_s)
    if writer.is_alive():
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    return words.read_text().split()


def check_whole(folder: Path, said: list[str], first: int) -> int:
    """Everybody that was said to be enrolled is there whole, removed people are not; who comes next."""
    with Gallery.open(folder) as gallery:
        there = {person.name: person.num_pictures for person in gallery.people()}
        assert gallery.check() == len(there)
        numbers = {sign: {int(word[1:]) for word in said if word[0] == sign} for sign in "+2-"}
        for number in {*range(first), *numbers["+"]} - numbers["-"]:
            # every seventh is removed, which the writer did not say any more where it was killed in between
            assert name_of(number) in there or number % 7 == 6
        for number in numbers["2"] & {int(name[-4:]) for name in there}:
            assert there[name_of(number)] == 2
        gone = [name_of(number) for number in numbers["-"]]
        assert not set(gone) & set(there)
        data = b"".join(file.read_bytes() for file in folder.iterdir())
        for name in gone:
            assert crop(name)[:32] not in data and embed(crop(name)).tobytes()[:16] not in data
        for name, num_pictures in list(there.items())[-20:]:
            stored = gallery.pictures(name)
            assert [each.encoded for each in stored] == [crop(name, i) for i in range(num_pictures)]
            mean = np.sum([embed(crop(name, i)).astype(float) for i in range(num_pictures)], axis=0)
            query = (mean / np.linalg.norm(mean)).astype(np.float32)
            [[hit]] = gallery.search(query[None], 1, FIRST)
            assert hit.name == name and hit.distance < 1e-6
        known = {int(name[-4:]) for name in there}
    return max([first - 1, *numbers["+"], *known]) + 1


def kill_often(tmp_path: Path, times: int, longest_wait_s: float, seed: int) -> None:
    generator = random.Random(seed)
    first = NUM_PEOPLE
    for number in range(times):
        if first >= NUM_PEOPLE - 50:  # all but done: from the start, in a new one
            folder, first = tmp_path / f"gallery{number}", 0
            Gallery.create(folder, FIRST).close()
        said = killed_after(folder, first, generator.uniform(0, longest_wait_s))
        first = check_whole(folder, said, first)


def re_embed_slowly(folder: Path, kept: object) -> None:
    """Embed a gallery anew, batch after batch, saying so before each."""

    def embed_next(encoded: Batch) -> np.ndarray:
        kept.release()  # type: ignore[attr-defined]
        time.sleep(0.05)
        return np.stack([embed(each, SECOND.num_dims) for each in encoded])

    re_embed(folder, SECOND, here(embed_next), batch_size=4)


@pytest.mark.chaos
def test_a_re_embedding_that_is_killed_goes_on_where_it_was(tmp_path: Path):
    folder = tmp_path / "gallery"
    with Gallery.create(folder, FIRST) as gallery:
        gallery.enrol_people([(name_of(number), [picture(name_of(number))]) for number in range(40)], FIRST)
    kept = CONTEXT.Semaphore(0)
    writer = CONTEXT.Process(target=re_embed_slowly, args=(folder, kept))
    writer.start()
    for _ in range(4):  # three batches are kept when the fourth begins
        assert kept.acquire(timeout=60)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    with Gallery.open(folder) as gallery:
        assert gallery.embedder == FIRST and gallery.check() == 40
        embedded: list[bytes] = []

        def rest(encoded: Batch) -> np.ndarray:
            embedded.extend(encoded)
            return np.stack([embed(each, SECOND.num_dims) for each in encoded])

        assert re_embed(folder, SECOND, here(rest), batch_size=4) == 40
        assert embedded[-1] == crop(name_of(39)) and len(embedded) <= 28
        assert gallery.embedder == SECOND and gallery.check() == 40


@pytest.mark.chaos
def test_a_gallery_whose_writer_is_killed_holds_whole_people(tmp_path: Path):
    kill_often(tmp_path, times=6, longest_wait_s=0.8, seed=1)


@pytest.mark.chaos
@pytest.mark.slow
def test_fifty_kills_while_a_thousand_people_are_enrolled(tmp_path: Path):
    kill_often(tmp_path, times=50, longest_wait_s=3.0, seed=2)
