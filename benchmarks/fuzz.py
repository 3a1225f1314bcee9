"""Does any damaged file crash what reads it, hang it, fill the memory, or pass without a reason?

    PYTHONPATH=. .venv/bin/python benchmarks/fuzz.py [DATASETS] [--cases 10000] [--seed 0]

Takes real images, annotations, signals, volumes and archives from the datasets folder (CONVOY_DATASETS, default
../shared/datasets), images that Pillow converts to the other formats, and what else is read (tests/parsers.py); damages
each case at random (tests/corruption.py) and gives it to what ingest or another command runs, in processes with a limit
of time for each case and of memory.
Every case follows from the seed and its number: `--case N` runs one in this process, where a debugger sees it. The exit
code is 1 if any case fails, and its file is written to the folder `--keep`.
"""

import argparse
import errno
import faulthandler
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from data.archive import FileTree, memory_tree, open_tree
from data.decode import DecodeError, decode_image, decode_part
from data.formats import list_source
from data.ingest import IngestConfig, check_classes, ingest, measure_items
from data.measurement import measure
from tests.corpus import Corpus, Sound, load_corpus
from tests.corruption import corrupt
from tests.datasets import DATASETS
from tests.parsers import parse, parsed_sounds
from tests.pictures import write_tree

LIMIT_S = 20.0  # of one case
MEMORY_GB = 3.0  # of address space, above what a worker has at its start
CONFIG = IngestConfig(val_fraction=0.2, test_fraction=0.2, near_duplicate_distance=4, max_source_gb=0.1)
SHARES = {"image": 0.48, "annotation": 0.18, "array": 0.12, "archive": 0.08, "ingest": 0.04, "parser": 0.1}
GOOD = ("used", "set aside", "refused")
SOURCE = "the-source"  # what a source or an archive is called


class UnacceptableError(Exception):
    """What must not come of a damaged file."""


@dataclass(frozen=True)
class Case:
    """One damaged file and what is done with it."""

    number: int
    way: str  # a key of SHARES
    sound: Sound
    data: bytes
    damage: str
    random: Random  # for what is drawn while it runs


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    number: int
    way: str
    kind: str  # of the file
    result: str  # one of GOOD, or what went wrong
    detail: str
    time_s: float
    memory_mb: float


def pools(corpus: Corpus) -> dict[str, list[Sound]]:
    """What each way damages."""
    return {
        "image": corpus.images, "annotation": corpus.sources, "array": corpus.arrays, "archive": corpus.archives,
        "ingest": corpus.images, "parser": parsed_sounds(),
    }  # fmt: skip


def draw(corpus: Corpus, seed: int, number: int) -> Case:
    """The case of this number."""
    random = Random(f"{seed} {number}")
    way = random.choices(list(SHARES), list(SHARES.values()))[0]
    pool = pools(corpus)[way]
    sound = random.choice(pool)
    other = random.choice(pool if way in ("annotation", "array", "parser") else corpus.images).data
    data, damage = corrupt(sound.data, random, other)
    return Case(number, way, sound, data, damage, random)


def check_line(text: str) -> str:
    """The reason, if it is one line that says something."""
    if not text.strip() or len(text.splitlines()) != 1:
        raise UnacceptableError(f"a reason that is not one line: {text!r}")
    text.encode()  # no lone surrogates
    if "MemoryError" in text or "out of memory" in text.lower():
        raise UnacceptableError(f"memory: {text}")
    return text


def check_named(case: Case, text: str) -> str:
    """The reason, if it names the source, or a file of it. What is no part of a source has parameters and fields."""
    if case.way != "parser" and not any(Path(name).name in text for name in (SOURCE, *case.sound.files)):
        raise UnacceptableError(f"a reason that names no file: {text}")
    return text


def run_image(case: Case) -> str:
    """Measure an image as ingest does; what is accepted must decode in all the ways in which training asks."""
    (found,) = [measure([case.data])]
    random = case.random
    width, height = int(found.width_px[0]), int(found.height_px[0])
    if found.reason[0]:
        check_line(found.reason[0])
        width, height = random.choice(((64, 48), (1, 1), (5000, 3000)))
    try:
        for channels in (1, 3):
            decode_image(case.data, channels=channels, draft_px=random.choice((None, 1, 32, 224)))
            part = decode_part(case.data, _box(width, height, random), random.choice((8, 64, 224)), channels)
            if part.dtype != "uint8" or part.ndim != 3 or not part.size or part.shape[2] != channels:
                raise UnacceptableError(f"pixels of shape {part.shape}")
    except DecodeError as error:
        check_line(str(error))
        if not found.reason[0]:
            raise UnacceptableError(f"ingest accepts it, training does not: {error}") from None
    return "set aside" if found.reason[0] else "used"


def _box(width: int, height: int, random: Random) -> tuple[float, float, float, float]:
    x0, x1 = sorted(random.uniform(0, width) for _ in range(2))
    y0, y1 = sorted(random.uniform(0, height) for _ in range(2))
    return random.choice(((x0, y0, x1, y1), (0, 0, width, height)))


