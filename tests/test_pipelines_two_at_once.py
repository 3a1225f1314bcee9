"""Two at once: trainings, ingests and moves of aliases as real processes in one home, on SQLite and on PostgreSQL."""

import contextlib
import itertools
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from data.checks import check
from data.dataset import Dataset
from pipelines.services import healthy
from tasks import ledger, registry, turns, versioning, versions
from tasks.paths import ROOT, home, runs, store
from tasks.recordstore import connect
from tasks.runrecords import find_run
from tests import postgres, racers
from tests.pictures import class_tree, write_tree
from tests.platforms import key_of_training, wait_for
from tests.postgres import Postgres, needs_postgres
from tests.racers import Done, ended, race, side_by_side, start
from tests.recording import make_model, pictures
from tests.recording import start as start_run

WAIT_S = 240
NUM_RACERS, NUM_VERSIONS = 3, 3


@dataclass(frozen=True)
class Place:
    """A home, and the environment in which commands keep their records on one kind of database."""

    home: Path
    own: dict[str, str]
    postgres: Postgres | None

    def other_machine(self) -> dict[str, str]:
        """The environment of commands that have nothing in common with ours but the servers; there must be some."""
        elsewhere = self.home.with_name("elsewhere")
        return {**self.own, "CONVOY_HOME": str(elsewhere)} if self.postgres else self.own

    def flow_states(self) -> list[str]:
        """The states of all flow runs, as Prefect's database has them."""
        query = "select state_name from flow_run"
        if self.postgres is not None:
            return [str(row[0]) for row in self.postgres.query("prefect", query)]
        with contextlib.closing(sqlite3.connect(self.home / ".prefect" / "prefect.db")) as database:
            return [str(row[0]) for row in database.execute(query)]


