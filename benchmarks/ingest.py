"""How fast is ingest, where does its time go, and how far is that from only decoding?

    PYTHONPATH=. .venv/bin/python benchmarks/ingest.py [SOURCE]

SOURCE is a folder or archive of a few thousand images or more; by default CIFAR-10's 60,000 JPEGs in the shared
datasets folder (CONVOY_DATASETS, default ../shared/datasets). The limit that ingest is compared with is the least
that anybody must do: unpack the archive (Python's lzma, tarfile) and decode every image to pixels (Pillow), in one
process and in as many as ingest uses.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.archive import open_tree
from data.dataset import Dataset
from data.decode import decode_image
from data.findings import find
from data.formats import list_source
from data.ingest import IngestConfig, ingest
from data.measurement import CHUNK_IMAGES
from data.report import IngestReport
from tests.datasets import DATASETS

DEFAULT = "cifar10_jpeg.tar.xz"
CONFIG = IngestConfig(val_fraction=0.1, test_fraction=0.2, near_duplicate_distance=11, max_source_gb=100)


def decode_all(blobs: list[bytes]) -> int:
    """Decode each image, and keep nothing."""
    return sum(decode_image(blob, channels=3).width > 0 for blob in blobs)


def cpu_s() -> float:
    """Processor seconds of this process and of the children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds of `work`."""
    wall, cpu = time.perf_counter(), cpu_s()
    work()
    return time.perf_counter() - wall, cpu_s() - cpu


def main(source: Path, workers: int, spool: Path) -> None:
    """Measure and print."""
    blobs: list[bytes] = []

    def unpack() -> None:
        with open_tree(source, spool=spool, max_total_bytes=1 << 40) as tree:
            blobs.extend(tree.read(item.path) for item in list_source(tree, "classification").items)

    def decode_in_processes() -> None:
        chunks = [blobs[i : i + CHUNK_IMAGES] for i in range(0, len(blobs), CHUNK_IMAGES)]
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            assert sum(pool.map(decode_all, chunks)) == len(blobs)

    rows = [("unpack and list, 1 process", *timed(unpack))]
    rows.append(("decode only, 1 process", *timed(lambda: decode_all(blobs))))
    rows.append((f"decode only, {workers} processes", *timed(decode_in_processes)))
    limit_s = rows[0][1] + min(rows[1][1], rows[2][1])
    limit_cpu_s = rows[0][2] + rows[1][2]
    rows.append(("the limit: unpack, then decode", limit_s, limit_cpu_s))
    reports = []

    def whole() -> None:
        reports.append(
            ingest(source, name="bench", family="classification", store=spool, config=CONFIG, workers=workers)
        )

    rows.append(("ingest", *timed(whole)))
    Console().print(
        table_of(f"{source.name}: {len(blobs):,} images", rows, (limit_s, limit_cpu_s), reports[0])
    )
    findings = find(Dataset.open(spool / "bench")).findings
    print(
        f"near-duplicates: {reports[0].near_duplicate_images:,} pictures in "
        f"{reports[0].near_duplicate_clusters:,} clusters; "
        + "; ".join(f"{f.name}: {f.amount}" for f in findings if f.name.endswith("across-splits"))
    )


def table_of(
    title: str, rows: list[tuple[str, float, float]], limit: tuple[float, float], report: IngestReport
) -> Table:
    """A line a way, with its wall-clock and processor seconds, and one for each phase of ingest."""
    num = report.num_images + len(report.set_aside)
    table = Table(title=f"{title}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for column in ("", "wall s", "images/s", "of the limit", "cpu s", "of the limit"):
        table.add_column(column, justify="left" if not column else "right")
    for name, wall, cpu in rows:
        ratios = (f"{wall / limit[0]:.2f}", f"{cpu / limit[1]:.2f}")
        table.add_row(name, f"{wall:.1f}", f"{num / wall:,.0f}", ratios[0], f"{cpu:.1f}", ratios[1])
    for name, seconds in report.phase_s.items():
        share = f"{seconds / report.time_s:.0%}"
        table.add_row(f"  of it: {name}", f"{seconds:.1f}", f"{num / seconds:,.0f}", share, "", "")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, nargs="?", default=DATASETS / DEFAULT)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        main(arguments.source, arguments.workers, Path(scratch))