def run_annotation(case: Case) -> str:
    """List and measure a source whose annotation, signal or volume is damaged."""
    files = case.sound.files | {case.sound.name: case.data}
    tree = memory_tree(SOURCE, files)
    if case.sound.kind == "classes, CSV":  # its tree is the table alone, and reads what that names
        tree = FileTree(SOURCE, {case.sound.name: len(case.data)}, frozenset(), partial(_read, files))
    return _list_and_measure(tree, case.sound.family)


def _read(files: dict[str, bytes], name: str) -> bytes:
    if name not in files:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return files[name]


def _list_and_measure(tree: Any, family: str) -> str:
    listing = list_source(tree, family)
    classes = check_classes(tree.name, family, listing)
    found = measure_items(listing.tree or tree, listing, family, classes, None, 1)
    for image in found.set_aside:
        check_line(image.reason)
    for name in (*found.classes, *listing.points, *(item.id for item in listing.items)):
        name.encode()  # else it could not be stored
    for what in (*listing.issues, *found.targets.issues, *listing.notes):
        check_line(what)
    return "set aside" if found.set_aside else "used"


def run_archive(case: Case) -> str:
    """Open a damaged archive, and ingest what is in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SOURCE
        path.write_bytes(case.data)
        with open_tree(path, spool=Path(folder), max_total_bytes=int(CONFIG.max_source_gb * 1e9)) as tree:
            return _list_and_measure(tree, case.sound.family)


def run_ingest(case: Case) -> str:
    """A whole ingest of sound images and a damaged one."""
    files = {name: data for name, data in case.sound.files.items() if name != case.sound.name}
    with tempfile.TemporaryDirectory() as folder:
        source = write_tree(Path(folder) / "source", files | {"a/damaged.jpg": case.data})
        report = ingest(
            source, name="x", family="classification", store=Path(folder), config=CONFIG, workers=1
        )
    for image in report.set_aside:
        check_line(image.reason)
    if report.num_images + len(report.set_aside) != len(files) + 1:
        raise UnacceptableError(f"{report.num_images} images of {len(files) + 1}")
    return "set aside" if report.set_aside else "used"


RUN: dict[str, Callable[[Case], str]] = {
    "image": run_image, "annotation": run_annotation, "array": run_annotation, "archive": run_archive,
    "ingest": run_ingest, "parser": lambda case: parse(case.sound.kind, case.data),
}  # fmt: skip


def judge(case: Case) -> tuple[str, str]:
    """Run a case: how it ended, and what was said."""
    try:
        return RUN[case.way](case), ""
    except UnacceptableError as error:
        return "unacceptable", str(error)
    except ValueError as error:
        if case.way in ("image", "ingest") or type(error) is not ValueError:
            return type(error).__name__, traceback.format_exc()
        try:
            return "refused", check_named(case, check_line(str(error)))
        except UnacceptableError as worse:
            return "unacceptable", str(worse)
    except Exception as error:  # also warnings, which are errors here
        return type(error).__name__, traceback.format_exc()


def check_sound(corpus: Corpus) -> None:
    """Raise a ValueError unless every file is fine before it is damaged: else the fuzzer would see nothing."""
    for way, sounds in pools(corpus).items():
        for sound in sounds if way != "ingest" else ():
            result, detail = judge(Case(-1, way, sound, sound.data, "none", Random(0)))
            if result != "used":
                raise ValueError(f"{sound.kind} {sound.name} is {result} before it is damaged: {detail}")


def peak_mb(reset: bool = False) -> float:
    """Largest resident memory of this process since the last reset; Linux."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def work(corpus: Corpus, seed: int, pipe: Connection, log: Path) -> None:
    """What a process does: run the cases whose numbers come."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 2)  # decoders in C write there
    faulthandler.enable()
    warnings.simplefilter("error")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(MEMORY_GB * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pipe.send(None)  # ready
    while True:
        case = draw(corpus, seed, pipe.recv())
        before_mb = peak_mb(reset=True)
        started = time.perf_counter()
        result, detail = judge(case)
        time_s = time.perf_counter() - started
        memory_mb = peak_mb() - before_mb
        pipe.send(Outcome(case.number, case.way, case.sound.kind, result, detail, time_s, memory_mb))


class Worker:
    """A process that runs one case at a time, and is replaced if it dies or hangs."""

    def __init__(self, corpus: Corpus, seed: int, log: Path) -> None:
        self.corpus, self.seed = corpus, seed
        self.pipe, theirs = multiprocessing.Pipe()
        arguments = (corpus, seed, theirs, log)
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.number: int | None = None
        self.started_s = 0.0

    def give(self, number: int) -> None:
        self.number, self.started_s = number, time.monotonic()
        self.pipe.send(number)

    def outcome(self, ready: bool) -> Outcome | None:
        """What became of its case, None while it runs."""
        assert self.number is not None
        if ready or self.pipe.poll():  # it may have come since, while another process was started
            try:
                found: Outcome = self.pipe.recv()
                return found
            except EOFError:
                self.process.join()
                return self.failure("crash", f"exit code {self.process.exitcode}")
        if time.monotonic() - self.started_s > LIMIT_S:
            return self.failure("hang", f"over {LIMIT_S:g} s")
        return None

    def failure(self, result: str, detail: str) -> Outcome:
        assert self.number is not None
        case = draw(self.corpus, self.seed, self.number)
        time_s = time.monotonic() - self.started_s
        return Outcome(case.number, case.way, case.sound.kind, result, detail, time_s, 0.0)

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def run_all(
    corpus: Corpus, seed: int, numbers: Iterator[int], num_workers: int, log: Path
) -> Iterator[Outcome]:
    """Run all cases in processes."""
    workers = [Worker(corpus, seed, log) for _ in range(num_workers)]
    for worker in workers:
        worker.pipe.recv()
        if (number := next(numbers, None)) is not None:
            worker.give(number)
    while busy := [worker for worker in workers if worker.number is not None]:
        ready = wait([worker.pipe for worker in busy], timeout=0.5)
        for worker in busy:
            outcome = worker.outcome(worker.pipe in ready)
            if outcome is None:
                continue
            yield outcome
            if outcome.result in ("crash", "hang"):
                worker.end()
                workers[workers.index(worker)] = worker = Worker(corpus, seed, log)
                worker.pipe.recv()
            number = next(numbers, None)
            worker.number = None
            if number is not None:
                worker.give(number)
    for worker in workers:
        worker.end()


def keep_failure(corpus: Corpus, seed: int, outcome: Outcome, folder: Path) -> None:
    """Write the damaged file and what came of it."""
    case = draw(corpus, seed, outcome.number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{seed}-{outcome.number}.bin").write_bytes(case.data)
    lines = (
        f"{case.way} of {case.sound.kind} {case.sound.name}: {case.damage}",
        outcome.result,
        outcome.detail,
    )
    (folder / f"{seed}-{outcome.number}.txt").write_text("\n".join(lines) + "\n")


def show(outcomes: list[Outcome], seed: int, time_s: float) -> None:
    """Print a row for each kind of file, and what failed."""
    failures = [outcome for outcome in outcomes if outcome.result not in GOOD]
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind.partition(",")[0]].append(outcome)
    table = Table(title=f"{len(outcomes):,} damaged files, seed {seed}, {time_s:.0f} s")
    for column in ("kind of file", "cases", *GOOD, "failed", "slowest s", "most memory MB"):
        table.add_column(column, justify="left" if column == "kind of file" else "right")
    for kind, some in [*sorted(by_kind.items()), ("all", outcomes)]:
        results = Counter(outcome.result for outcome in some)
        numbers = [len(some), *(results[name] for name in GOOD)]
        numbers.append(len(some) - sum(numbers[1:]))
        slowest, most = max(outcome.time_s for outcome in some), max(outcome.memory_mb for outcome in some)
        table.add_row(kind, *(f"{number:,}" for number in numbers), f"{slowest:.2f}", f"{most:,.0f}")
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
    print(
        ", ".join(f"{number:,} {way}" for way, number in Counter(outcome.way for outcome in outcomes).items())
    )
    slow = max(outcomes, key=lambda outcome: outcome.time_s)
    print(f"slowest: case {slow.number} ({slow.kind}), {slow.time_s:.2f} s")
    for outcome in failures[:20]:
        last = (outcome.detail.strip().splitlines() or [""])[-1]
        print(f"case {outcome.number} ({outcome.kind}): {outcome.result}: {last[:300]}")


def main() -> int:
    """Run and print; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="?", type=Path, default=DATASETS)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this one here, and show what happens")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "convoy-fuzz")
    args = parser.parse_args()
    if not args.datasets.is_dir():
        parser.error(f"{args.datasets} is no folder; name the one with the datasets, or set CONVOY_DATASETS")
    corpus = load_corpus(args.datasets)
    check_sound(corpus)
    if args.case is not None:
        case = draw(corpus, args.seed, args.case)
        print(f"{case.way} of {case.sound.kind} {case.sound.name}, {len(case.data)} bytes: {case.damage}")
        warnings.simplefilter("error")
        print(*judge(case))
        return 0
    started = time.perf_counter()
    outcomes = []
    args.keep.mkdir(parents=True, exist_ok=True)
    for outcome in run_all(corpus, args.seed, iter(range(args.cases)), args.workers, args.keep / "log"):
        outcomes.append(outcome)
        if outcome.result not in GOOD:
            keep_failure(corpus, args.seed, outcome, args.keep)
    show(outcomes, args.seed, time.perf_counter() - started)
    failed = sum(outcome.result not in GOOD for outcome in outcomes)
    if failed:
        print(f"{failed} failures, their files in {args.keep}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
