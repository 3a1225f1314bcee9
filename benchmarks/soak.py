"""Does anything grow while flows run one after the other, and is anything left of many at once?

    PYTHONPATH=. .venv/bin/python benchmarks/soak.py [--flows 200] [--commands 10] [--parallel 20] [--executor ray]

Each flow trains LeNet-5 on the digits for a few steps, tests it, and keeps the report, in a home of its own:

    in a row    `--flows` in one process, as a worker's server or a notebook would run them
    commands    `--commands` processes of `./convoy train`, one after the other
    at once     `--parallel` such processes at the same time

After each block of a row: memory of the process and of the servers below it (their own pages), open files, threads,
processes, shared memory, files that are left in the folder for temporary ones, and bytes of the databases. Flat is what
grows by no more than its tolerance in 100 flows, give or take two standard errors, by the slope of a straight line
through the blocks after the first quarter, in which caches fill. Databases grow by what is stored: that is linear where
a flow of the second half takes at most a tenth more bytes than one of the first. Exits with 1 where something is not
flat, or a flow fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

CHANGES = {"train": {"epochs": 0.1, "validate_every_epochs": 0}}
WARM_SHARE = 0.25  # of the blocks, which the slope leaves out
FEWEST_ROWS = 6  # that a slope and its error can be told from
LOOK_EVERY_S = 2.0  # at the memory of commands: a look at forty processes takes a core for half a second
END_S = 20.0  # for what a command started to end after it
# What may be had more after 100 flows.
TOLERANCE = {
    "process MB": 5.0, "servers MB": 5.0, "handles": 1.0, "threads": 1.0, "processes": 0.5, "shared MB": 1.0,
    "temporary": 0.5,
}  # fmt: skip
STORED = ("MLflow KB", "Prefect KB", "runs KB")  # that grow with the flows
LINEAR = 1.1  # of the second half's bytes for a flow, by the first half's


def memory_mb(process: psutil.Process, *kinds: str) -> float:
    """Proportional memory of these kinds, in 10^6 bytes; 0 of a process that is gone."""
    with suppress(OSError):
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(kinds)) / 1e6
    return 0.0


def below(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.is_running()]


def count(processes: Sequence[psutil.Process], what: str) -> int:
    """Sum of `num_fds` or `num_threads` of those that live."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += getattr(process, what)()
    return total


def bytes_of(path: Path) -> int:
    """Of a file with what SQLite has beside it, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def stored(home: Path) -> dict[str, float]:
    """KB of what is kept of flows."""
    return {
        "MLflow KB": bytes_of(home / "mlflow.db") / 1e3,
        "Prefect KB": bytes_of(home / ".prefect" / "prefect.db") / 1e3,
        "runs KB": (bytes_of(home / "runs") + bytes_of(home / "mlflow")) / 1e3,
    }


def look(home: Path) -> dict[str, float]:
    """What this process and those below it have now."""
    own = psutil.Process()
    others = below(own)
    return {
        "process MB": memory_mb(own, "Pss_Anon:"),
        "servers MB": sum(memory_mb(each, "Pss_Anon:") for each in others),
        "handles": count([own, *others], "num_fds"),
        "threads": count([own, *others], "num_threads"),
        "processes": len(others),
        "shared MB": sum(memory_mb(each, "Pss_Shmem:") for each in [own, *others]),
        "temporary": len(list(Path(tempfile.gettempdir()).iterdir())),
        **stored(home),
    }


def run_row(home: Path, flows: int, every: int, executor: Any) -> None:
    """Run flows in this process, and say what there is after each block, a JSON document a line."""
    from pipelines import environment

    environment.prepare()
    from pipelines.runner import run_flow

    began = time.perf_counter()
    for number in range(flows + 1):
        if number and number % every == 0:
            seconds = (time.perf_counter() - began) / every
            print(json.dumps({"flows": number, "s a flow": seconds, **look(home)}), flush=True)
            began = time.perf_counter()
        if number < flows:
            run_flow("classification", "digits", "digits", CHANGES, stop_after="evaluate", executor=executor)


def slope(rows: Sequence[dict[str, float]], name: str) -> tuple[float, float]:
    """By how much a measure grows in 100 flows after the warm-up, and two standard errors of that."""
    kept = rows[int(len(rows) * WARM_SHARE) :]
    flows, values = (np.array([row[key] for row in kept]) for key in ("flows", name))
    rise, start = np.polyfit(flows, values, 1)
    left = values - (rise * flows + start)
    variance = (left**2).sum() / (len(kept) - 2) / ((flows - flows.mean()) ** 2).sum()
    return float(rise) * 100, float(np.sqrt(variance)) * 200


def growth(rows: Sequence[dict[str, float]], name: str) -> tuple[float, float]:
    """What a flow adds to a measure, in the first and in the second half."""
    middle = len(rows) // 2
    first, half, last = rows[0], rows[middle], rows[-1]
    return (
        (half[name] - first[name]) / (half["flows"] - first["flows"]),
        (last[name] - half[name]) / (last["flows"] - half["flows"]),
    )


def measure_row(
    options: argparse.Namespace, home: Path, log: Path, console: Console
) -> tuple[list[dict[str, float]], int]:
    """Run the flows in a process of their own, telling each block as it ends: what there was, and its exit code."""
    command = [sys.executable, __file__, "--flows", str(options.flows), "--every", str(options.every),
               "--executor", options.executor, "--home", str(home)]  # fmt: skip
    rows: list[dict[str, float]] = []
    with (
        log.open("ab") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as running,
    ):
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith('{"flows"'):
                rows.append(json.loads(line))
                told = (f"{name} {value:,.1f}" for name, value in rows[-1].items())
                console.print(", ".join(told), style="dim", soft_wrap=True)
    return rows, running.returncode


def show_row(rows: Sequence[dict[str, float]], console: Console, executor: str) -> bool:
    """The table of a row, and whether all of it is flat; False where there are too few blocks to tell."""
    if not rows:
        return False
    table = Table(*rows[0], title=f"{rows[-1]['flows']:,.0f} flows in a row in one process, {executor}")
    for row in rows:
        table.add_row(
            *(f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for value in row.values())
        )
    console.print(table)
    if len(rows) < FEWEST_ROWS:
        console.print(f"{len(rows)} blocks are too few to tell what grows: {FEWEST_ROWS} at least")
        return False
    verdicts = Table("measure", "grows by", "tolerance", "", title="In 100 flows, after the first quarter")
    good = True
    for name, most in TOLERANCE.items():
        found, error = slope(rows, name)
        flat = found - error <= most
        good &= flat
        verdicts.add_row(name, f"{found:+.2f} ± {error:.2f}", f"{most:g}", "flat" if flat else "GROWS")
    for name in STORED:
        early, late = growth(rows, name)
        linear = late <= early * LINEAR
        good &= linear
        verdicts.add_row(
            f"{name} a flow", f"{early:.1f}, then {late:.1f}", f"x {LINEAR:g}", "linear" if linear else "GROWS FASTER"
        )  # fmt: skip
    console.print(verdicts)
    return good


def commands(home: Path, number: int, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start so many trainings, each a process as a person starts it."""
    settings = [f"train.{name}={value}" for name, value in CHANGES["train"].items()]
    for _ in range(number):
        with log.open("ab") as said:
            yield subprocess.Popen(
                [sys.executable, "-m", "pipelines", "train", "classification", "--dataset", "digits", "--stop-after",
                 "evaluate", "--executor", "in_process", *(w for s in settings for w in ("--set", s))],
                stdout=said, stderr=said, env={**os.environ, "CONVOY_HOME": str(home)},
            )  # fmt: skip


