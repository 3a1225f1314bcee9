"""`./convoy up`, `down`, `status` on real servers that are killed: nothing is lost, nothing stays behind."""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data.address import is_loopback
from data.dataset import Dataset
from tasks.paths import ROOT
from tests import postgres
from tests.platforms import (
    Platform,
    listening,
    new_platform,
    running,
    tiny_changes,
    wait_for,
)
from tests.postgres import needs_postgres

pytestmark = [pytest.mark.slow, pytest.mark.chaos]
TRAIN = (
    "train",
    "classification",
    "--dataset",
    "digits",
    "--executor",
    "in_process",
    "--stop-after",
    "train",
)


@pytest.fixture(scope="module")
def platform(module_home: Path, digits: Dataset) -> Iterator[Platform]:
    assert digits.info.name == "digits"
    with running(module_home) as platform:
        yield platform


def pids(platform: Platform) -> dict[str, int]:
    return {name: service["pid"] for name, service in platform.status().items()}


def test_an_up_that_is_killed_is_put_in_order_by_the_next_and_by_down(tmp_path: Path) -> None:
    platform = new_platform(tmp_path)
    for ended_by in ("up", "down"):
        with subprocess.Popen(
            platform.command("up"), env=platform.environment, cwd=ROOT, stderr=subprocess.DEVNULL
        ) as first:
            wait_for(lambda: len(platform.processes()) > 2, 60, "something was started")
            first.kill()
        assert platform.processes()
        before = {process.pid for process in platform.processes()}
        if ended_by == "up":
            platform.convoy("up")
            services = platform.status()
            assert {service["state"] for service in services.values()} == {"runs"}
            assert before <= {process.pid for process in platform.processes()}  # went on with what there was
        assert platform.call("down").returncode == 0
        assert platform.processes() == []
        assert sorted(file.name for file in platform.folder.iterdir()) == ["deployed", "lock", "logs"]
        for port in platform.ports.values():
            socket.create_server(("127.0.0.1", port)).close()


def test_a_second_up_starts_nothing(platform: Platform) -> None:
    before = pids(platform)
    document = platform.convoy("up")
    assert document["started"] == [] and document["healthy"]
    assert pids(platform) == before


def test_a_started_platform_listens_on_the_loopback_alone(platform: Platform) -> None:
    found = listening(platform.processes())
    assert [each for each in found if not is_loopback(each[0])] == []
    assert set(platform.ports.values()) <= {port for _, port, _ in found}


@pytest.mark.parametrize("name", ["prefect", "mlflow", "ray", "worker"])
def test_a_service_that_dies_is_seen_and_started_again_alone(name: str, platform: Platform) -> None:
    before = pids(platform)
    psutil.Process(before[name]).kill()
    wait_for(lambda: platform.status()[name]["state"] == "stopped", 20, "the death is seen")
    seen = platform.call("status")
    assert seen.returncode == 1 and "code -9" in seen.stdout and "./convoy up" in seen.stdout
    assert platform.convoy("up")["started"] == [name]
    after = pids(platform)
    assert after[name] != before[name]
    assert {other: pid for other, pid in after.items() if other != name} == {
        other: pid for other, pid in before.items() if other != name
    }


def test_the_status_knows_where_how_long_and_how_much(platform: Platform) -> None:
    services = platform.status()
    assert services["prefect"]["version"] == "3.8.8"
    assert services["mlflow"]["address"] == f"http://127.0.0.1:{platform.ports['mlflow_port']}"
    for service in services.values():
        assert service["memory_mb"] > 50
        assert abs(psutil.Process(service["pid"]).create_time() - service["since"]) < 5
    document = json.loads(platform.call("status", "--json").stdout)
    assert document["queue"] == {"running": 0, "waiting": 0, "paused": 0}


def test_up_names_the_logs_of_its_own_ray_though_another_was_started_since(platform: Platform) -> None:
    another = "import ray; ray.init('local', include_dashboard=False, log_to_driver=False, num_cpus=1)"
    subprocess.run([sys.executable, "-c", another], check=True, capture_output=True)
    logs = Path(platform.convoy("up")["ray_logs"])
    (head,) = [process for process in platform.processes() if process.name() == "gcs_server"]
    assert logs in {Path(file.path).parent for file in head.open_files()}


