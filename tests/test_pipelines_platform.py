"""The platform without its servers: plans, ports, adoption by commands, keepers, and which processes are ours."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from data.address import without_password
from pipelines import adoption, bringup, commands_platform, keeper, plan, processes, registration
from pipelines.adoption import adopt, folder, read_exports
from pipelines.bringup import check_ports, choose_plan, database_url, exclusive
from pipelines.commands import Stopped
from pipelines.parameters import section
from pipelines.plan import Plan, mlflow_records, read_plan, write_environment, write_plan
from pipelines.ports import is_free
from pipelines.services import FOREIGN, SERVICES, ask, insist, mlflow_command, service_environment
from tasks.paths import ROOT
from tests.conftest import Run

POSTGRES_URL = "postgresql://me:s3cret@db.example:5433/records"
WAIT_S = 20


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path))
    for name in (*adoption.SERVERS, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", adoption.SWITCH):
        monkeypatch.setenv(name, "")  # so that what adopt sets is taken back at the end
        monkeypatch.delenv(name)
    folder().mkdir()
    return tmp_path


@pytest.fixture
def listening() -> Iterator[Callable[[], int]]:
    """Opens ports that take connections until the end of the test."""
    sockets: list[socket.socket] = []

    def listen() -> int:
        sockets.append(socket.create_server(("127.0.0.1", 0)))
        return int(sockets[-1].getsockname()[1])

    yield listen
    for each in sockets:
        each.close()


def some_plan(**changes: object) -> Plan:
    return section("platform", Plan, changes)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def start_keeper(name: str, *command: str, log_bytes: int = 10_000) -> subprocess.Popen[bytes]:
    environment = {**os.environ, processes.MARK: processes.mark(folder(), name), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", processes.KEEPER, str(folder()), name, str(log_bytes), *command],
        env=environment, start_new_session=True,
    )  # fmt: skip


# --- plans -------------------------------------------------------------------------------------------------------


def test_a_plan_comes_back_as_it_was_written_and_only_its_owner_reads_it() -> None:
    written = some_plan(mlflow_port=5055, prefect_database=POSTGRES_URL)
    write_plan(written)
    assert read_plan() == written
    assert folder().stat().st_mode & 0o077 == 0


def test_a_file_that_is_no_plan_is_said_and_does_not_keep_down_from_working(run: Run) -> None:
    (folder() / plan.PLAN_FILE).write_text("{")
    code, _, err = run("status")
    assert code == 2 and "is no plan of a platform" in err
    code, out, _ = run("down")
    assert (code, out) == (0, "nothing ran\n")
    assert read_plan() is None


def test_a_password_is_never_shown() -> None:
    assert without_password(POSTGRES_URL) == "postgresql://me:…@db.example:5433/records"
    assert without_password("postgresql://db/records") == "postgresql://db/records"
    with pytest.raises(ConnectionError, match=r"no PostgreSQL answers at postgresql://me:…@") as refused:
        database_url(
            "mlflow_database", f"postgresql://me:s3cret@127.0.0.1:{free_port()}/records", "postgresql+psycopg"
        )
    assert "s3cret" not in str(refused.value)
    shown = " ".join(mlflow_command(some_plan(mlflow_database=POSTGRES_URL)))
    assert "s3cret" not in shown


def test_a_database_gets_the_driver_that_is_installed_for_it(listening: Callable[[], int]) -> None:
    place = f"127.0.0.1:{listening()}/records"
    assert database_url("prefect_database", f"postgres://me@{place}", "postgresql+asyncpg") == (
        f"postgresql+asyncpg://me@{place}"
    )
    with pytest.raises(ValueError, match=r"--mlflow-database \(=sqlite:///x\.db\) must be postgresql://"):
        database_url("mlflow_database", "sqlite:///x.db", "postgresql+psycopg")


def test_on_loopback_mlflow_keeps_what_commands_without_it_keep(home: Path) -> None:
    near, far = some_plan(), some_plan(host="0.0.0.0")
    assert mlflow_records(near) == f"sqlite:///{home / 'mlflow.db'}"
    assert mlflow_command(near)[-1] == (home / "mlflow").as_uri()
    assert mlflow_records(far) == f"sqlite:///{home / 'mlflow' / 'server.db'}"
    assert f"localhost:{far.mlflow_port}" in mlflow_command(far)[-1]


def test_other_settings_are_refused_while_the_platform_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(some_plan(ray_port=6399))
    monkeypatch.setattr(processes, "is_kept", lambda *_: True)
    assert choose_plan({}, {}).ray_port == 6399
    with pytest.raises(ValueError, match=r"other settings \(mlflow_port 5000 → 5001\): \./convoy down"):
        choose_plan({"mlflow_port": 5001}, {})
    monkeypatch.setattr(processes, "is_kept", lambda *_: False)
    assert choose_plan({"mlflow_port": 5001}, {}).ray_port == some_plan().ray_port


def test_a_setting_that_is_none_is_refused(run: Run) -> None:
    code, _, err = run("up", "--set", "prefect_prot=4201")
    assert code == 2 and "did you mean prefect_port?" in err
    code, _, err = run("up", "--set", "prefect_port=99999")
    assert code == 2 and "prefect_port (=99999)" in err
    code, _, err = run("up", "--set", "ray_port=5000")
    assert code == 2 and "(=5000) is another service's port" in err
    code, _, err = run("up", "--set", "mlflow_port=10050")
    assert code == 2 and "mlflow_port (=10050) must lie outside 10002 to 19999" in err


def test_services_get_no_address_of_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FOREIGN:
        monkeypatch.setenv(name, "elsewhere")
    for service in SERVICES:
        assert "elsewhere" not in service_environment(service, some_plan()).values()


# --- ports -------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named_with_its_program_and_a_free_one(listening: Callable[[], int]) -> None:
    port = listening()
    with pytest.raises(
        ValueError, match=f"port {port}, for MLflow server, is taken by process {os.getpid()}"
    ) as told:
        check_ports(some_plan(mlflow_port=port), SERVICES[1:2])
    other = int(str(told.value).rpartition("mlflow_port=")[2])
    assert other > port and is_free("127.0.0.1", other)


def test_a_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ValueError, match="no address of this machine"):
        is_free("192.0.2.1", 4200)


def test_two_at_once_are_refused() -> None:
    code = "import sys; from pipelines.bringup import exclusive\nwith exclusive(): print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        told = rf"another \./convoy up or down .* \(process {other.pid}\)"
        with pytest.raises(ValueError, match=told), exclusive():
            pass
        other.kill()
    with exclusive():
        pass


# --- commands find the platform ----------------------------------------------------------------------------------


def adopted() -> dict[str, str]:
    return {name: os.environ[name] for name in adoption.SERVERS if name in os.environ}


def test_a_command_uses_a_platform_that_answers(listening: Callable[[], int]) -> None:
    written = some_plan(prefect_port=listening(), mlflow_port=listening(), ray_port=listening())
    write_environment(written)
    adopt()
    assert adopted() == {name: written.client_environment()[name] for name in adoption.SERVERS}
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(folder() / "ray-token")


def test_a_command_does_without_a_platform_that_is_not_all_there(
    listening: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    gone = free_port()
    write_environment(some_plan(prefect_port=listening(), mlflow_port=gone, ray_port=listening()))
    adopt()
    assert adopted() == {}
    told = capsys.readouterr().err
    assert f"MLflow (http://127.0.0.1:{gone}) does not answer" in told and "./convoy up" in told
    assert len(told.splitlines()) == 1


def test_what_the_shell_names_goes_before_the_platform(
    listening: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    write_environment(some_plan(prefect_port=listening(), mlflow_port=free_port(), ray_port=listening()))
    adopt()
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///mine.db"
    assert set(adopted()) == set(adoption.SERVERS)


def test_the_switch_keeps_a_command_to_itself(
    listening: Callable[[], int], monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    write_environment(some_plan(prefect_port=listening(), mlflow_port=listening(), ray_port=listening()))
    monkeypatch.setenv(adoption.SWITCH, "off")
    adopt()
    assert adopted() == {}
    monkeypatch.setenv(adoption.SWITCH, "no")
    code, _, err = run("data", "list")
    assert code == 2 and "CONVOY_PLATFORM (=no) must be auto" in err


def test_a_shell_reads_the_file_as_commands_do() -> None:
    file = write_environment(some_plan(host="localhost"))
    shell = subprocess.run(["sh", "-c", f". '{file}'; env -0"], capture_output=True, text=True, check=True)
    seen = dict(line.split("=", 1) for line in shell.stdout.split("\0") if line)
    assert {name: seen[name] for name in read_exports(file)} == read_exports(file)


# --- keepers and processes ---------------------------------------------------------------------------------------


def test_a_keeper_notes_its_service_and_how_it_ended() -> None:
    kept = start_keeper("mlflow", "sh", "-c", "echo said; sleep 1000")
    wait_for(lambda: processes.read_record(folder(), "mlflow"))
    record = processes.read_record(folder(), "mlflow")
    assert record is not None and record.process() is not None and record.code is None
    assert processes.is_kept(folder(), "mlflow")
    os.kill(record.pid, signal.SIGKILL)
    kept.wait(WAIT_S)
    record = processes.read_record(folder(), "mlflow")
    assert record is not None and record.process() is None
    assert (
        record.code == -signal.SIGKILL
        and record.ended_at is not None
        and record.ended_at >= record.started_at
    )
    assert not processes.is_kept(folder(), "mlflow")
    assert keeper.log_file(folder(), "mlflow").read_text() == "said\n"


def test_a_log_stays_below_its_bound_and_keeps_the_newest() -> None:
    kept = start_keeper("ray", "seq", "1", "20000", log_bytes=20_000)
    assert kept.wait(WAIT_S) == 0
    file = keeper.log_file(folder(), "ray")
    files = [file.with_name("ray.log.1"), file]
    assert sum(each.stat().st_size for each in files) <= 20_000
    kept_lines = "".join(each.read_text() for each in files).split()
    assert (
        kept_lines == [str(number) for number in range(20001 - len(kept_lines), 20001)]
        and len(kept_lines) > 1500
    )


def test_a_service_ends_with_a_keeper_that_is_killed() -> None:
    kept = start_keeper("prefect", "sleep", "1000")
    wait_for(lambda: processes.read_record(folder(), "prefect"))
    record = processes.read_record(folder(), "prefect")
    assert record is not None
    kept.kill()
    kept.wait()
    wait_for(lambda: record.process() is None)
    assert not processes.is_kept(folder(), "prefect")


def test_a_keeper_that_has_noted_nothing_yet_counts_as_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = start_keeper("worker", "sleep", "1000")
    monkeypatch.setattr(processes, "read_record", lambda *_: None)
    wait_for(lambda: processes.is_kept(folder(), "worker"))
    processes.end(processes.find(folder()), 5)
    kept.wait(WAIT_S)
    assert not processes.is_kept(folder(), "worker")


def test_a_number_that_another_process_has_now_is_not_taken_for_ours() -> None:
    now = psutil.Process()
    note = {"pid": now.pid, "created": now.create_time() - 1, "started_at": 0.0, "command": []}
    keeper.record_file(folder(), "mlflow").write_text(json.dumps(note))
    record = processes.read_record(folder(), "mlflow")
    assert record is not None and record.process() is None
    assert processes.find(folder()) == []  # and so it is never ended


def test_what_a_service_has_started_is_found_when_the_service_is_gone(run: Run) -> None:
    script = "import subprocess, sys; subprocess.Popen(['sleep', '1000'], start_new_session=True)"
    kept = start_keeper("ray", sys.executable, "-c", script)
    kept.wait(WAIT_S)
    [orphan] = processes.find(folder(), "ray")
    assert orphan.cmdline() == ["sleep", "1000"]
    assert processes.find(folder(), "mlflow") == []
    code, out, _ = run("down")
    assert (code, out) == (0, "stopped; 1 processes have ended\n")
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


def test_what_does_not_end_when_told_is_killed_and_said() -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
    kept = start_keeper("mlflow", sys.executable, "-c", f"import signal, time; {deaf}")
    file = keeper.log_file(folder(), "mlflow")
    wait_for(lambda: file.is_file() and file.read_text() == "deaf\n")
    record = processes.read_record(folder(), "mlflow")
    assert record is not None
    [main] = [each for each in processes.find(folder()) if each.pid == record.pid]
    assert processes.end([main], 0.5) == [main]
    kept.wait(WAIT_S)
    assert record.process() is None


def test_status_and_down_of_nothing(run: Run) -> None:
    code, out, _ = run("status")
    assert code == 1 and "no platform runs here; start one: ./convoy up" in out
    code, out, _ = run("down", "--json")
    assert code == 0 and json.loads(out) == {"ended": 0}
    assert not any(file.suffix == ".json" for file in folder().iterdir())


@pytest.mark.parametrize("there", [True, False])
def test_an_up_that_is_stopped_says_what_stays(
    there: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_plan: Plan, _say: object) -> list[str]:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(commands_platform, "bring_up", stop)
    monkeypatch.setattr(commands_platform, "something_runs", lambda: there)
    code, _, err = run("up")
    stays = "what was started stays: ./convoy up goes on, ./convoy down ends it\n" if there else ""
    assert (code, err) == (143, f"{stays}convoy: stopped\n")


def test_status_knows_that_up_has_not_finished(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(some_plan())
    describe = commands_platform.describe_service
    monkeypatch.setattr(
        commands_platform, "describe_service", lambda *given: {**describe(*given), "state": "runs"}
    )
    code, out, _ = run("status")
    assert code == 1 and "up has not finished" in out and "./convoy up goes on" in out
    code, out, _ = run("status", "--json")
    assert code == 1 and json.loads(out)["finished"] is False and json.loads(out)["healthy"] is False
    write_environment(some_plan())
    code, out, _ = run("status")
    assert code == 0 and "finished" not in out
    monkeypatch.setattr(commands_platform, "describe_service", describe)
    code, out, _ = run("status")
    assert code == 1 and "not all of it runs" in out and "finished" not in out


def test_a_service_that_ends_at_once_is_said_with_its_last_words() -> None:
    write_plan(some_plan())
    kept = start_keeper("mlflow", "sh", "-c", "echo no such database >&2; exit 3")
    kept.wait(WAIT_S)
    with pytest.raises(
        RuntimeError, match=r"MLflow server ended while it started \(code 3\): no such database; its log"
    ):
        bringup.wait_for(SERVICES[1], some_plan(mlflow_port=free_port()), SERVICES[1:2])


def test_a_server_that_is_busy_is_asked_again() -> None:
    answers = [503, 503, 200]

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.pop(0))
            self.end_headers()
            self.wfile.write(b'{"ready": true}')

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(OSError, match="503"):
            ask(url)
        assert insist(url) == {"ready": True}
        server.shutdown()
    assert answers == []


def test_limits_are_set_at_a_server_that_somebody_else_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: dict[str, object] = {}

    class Prefect(BaseHTTPRequestHandler):
        def do_PATCH(self) -> None:
            told[self.path] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with pytest.raises(ValueError, match="PREFECT_API_URL must name the server"):
        registration.main()
    with ThreadingHTTPServer(("127.0.0.1", 0), Prefect) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_address[1]}/api")
        registration.main()
        server.shutdown()
    pool = "/api/work_pools/local"
    own = {each["work_pool"].get("work_queue_name") for each in registration.deployments()} - {None}
    assert told.pop(pool) == {"is_paused": False, "concurrency_limit": some_plan().flows_at_once}
    assert told == {f"{pool}/queues/{queue}": {"concurrency_limit": 1} for queue in own} and len(own) > 10
