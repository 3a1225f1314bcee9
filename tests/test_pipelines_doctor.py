"""The doctor: each fault it knows is found, and named with what to do."""

import socket
from collections import namedtuple
from pathlib import Path

import pytest

from pipelines import doctor as checks
from pipelines.doctor import check_address, locked_versions
from tasks.paths import ROOT


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


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