def processes_of(home: Path) -> int:
    """How many processes work in this home, but for this one."""
    found = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            here = process.environ().get("CONVOY_HOME") == str(home) and process.pid != os.getpid()
            found += here and process.status() != psutil.STATUS_ZOMBIE
    return found


def left_in(home: Path) -> dict[str, float]:
    """What is there when all commands have ended: processes of this home, temporary files, what is stored."""
    temporary = len(list(Path(tempfile.gettempdir()).iterdir()))
    return {"processes": processes_of(home), "temporary": temporary, **stored(home)}


def show_commands(home: Path, number: int, parallel: int, log: Path, console: Console) -> bool:
    """Run commands in turn, then at once; whether all went well, and left nothing but what they stored."""
    table = Table(
        "", "s", "failed", "peak MB", *left_in(home), title="Commands: what is left when they have ended"
    )
    good = True
    for name, width, total in (("in turn", 1, number), ("at once", parallel, parallel)):
        if not total:
            continue
        before, began, peak, failed = left_in(home), time.perf_counter(), 0.0, 0
        for first in range(0, total, width):
            running = list(commands(home, min(width, total - first), log))
            while any(process.poll() is None for process in running):
                peak = max(
                    peak, sum(memory_mb(each, "Pss_Anon:", "Pss_Shmem:") for each in below(psutil.Process()))
                )
                time.sleep(LOOK_EVERY_S)
            failed += sum(process.returncode != 0 for process in running)
        taken, end = time.perf_counter() - began, time.monotonic() + END_S
        while processes_of(home) and time.monotonic() < end:
            time.sleep(0.2)
        left = left_in(home)
        left["temporary"] -= before["temporary"]
        for kind in STORED:
            left[kind] = (left[kind] - before[kind]) / total
        good &= not failed and not left["processes"] and not left["temporary"]
        cells = [f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for value in left.values()]
        table.add_row(f"{total} {name}", f"{taken:.0f}", str(failed), f"{peak:,.0f}", *cells)
    console.print(table)
    console.print("KB: for a flow")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flows", type=int, default=200)
    parser.add_argument("--every", type=int, default=10, help="flows in a block")
    parser.add_argument("--commands", type=int, default=10)
    parser.add_argument("--parallel", type=int, default=20)
    parser.add_argument("--executor", choices=("in_process", "ray"), default="in_process")
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)  # of the process that runs the row
    options = parser.parse_args()
    if options.home:
        run_row(options.home, options.flows, options.every, options.executor)
        return
    console, good = Console(width=160), True
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        home, temporary, log = Path(folder) / "home", Path(folder) / "tmp", Path(folder) / "log"
        for each in (home, temporary):
            each.mkdir()
        os.environ |= {
            "CONVOY_HOME": str(home),
            "RAY_TMPDIR": tempfile.gettempdir(),
            "TMPDIR": str(temporary),
        }
        tempfile.tempdir = str(temporary)
        add = [sys.executable, "-m", "pipelines", "data", "add", "sklearn:digits", "--name", "digits"]
        subprocess.run(add, check=True, stdout=subprocess.DEVNULL)
        if options.flows:
            rows, code = measure_row(options, home, log, console)
            good = show_row(rows, console, options.executor) and not code
            if code:
                console.print(f"the flows ended with code {code} after {len(rows)} blocks")
        if options.commands or options.parallel:
            good &= show_commands(home, options.commands, options.parallel, log, console)
        if not good:
            console.print(log.read_text(errors="replace")[-5000:], markup=False)
    sys.exit(not good)


if __name__ == "__main__":
    main()
