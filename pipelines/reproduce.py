"""Trains a model again, by its own commit, data and parameters, and says whether the same came of it.

The training is that of the commit: `python -m pipelines train --resume KEY` in a git worktree, with a home of its own
that holds the version of the data and the run's job.json, and no record of ours but those. Worktree and home go at the
end, however it ends but by kill -9, after which the training ends too and `./convoy maintain` finds them; the report
stays with the run in MLflow, as `reproduced/<time>.json`.
"""

import os
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data.files import scratch
from pipelines.keeper import end_with_parent
from pipelines.render import document_text
from tasks import registry, reproduction
from tasks.paths import ROOT, downloads
from tasks.reproduction import Origin

LEAVES_S = 30.0  # to end by itself once told to
OURS = ("CONVOY_", "PREFECT_", "DVC_")  # variables that would lead to our records


def reproduce(name: str, seconds_limit: float) -> dict[str, Any]:
    """Train a model or run again, and keep the report with its record; `seconds_limit` 0: however long it takes.

    Raises ValueError for what cannot be trained again, RuntimeError after the limit, and where the training fails.
    """
    origin = reproduction.find_origin(name, ROOT)
    began, started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), time.monotonic()
    with scratch("reproduce") as place:
        home = place / "home"
        reproduction.place_data(origin, home)
        folder = reproduction.place_job(origin, home)
        # weights that were fetched from a URL are checked, and need not be fetched again
        if downloads().is_dir():
            (home / ".cache").mkdir()
            (home / ".cache" / "downloads").symlink_to(downloads())
        with reproduction.code_at(ROOT, origin.commit, place / "code") as code:
            train(origin, code, home, seconds_limit)
        found = reproduction.compare(origin, folder)
    report = {
        "model": name, "key": origin.key, "run_id": origin.run_id, "when": began, "commit": origin.commit,
        "digest": origin.digest, "params_sha256": origin.tags["params.sha256"], "executor": origin.executor,
        "workers": origin.job["config"]["train"]["num_workers"], "trained_on": origin.trained_on,
        "seconds": time.monotonic() - started, **asdict(found),
    }  # fmt: skip
    keep(report)
    return report


def train(origin: Origin, code: Path, home: Path, seconds_limit: float) -> None:
    """Run the training of a commit to its end; what it says of its progress goes to our stderr."""
    stop_after = "evaluate" if origin.metrics else "train"
    command = [sys.executable, "-m", "pipelines", "train", "--resume", origin.key, "--stop-after", stop_after,
               "--executor", origin.executor, "--json"]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    environment |= {"CONVOY_HOME": str(home), "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    sys.stderr.write(
        f"trains {origin.key} again by the code of {origin.commit[:8]}, in a home that goes at the end; that training "
        "says:\n"
    )
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent
    )
    try:
        child.communicate(timeout=seconds_limit or None)
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"{origin.key} was not trained again within {seconds_limit:g} s, and nothing was kept of it: give a larger "
            "--seconds-limit"
        ) from None
    finally:
        end(child)
    if child.returncode:
        raise RuntimeError(
            f"training {origin.key} again by the code of {origin.commit[:8]} ended with code {child.returncode}; what "
            "it said stands above"
        )


def end(child: subprocess.Popen[bytes]) -> None:
    """See to it that a training has ended."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.communicate(timeout=LEAVES_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


def keep(report: dict[str, Any]) -> None:
    """Keep a report with the run that was trained again."""
    with scratch("report") as folder:
        file = folder / f"{report['when'].replace(':', '')}.json"
        file.write_text(document_text(report))
        registry.log_folder(report["run_id"], file, reproduction.REPORTS)
    registry.set_tags(report["run_id"], {reproduction.REPORT_TAG: f"{report['outcome']}, {report['when']}"})
