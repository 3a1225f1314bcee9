"""The face gallery: searches a second against a numpy product, its memory at a million, and what enrolling costs.

    PYTHONPATH=. .venv/bin/python benchmarks/gallery.py [--million] [--threads 2]

Random unit vectors of 512 numbers, exact top-10. "Same" compares all answers with a float64 product over everything,
sorted. The million lies in files; it is searched in a process of its own, whose highest resident memory, mapped files
included, is shown. It takes 2.6 GB of disk below the temporary folder. The time of an enrolment is mostly the disk's.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import milliseconds
from tasks.gallery import Gallery, Picture
from tasks.gallerystore import Embedder
from tasks.nearest import nearest
from tasks.vectors import make_planes, map_planes, write_rows

D, K, ROUNDS = 512, 10, 9
BATCHES = (1, 64)
NONE = np.empty(0, np.int64)
EMBEDDER = Embedder(name="random", version="1", sha256="0" * 64, preprocessing="none", num_dims=D)


def unit(num: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((num, D), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_matrix(folder: Path, num: int) -> None:
    make_planes(folder, 1)
    step = 50_000
    for start in range(0, num, step):
        write_rows(folder, 1, start, unit(min(step, num - start), start))


def numpy_top(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    likeness = queries @ vectors.T
    top = np.argpartition(-likeness, K, axis=1)[:, :K]
    order = np.argsort(-np.take_along_axis(likeness, top, axis=1), axis=1)
    return np.asarray(np.take_along_axis(top, order, axis=1))


def in_float64(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    likeness = np.concatenate(
        [queries.astype(float) @ part.astype(float).T for part in np.array_split(vectors, 100)], axis=1
    )
    return np.argsort(-likeness, axis=1, kind="stable")[:, :K]


def search_rows(table: Table, folder: Path, num: int, with_numpy: bool) -> None:
    matrix = map_planes(folder, 1, num, D)
    vectors = (
        np.concatenate([unit(min(50_000, num - at), at) for at in range(0, num, 50_000)])
        if with_numpy
        else None
    )
    queries = unit(max(BATCHES), seed=10**6 + 1)
    for batch in BATCHES:
        asked = queries[:batch]
        # not in turn: numpy's threads wait for work by spinning, and would take a core from whoever comes next
        [ours] = milliseconds(ROUNDS, lambda asked=asked: nearest(matrix, asked, K, NONE))
        theirs, same = "-", "-"
        if vectors is not None:
            [numpys] = milliseconds(ROUNDS, lambda asked=asked: numpy_top(vectors, asked))
            theirs = f"{batch / numpys * 1000:,.0f}"
            same = "yes" if (nearest(matrix, asked, K, NONE)[0] == in_float64(vectors, asked)).all() else "no"
        table.add_row(
            f"{num:,}", str(batch), f"{batch / ours * 1000:,.0f}", theirs, same, f"{peak_gib():.2f}"
        )


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def enrolling(folder: Path, num: int = 200) -> Table:
    """Milliseconds a person, one by one and together, to remove one, and to see a change and search once."""
    pictures = [
        Picture(np.random.default_rng(i).bytes(6000), vector) for i, vector in enumerate(unit(num, 3))
    ]
    table = Table("the gallery", "ms a person")
    with Gallery.create(folder, EMBEDDER) as gallery:
        began = time.perf_counter()
        gallery.enrol_people(
            [(f"t{i}", [picture]) for i, picture in enumerate(pictures[num // 2 :])], EMBEDDER
        )
        table.add_row(
            f"enrol {num // 2} together", f"{(time.perf_counter() - began) * 1000 / (num // 2):.2f}"
        )
        began = time.perf_counter()
        for i, picture in enumerate(pictures[: num // 2]):
            gallery.enrol(f"s{i}", [picture], EMBEDDER)
        table.add_row("enrol one by one", f"{(time.perf_counter() - began) * 1000 / (num // 2):.2f}")
        began = time.perf_counter()
        for i in range(20):
            gallery.remove(f"s{i}")
        table.add_row("remove", f"{(time.perf_counter() - began) * 1000 / 20:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million", action="store_true", help="a million vectors too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--search", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=100)
    table = Table("vectors", "batch", "queries/s", "numpy float32", "same as float64", "peak memory, GiB")
    if options.search:
        folder, num = options.search
        search_rows(table, Path(folder), int(num), with_numpy=False)
        console.print(table)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_matrix(folder, 100_000)
        search_rows(table, folder, 100_000, with_numpy=True)
        console.print(table)
        console.print(enrolling(folder / "gallery"))
        if options.million:
            write_matrix(folder, 1_000_000)
            again = [sys.executable, __file__, "--threads", str(options.threads), "--search", name, "1000000"]
            subprocess.run(again, check=True)


if __name__ == "__main__":
    main()