@contextlib.contextmanager
def records_on(database: Postgres, folder: Path) -> Iterator[str]:
    """The address of an MLflow server whose records are on PostgreSQL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--artifacts-destination", str(folder)]  # fmt: skip
    own = racers.environment(folder, MLFLOW_BACKEND_STORE_URI=database.mlflow)
    own |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder.parent / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: healthy(f"http://127.0.0.1:{port}/health"), WAIT_S, "MLflow's server answers")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture(
    scope="module",
    params=["sqlite", pytest.param("postgresql", marks=[needs_postgres, pytest.mark.slow])],
)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A fresh home, with nothing in it, and its databases without a table."""
    folder = tmp_path_factory.mktemp(request.param)
    own_home = folder / "home"
    own_home.mkdir()
    with contextlib.ExitStack() as stack:
        own, database = racers.environment(own_home), None
        if request.param == "postgresql":
            database = stack.enter_context(postgres.running())
            uri = stack.enter_context(records_on(database, folder / "artifacts"))
            own |= {"MLFLOW_TRACKING_URI": uri, "PREFECT_API_DATABASE_CONNECTION_URL": database.prefect}
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("CONVOY_HOME", str(own_home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if database is not None:
            patch.setenv("MLFLOW_TRACKING_URI", own["MLFLOW_TRACKING_URI"])
        yield Place(own_home, own, database)


def refused(done: Done) -> str:
    """The one line by which a command was refused."""
    assert done.code == 2, (done.arguments, done.err)
    lines = [line for line in done.err.splitlines() if line.startswith("convoy: ")]
    assert len(lines) == 1 and "Traceback" not in done.err, done.err
    return lines[0]


# --- trainings: the first test of a place, which finds it empty ------------------------------------------------------


TRAIN = ("train", "classification", "--dataset", "digits", "--set", "train.epochs=2", "--json")
COMMANDS = {
    "one": TRAIN,
    "same": TRAIN,
    "seed": (*TRAIN, "--set", "train.seed=1", "--executor", "in_process"),
    "family": ("train", "detection", "--dataset", "digit_scenes", "--set", "train.epochs=0.2", "--json",
               "--executor", "in_process"),
}  # fmt: skip


def record_of(summary: dict[str, Any]) -> Run:
    """The one record that MLflow has of a run."""
    found = find_run(summary["key"])
    assert found.info.run_id == summary["mlflow_run"]
    return found


def weights_of(summary: dict[str, Any]) -> bytes:
    return (runs() / summary["key"] / "model" / "member-0.safetensors").read_bytes()


@pytest.mark.slow
def test_trainings_at_once_in_an_empty_home_are_runs_of_their_own(place: Place) -> None:
    added = side_by_side(
        place.own,
        ("data", "add", "sklearn:digits", "--name", "digits", "--json"),
        ("data", "add", "sklearn:digit_scenes", "--name", "digit_scenes", "--family", "detection", "--json"),
    )
    digests = [done.document["dvc_digest"] for done in added]
    done = dict(zip(COMMANDS, side_by_side(place.own, *COMMANDS.values()), strict=True))
    found = {name: each.document for name, each in done.items()}
    assert len({summary["key"] for summary in found.values()}) == 4, "the same parameters twice are two runs"
    assert place.flow_states() == ["Completed"] * 4
    for summary in found.values():
        assert record_of(summary).info.status == "FINISHED"
        assert (runs() / summary["key"] / "result.json").is_file()
    tags = {name: record_of(summary).data.tags for name, summary in found.items()}
    assert [tags[name]["dvc.digest"] for name in ("one", "same", "seed", "family")] == [
        *[digests[0]] * 3, digests[1]
    ]  # fmt: skip
    assert tags["one"]["params.sha256"] == tags["same"]["params.sha256"] != tags["seed"]["params.sha256"]
    assert weights_of(found["one"]) == weights_of(found["same"]) != weights_of(found["seed"])
    assert found["one"]["metrics"]["accuracy"] == found["same"]["metrics"]["accuracy"]
    classifiers = [found[name] for name in ("one", "same", "seed")]
    assert sorted(summary["version"] for summary in classifiers) == [1, 2, 3]
    assert (found["family"]["model"], found["family"]["version"]) == ("detector-digit_scenes", 1)
    assert sorted(summary["alias"] for summary in classifiers) == ["challenger", "challenger", "champion"]
    moves = check_ledger("classifier-digits")
    assert {move.key for move in moves} == {summary["key"] for summary in classifiers}
    [champion] = [summary for summary in classifiers if summary["alias"] == "champion"]
    assert moves[0].key == champion["key"] and moves[-1].after["champion"] == champion["version"]


@pytest.mark.slow
def test_one_run_is_trained_by_one_process(place: Place) -> None:
    endless = ("--set", "train.epochs=100000", "--executor", "in_process")
    command = ("train", "classification", "--dataset", "digits", *endless)
    if not (store() / "digits").is_dir():
        assert side_by_side(place.own, ("data", "add", "sklearn:digits", "--name", "digits"))[0].code == 0
    first = start(place.own, *command)
    assert first.stderr is not None
    key = key_of_training(first.stderr)
    [second] = side_by_side(place.own, ("train", "--resume", key, "--executor", "in_process"))
    assert refused(second) == (
        f"convoy: run {key} is being trained by process {first.pid}; wait for it, stop it, or start a run of its own"
    )
    assert find_run(key).info.status == "RUNNING", "whoever was refused changed nothing"
    first.send_signal(signal.SIGTERM)
    assert ended(first).code == 143
    assert find_run(key).info.status == "KILLED"


# --- aliases ---------------------------------------------------------------------------------------------------------


def check_ledger(name: str) -> list[ledger.Move]:
    """The moves of a model: one chain without a gap, at whose end the aliases stand."""
    moves = ledger.history(name)
    assert [move.number for move in moves] == list(range(1, len(moves) + 1))
    for earlier, later in itertools.pairwise(moves):
        assert later.before == earlier.after
    assert ledger.aliases(name) == moves[-1].after
    assert ledger.unfinished(name) == []
    return moves


def with_versions(place: Place, name: str) -> None:
    """A registered model of some versions, of which the first is the champion."""
    run_id = start_run(f"of-{name}", place.home / "pets")
    for seed in range(NUM_VERSIONS):
        model = make_model(place.home / "made" / f"{name}-{seed}", seed)
        registry.register(run_id, model, name=name, example=pictures(1), tags={})
    ledger.promote_first(name, 1)


def some_move(generator: random.Random, name: str, because: str) -> tuple[str, ...]:
    options = ("--because", because, "--json")
    if generator.random() < 0.4:
        return ("rollback", name, *options)
    return ("promote", name, str(generator.randint(1, NUM_VERSIONS)), *options)


def raced_moves(place: Place, name: str, num_rounds: int, seed: int) -> None:
    """Promotions and rollbacks that meet: each that went well is recorded once, each other one not at all."""
    generator = random.Random(seed)
    with_versions(place, name)
    own = [place.own, place.other_machine(), place.own]
    went_well: dict[str, Any] = {}
    with racers.racers(*own) as field:
        for number in range(num_rounds):
            commands = [some_move(generator, name, f"{number}.{racer}") for racer in range(NUM_RACERS)]
            delays_s = [generator.choice((0.0, generator.uniform(0, 0.5))) for _ in field]
            for racer, done in enumerate(race(field, commands, delays_s)):
                if done.code == 0:
                    went_well[f"{number}.{racer}"] = done.document
                else:
                    assert any(reason in refused(done) for reason in (
                        "when this was decided, and now", "is the champion of", "no version was champion of",
                        "was rolled back already",
                    ))  # fmt: skip
            moves = check_ledger(name)
            assert sorted(move.because for move in moves[1:]) == sorted(went_well)
    for move in moves[1:]:
        assert went_well[move.because]["run_id"] == move.run_id, "and each was told of its own record"
    assert len(went_well) >= num_rounds / 2
    assert turns.standing(name) is None


def test_moves_at_once_are_one_chain_of_records(place: Place) -> None:
    raced_moves(place, "moved", num_rounds=6, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_moves_at_once_are_one_chain_of_records(place: Place, seed: int) -> None:
    raced_moves(place, f"moved{seed}", num_rounds=20, seed=seed)


REGISTER = """
import sys, time
from pathlib import Path
from tasks import ledger, registry
from tests.recording import make_model, pictures, start
key, folder = sys.argv[1], Path(sys.argv[2])
run_id = start(key, folder / "pets")
model = make_model(folder / "made" / key, int(sys.argv[3]))
print(flush=True)
time.sleep(max(0.0, float(sys.stdin.readline()) - time.time()))
version = registry.register(run_id, model, name=sys.argv[4], example=pictures(1), tags={})
print(version, ledger.promote_first(sys.argv[4], version, "registered", key), run_id, flush=True)
"""


def registered_at_once(place: Place, name: str, delays_s: list[float]) -> list[tuple[int, str, str]]:
    """(version, alias, run) of each of some processes that register a model that nobody knew before."""
    found = []
    with contextlib.ExitStack() as stack:
        processes = []
        for number in range(len(delays_s)):
            own = place.other_machine() if number == 1 else place.own
            command = [
                sys.executable,
                "-c",
                REGISTER,
                f"{name}-{number}",
                own["CONVOY_HOME"],
                str(number),
                name,
            ]
            processes.append(
                stack.enter_context(
                    subprocess.Popen(
                        command, env=own, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE, text=True,
                    )
                )
            )  # fmt: skip
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "\n"
        at = time.time() + racers.LEAD_S
        for process, delay_s in zip(processes, delays_s, strict=True):
            assert process.stdin is not None
            process.stdin.write(f"{at + delay_s}\n")
            process.stdin.flush()
        for process in processes:
            out, err = process.communicate(timeout=WAIT_S)
            assert process.returncode == 0, err
            version, alias, run_id = out.splitlines()[
                -1
            ].split()  # MLflow's client says where a server shows it
            found.append((int(version), alias, run_id))
    return found


@pytest.mark.slow
def test_models_that_are_registered_at_once_are_versions_each_of_its_own_run(place: Place) -> None:
    generator = random.Random(4)
    found = registered_at_once(place, "rushed", [generator.uniform(0, 0.2) for _ in range(4)])
    assert sorted(version for version, _, _ in found) == [1, 2, 3, 4]
    assert sorted(alias for _, alias, _ in found) == ["challenger"] * 3 + ["champion"]
    for version, _, run_id in found:
        assert connect().get_model_version("rushed", str(version)).run_id == run_id
        assert registry.resolve_model(f"models:/rushed/{version}").is_dir()
    moves = check_ledger("rushed")
    assert {move.key for move in moves} == {f"rushed-{n}" for n in range(4)} and len(moves) == 4
    [first] = [version for version, alias, _ in found if alias == "champion"]
    assert moves[0].after == {"champion": first, "challenger": first}


# --- datasets: their versions are in files, whatever the records are on ----------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVOY_HOME", str(folder / "home"))
        yield folder


@pytest.fixture(scope="module")
def field(files: Path) -> Iterator[list[racers.Racer]]:
    with racers.racers(*[racers.environment(home())] * 2) as found:
        assert files.is_dir()
        yield found


def adding(source: Path, name: str, *more: str) -> tuple[str, ...]:
    return ("data", "add", str(source), "--name", name, "--workers", "1", "--json", *more)


def check_whole(name: str) -> None:
    """What lies under a name is what its pointer names, whole, and all its versions are in the cache."""
    assert versions.current(name) == versioning.measure(store() / name)
    for version in versions.history(name):
        with versions.opened(version.md5) as dataset:
            assert check(dataset, workers=1).problems == ()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_bytes_twice_at_once_are_one_version(
    files: Path, field: list[racers.Racer], seed: int
) -> None:
    generator = random.Random(seed)
    source, name = write_tree(files / f"same{seed}", class_tree("ab", 12)), f"same{seed}"
    done = race(field, [adding(source, name)] * 2, [generator.uniform(0, 0.3) for _ in field])
    told = [each.document for each in done]
    assert [document["version"] for document in told] == [1, 1]
    assert sorted(document["new_version"] for document in told) == [False, True]
    assert len(versions.history(name)) == 1
    check_whole(name)


@pytest.mark.parametrize("seed", [0, 1])
def test_different_bytes_at_once_are_two_versions_the_later_of_which_knows_the_sides_of_the_first(
    files: Path, field: list[racers.Racer], seed: int
) -> None:
    generator = random.Random(seed)
    name = f"other{seed}"
    sources = [write_tree(files / f"{name}-{n}", class_tree("ab", n)) for n in (12, 14)]
    done = race(
        field, [adding(source, name) for source in sources], [generator.uniform(0, 0.3) for _ in field]
    )
    told = [each.document for each in done]
    assert sorted(document["version"] for document in told) == [1, 2]
    assert all(document["new_version"] for document in told)
    [last] = [document for document in told if document["version"] == 2]
    assert versions.current(name) == last["dvc_digest"] == versions.history(name)[1].md5
    assert last["known_images"] == 24, "all twelve of each class had a side, which they keep"
    check_whole(name)


def test_of_two_families_at_once_under_one_name_the_later_is_refused(
    files: Path, field: list[racers.Racer]
) -> None:
    source = write_tree(files / "taken", class_tree("ab", 12))
    commands = [adding(source, "taken", "--family", family) for family in ("classification", "faces")]
    done = sorted(race(field, commands, [0.0, 0.1]), key=lambda each: each.code)
    assert done[0].code == 0, done[0].err
    assert "name (='taken') is taken by a dataset of family" in refused(done[1])
    assert Dataset.open(store() / "taken").info.family == done[0].document["family"]
    check_whole("taken")


@pytest.mark.parametrize("seed", range(3))
def test_an_add_and_a_remove_at_once_leave_a_whole_dataset_or_none(
    files: Path, field: list[racers.Racer], seed: int
) -> None:
    generator = random.Random(seed)
    name = f"gone{seed}"
    sources = [write_tree(files / f"{name}-{n}", class_tree("ab", n)) for n in (12, 14)]
    assert race(field[:1], [adding(sources[0], name)], [0.0])[0].code == 0
    commands = [adding(sources[1], name), ("data", "remove", name, "--yes", "--json")]
    added, removed = race(field, commands, [generator.uniform(0, 1.5) for _ in field])
    assert removed.document["cached"]
    assert added.code == 0, added.err
    if (store() / name).exists():
        assert [version.md5 for version in versions.history(name)] == [added.document["dvc_digest"]]
        check_whole(name)
    else:
        assert versions.history(name) == [] and list(store().glob(f"{name}*")) == []
        assert versioning.is_cached(added.document["dvc_digest"])
    assert list(store().glob(f".{name}.[po]*")) == [], "nothing half-done is left"


# --- servers ---------------------------------------------------------------------------------------------------------


SERVE = """
import os, sys
from pipelines import environment, server
environment.prepare()
server.start()
server.wait()
print(os.environ["PREFECT_API_URL"], flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.mark.slow
def test_prefects_servers_that_start_at_once_in_an_empty_home_all_answer(tmp_path: Path) -> None:
    own = racers.environment(tmp_path)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", SERVE], env=own, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True,
                )
            )
            for _ in range(3)
        ]  # fmt: skip
        for each in servers:
            assert each.stdout is not None and each.stderr is not None and each.stdin is not None
            url = each.stdout.readline().strip()
            assert url, each.stderr.read()
            assert healthy(f"{url}/health")
        for each in servers:
            _, err = each.communicate()
            assert (each.returncode, err) == (0, "")
    assert [file.name for file in (tmp_path / ".prefect").glob("*.db")] == ["prefect.db"]
