"""The doctor: each fault it knows is found, and named with what to do."""

import os
import socket
import subprocess
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import doctor as checks
from pipelines import traps
from pipelines.doctor import check_address, locked_versions
from pipelines.finding import Finding
from pipelines.parameters import section
from pipelines.plan import Plan, write_plan
from tasks import leftovers
from tasks.paths import ROOT


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.slow
def test_a_machine_that_runs_the_tests_has_no_failing_check() -> None:
    findings = [check() for check in checks.CHECKS]
    assert [finding for finding in findings if finding.state == "fail"] == []
    assert len({finding.check for finding in findings}) == len(findings)


def test_the_lock_is_read_whole() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = [line for line in lines if line.strip() and not line.startswith("#")]
    versions = locked_versions(ROOT / "requirements.lock")
    assert len(versions) == len(pinned) > 100
    assert versions["torch"].count(".") == 2


def test_a_package_of_another_version_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements.lock").write_text("# a lock\npytest==0.1\nno-such-package==1.0\n")
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    finding = checks.check_packages()
    assert finding.state == "fail"
    assert "(lock: 0.1)" in finding.seen
    assert "no-such-package absent" in finding.seen
    assert finding.advice


def test_a_full_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage(100, 99, 10**8))
    assert checks.check_disk().state == "fail"
    assert "0.1 GB free" in checks.check_disk().seen
    assert checks.check_shared_memory().state in ("warn", "ok")


def test_a_home_that_cannot_be_written_to_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "file"))
    finding = checks.check_writable()
    assert finding.state == "fail"
    assert "CONVOY_HOME" in finding.advice


def test_a_recipe_with_a_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text().replace("lr: 0.003\n", "lr: -1\n", 1))
    monkeypatch.setattr("pipelines.parameters.PARAMS", file)
    finding = checks.check_parameters()
    assert finding.state == "fail"
    assert "optim.lr (=-1)" in finding.seen


@pytest.mark.parametrize(
    ("variable", "check"),
    [("RAY_ADDRESS", checks.check_ray), ("PREFECT_API_URL", checks.check_prefect),
     ("MLFLOW_TRACKING_URI", checks.check_mlflow)],
)  # fmt: skip
def test_a_server_that_is_away_is_found(
    variable: str, check: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(check)
    assert check().state == "ok"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        address = f"127.0.0.1:{port}" if variable == "RAY_ADDRESS" else f"http://127.0.0.1:{port}/api"
        monkeypatch.setenv(variable, address)
        assert check().state == "ok"
    finding = check()
    assert finding.state == "fail"
    assert f"{variable}={address}" in finding.seen
    assert variable in finding.advice


def test_an_address_that_is_none_is_a_finding_and_no_crash() -> None:
    assert check_address("Ray", "RAY_ADDRESS", "ray://host:port", 1, "start").state == "fail"


def test_datasets_without_a_record_are_found(home: Path) -> None:
    folder = home / "data" / "store" / "pets"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text("{}")
    finding = checks.check_datasets()
    assert finding.state == "warn"
    assert "pets" in finding.seen
    assert "dvc add" in finding.advice


def test_versions_that_are_known_to_fail_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert traps.check_fastapi().state == "ok"
    monkeypatch.setattr(traps, "version", lambda _name: "0.151.0")
    assert traps.check_fastapi().state == "fail"
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 34, 1))
    assert traps.check_sqlite().state == "fail"


def test_a_build_of_torch_that_does_not_see_the_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    assert "a build for CPUs" in traps.check_torch().seen
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert "CUDA_VISIBLE_DEVICES" in traps.check_torch().seen


@pytest.mark.parametrize(
    ("name", "value", "check"),
    [
        ("OMP_NUM_THREADS", "4096", traps.check_threads),
        ("OMP_WAIT_POLICY", "ACTIVE", traps.check_threads),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so", traps.check_threads),
        ("MALLOC_ARENA_MAX", "2", traps.check_threads),
        ("PREFECT_PROFILE", "mine", traps.check_environment),
        ("MLFLOW_RUN_ID", "123", traps.check_environment),
        ("MLFLOW_DISABLE_TELEMETRY", "1", traps.check_environment),
        ("RAY_AUTH_MODE", "token", traps.check_environment),
        ("PYTHONDONTWRITEBYTECODE", "1", traps.check_environment),
        ("http_proxy", "http://proxy:3128", traps.check_environment),
    ],
)
def test_a_setting_that_somebody_forgot_is_found(
    name: str, value: str, check: Callable[[], Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in (
        "PYTHONDONTWRITEBYTECODE",
        "http_proxy",
        "HTTP_PROXY",
        "no_proxy",
        "NO_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.delenv(name, raising=False)
    before = check().seen
    monkeypatch.setenv(name, value)
    found = check()
    assert found.state == "warn" and name in found.seen and name not in before and found.advice


def test_few_open_files_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _kind: (1024, 524288))
    found = traps.check_open_files()
    assert (found.state, found.advice) == ("warn", "ulimit -n 524288")


def test_records_on_a_network_disk_are_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = namedtuple("mount", "mountpoint fstype")
    mounts = [
        mount("/", "ext4"),
        mount(str(home / "shared"), "nfs4"),
        mount(str(home / "shared" / "local"), "xfs"),
    ]
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: mounts)
    monkeypatch.setenv("PREFECT_HOME", str(home / "shared" / "local" / "x"))
    assert traps.check_home_disk().state == "ok"
    monkeypatch.setenv("PREFECT_HOME", str(home / "shared" / "prefect"))
    found = traps.check_home_disk()
    assert found.state == "warn" and "PREFECT_HOME" in found.seen and "nfs4" in found.seen


def test_ports_of_the_platform_that_others_have_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        plan = section("platform", Plan, {"ray_port": port})
        monkeypatch.setattr(traps, "section", lambda *_: plan)
        found = traps.check_ports()
    assert found.state == "warn" and f"{port} (ray_port) by process {os.getpid()}" in found.seen


def test_what_a_platform_left_behind_is_found(home: Path) -> None:
    assert traps.check_platform().state == "ok"
    (home / ".platform").mkdir()
    (home / ".platform" / "env.sh").write_text("")
    assert traps.check_platform().advice == "./convoy down"
    write_plan(section("platform", Plan, {}))
    found = traps.check_platform()
    assert found.state == "warn" and "MLflow server" in found.seen and "./convoy up" in found.advice


def test_what_processes_that_have_ended_left_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    monkeypatch.setattr(leftovers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(leftovers, "RAY_SESSIONS", tmp_path)
    monkeypatch.setattr(traps, "LEFT_GB", 2e-6)
    monkeypatch.setattr(traps, "LEFT_SESSIONS", 0)
    (tmp_path / f"torch_{os.getpid()}_99_0").write_bytes(bytes(3000))
    (tmp_path / f"session_2026-11-26_06-00-00_1_{os.getpid()}").mkdir()
    assert traps.check_leftovers().state == "ok"
    (tmp_path / f"torch_{done.pid}_99_0").write_bytes(bytes(3000))
    found = traps.check_leftovers()
    assert found.state == "warn" and "torch_PID" in found.seen and "session" not in found.seen
    (tmp_path / f"session_2026-11-26_06-00-00_1_{done.pid}").mkdir()
    assert "1 sessions of Ray" in traps.check_leftovers().seen
    lock = tmp_path / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(parents=True)
    lock.write_text('{"read": {}, "wri')
    assert f"DVC's lock {lock}: DVC was killed while it wrote it" in traps.check_leftovers().seen