def test_a_command_uses_the_platform_and_does_without_when_it_is_away(platform: Platform) -> None:
    with_it = platform.convoy(*TRAIN, *tiny_changes())
    assert with_it["mlflow_url"].startswith(f"http://127.0.0.1:{platform.ports['mlflow_port']}")
    assert platform.state(with_it["key"]) == "Completed"
    off = platform.call(*TRAIN, *tiny_changes(), "--json")
    platform.kill("mlflow")
    without = platform.call(*TRAIN, *tiny_changes(), "--json")
    platform.convoy("up")
    assert off.returncode == without.returncode == 0
    assert "MLflow" in without.stderr.splitlines()[0] and "does not answer" in without.stderr.splitlines()[0]
    assert platform.mlflow(json.loads(without.stdout)["key"]) == ["FINISHED"]  # both keep the same records
    assert platform.mlflow(with_it["key"]) == ["FINISHED"]


def finished(platform: Platform, run: str) -> None:
    """The run ends well, went on from a checkpoint, is one record, and no task of it runs for ever in Prefect."""
    platform.await_training(run)
    tasks = platform.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    trained = sorted(task["state_name"] for task in tasks if task["name"].startswith("train-"))
    assert trained == ["Completed", "Crashed"]
    assert all(task["state_type"] in ("COMPLETED", "CRASHED") for task in tasks)


def test_a_run_that_down_stops_goes_on_with_the_next_up(platform: Platform) -> None:
    run = platform.long_run()
    ended = platform.call("down")
    assert ended.returncode == 0 and f"flow run {run} was stopped" in ended.stderr
    assert platform.processes() == []
    assert platform.mlflow(run) == ["KILLED"]
    platform.convoy("up")
    finished(platform, run)


def test_a_run_that_is_killed_with_its_worker_goes_on_with_the_next_up(platform: Platform) -> None:
    run = platform.long_run()
    platform.kill("worker")
    told = platform.call("up")
    assert told.returncode == 0 and f"flow run {run} goes on" in told.stderr
    finished(platform, run)


def test_a_port_that_another_program_has_is_refused_before_anything_starts(tmp_path: Path) -> None:
    platform = new_platform(tmp_path)
    with socket.create_server(("127.0.0.1", platform.ports["ray_port"])):
        refused = platform.call("up")
    assert refused.returncode == 2
    assert "for Ray head, is taken by process" in refused.stderr and "--set ray_port=" in refused.stderr
    assert platform.processes() == []


@needs_postgres
def test_records_of_a_platform_on_postgresql_are_there_after_it_was_down(tmp_path: Path) -> None:
    platform = new_platform(tmp_path)
    with postgres.running() as database:
        platform.environment["CONVOY_PREFECT_DATABASE"] = database.url("prefect")
        platform.environment["CONVOY_MLFLOW_DATABASE"] = database.url("mlflow")
        try:
            platform.convoy("data", "add", "sklearn:digits", "--name", "digits", "--family", "classification")
            platform.convoy("up")
            key = platform.convoy(*TRAIN, *tiny_changes())["key"]
            held = holding_text(tmp_path, database.password)
            assert platform.folder / "plan.json" in held, "while it runs; `down` removes it"
            for file in held:
                assert is_closed(file, tmp_path), f"others can read the password in {file}"
            assert platform.convoy("down")
            platform.convoy("up")
            assert platform.state(key) == "Completed"
        finally:
            platform.call("down")
        query = "select status from runs join tags using (run_uuid) where key = 'convoy.key' and value = '%s'"
        assert database.query("mlflow", query % key) == [("FINISHED",)]
        for file in (tmp_path / "mlflow.db", tmp_path / ".prefect" / "prefect.db"):
            assert not file.is_file(), "nothing was written to SQLite"
    assert not platform.processes()


def holding_text(folder: Path, text: str) -> list[Path]:
    """The files below a folder that have a text in them."""
    found = []
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it was there for a while
            if file.is_file() and text.encode() in file.read_bytes():
                found.append(file)
    return found


def is_closed(file: Path, home: Path) -> bool:
    """Whether others cannot read a file, for its own mode or that of a folder between it and the home."""
    places = [file, *(folder for folder in file.parents if home in folder.parents)]
    return any(place.stat().st_mode & 0o077 == 0 for place in places)
