"""Commands typed at one machine that train on others: no disk in common, no code there, and nodes that are lost.

The machines are network namespaces (tests.namespaces): a head, a far node and a desk. Only the desk sees the checkout
and CONVOY_HOME; MLflow, Prefect and an object store are servers beside them.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data.dataset import Dataset
from pipelines.configuration import configuration
from pipelines.parameters import flatten
from pipelines.services import ask
from tasks import cluster
from tasks.paths import ROOT
from tasks.train import train
from tests.namespaces import PYTHON, Machines, Node, hindrance, machines
from tests.pictures import class_tree, write_tree
from tests.platforms import CHANGES, wait_for
from tests.test_families import assert_equal_weights

pytestmark = pytest.mark.slow
COMMAND_S = 600
TRAIN = ("train", "classification", "--dataset", "digits", "--stop-after", "train", "--json")
LONG = {"epochs": 60.0, "checkpoint_every_steps": 40}  # enough to lose a node on the way


def changes(**settings: Any) -> dict[str, Any]:
    """Tiny parameters for two workers."""
    return {**CHANGES, "train": {**CHANGES["train"], "num_workers": 2, **settings}}


def sets(**settings: Any) -> list[str]:
    """The same as they are typed."""
    return [f"--set={key}={json.dumps(value)}" for key, value in flatten(changes(**settings)).items()]


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a command: its exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=COMMAND_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def convoy(place: Machines, *words: str, home: Path | None = None) -> Any:
    """Type a command at the desk, which must succeed: what it says."""
    code, out, err = finish(place.popen(*words, home=home))
    assert code == 0, out + err
    return json.loads(out) if "--json" in words else out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Three machines, the digits ingested at the desk and pushed to the object store; a Ray of all three."""
    if reason := hindrance():
        pytest.skip(reason)
    with machines(3, tmp_path_factory.mktemp("machines")) as found:
        found.start_ray()
        convoy(found, "data", "add", "sklearn:digits", "--name", "digits", "--family", "classification")
        convoy(found, "data", "remote", "s3://convoy/dvc", "--option", f"endpointurl={found.url('s3')}")
        convoy(found, "data", "push")
        yield found


@pytest.fixture(scope="module")
def one_machine(place: Machines, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs of the same parameters, with as many workers, on this machine alone."""

    @cache
    def made(**settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("one") / "run"
        config = configuration("classification", "digits", "auto", changes(**settings))
        try:
            train(
                "classification", config, Dataset.open(place.home / "data" / "store" / "digits"), folder=folder,
                key="k", digest="",
            )  # fmt: skip
        finally:
            cluster.disconnect()
        return folder

    return made


def mlflow_runs(place: Machines, key: str) -> list[tuple[str, str]]:
    """The state of each of MLflow's runs with a key, and how many workers it had."""
    query = """
        select status, workers.value from runs join tags as keys using (run_uuid) left join tags as workers
        on workers.run_uuid = runs.run_uuid and workers.key = 'trained.workers'
        where keys.key = 'convoy.key' and keys.value = ?
    """
    with closing(sqlite3.connect(place.folder / "mlflow.db")) as database:
        return [(str(status), str(workers)) for status, workers in database.execute(query, (key,))]


def test_the_nodes_see_neither_the_code_nor_the_data(place: Machines) -> None:
    def seen(node: Node, folder: Path) -> str:
        command = node.command("ls", str(folder))
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for folder in (ROOT, place.home):
        *nodes, desk = (seen(node, folder) for node in place.nodes)
        assert nodes == ["", ""] and "data" in desk
    assert len({node.address for node in place.nodes}) == 3


@pytest.mark.parametrize("settings", [
    {"data_mode": "resident"}, {"data_mode": "streaming", "augment_workers": 1},
], ids=["resident", "streaming"])  # fmt: skip
def test_two_machines_give_the_weights_of_one(
    settings: dict[str, Any], place: Machines, one_machine: Callable[..., Path]
) -> None:
    summary = convoy(place, *TRAIN, *sets(**settings))
    assert_equal_weights(Path(summary["folder"]), one_machine())
    assert mlflow_runs(place, summary["key"]) == [("FINISHED", "2")]
    state = ask(f"{place.url('prefect')}/api/flow_runs/{summary['key']}")["state_name"]
    assert state == "Completed"


def test_another_desk_gets_the_data_from_the_object_store(
    place: Machines, one_machine: Callable[..., Path], tmp_path: Path
) -> None:
    home = tmp_path / "other"
    shutil.copytree(place.home / ".dvc", home / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    (home / "data" / "store").mkdir(parents=True)
    for file in (place.home / "data" / "store").glob("digits.*"):
        shutil.copy(file, home / "data" / "store")  # what git brings
    assert not (home / "data" / "store" / "digits").exists()
    convoy(place, "data", "pull", "digits", home=home)
    summary = convoy(place, *TRAIN, *sets(), home=home)
    assert_equal_weights(Path(summary["folder"]), one_machine())


@pytest.fixture(scope="module")
def champion(place: Machines) -> str:
    """A model that was trained on the nodes, registered and promoted."""
    words = [word for word in TRAIN if word not in ("--stop-after", "train")]
    summary = convoy(place, "train", *words, *sets())
    assert (summary["model"], summary["alias"]) == ("classifier-digits", "champion")
    return "models:/classifier-digits@champion"


def test_a_model_is_served_by_replicas_on_the_nodes(place: Machines, champion: str) -> None:
    """Each has fetched it from MLflow's server; whoever asks the head is answered by one of them."""
    words = ("--host", "0.0.0.0", "--set", "replicas=2", "--set", "threads=1")
    server = place.popen("serve", champion, *words)
    try:
        assert server.stderr is not None
        assert any("answers at" in line for line in server.stderr), server.wait()
        for node in place.nodes[:2]:
            wait_for(lambda node=node: served_by(node), 60, "a replica on each node")  # type: ignore[misc]
        for _ in range(10):
            answer = ask(f"http://{place.nodes[0].address}:8000/version")
            assert answer["version"] == "models:/classifier-digits/1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the command too, not only what runs it at the desk
        err = finish(server)[2]
    assert err.splitlines()[-1] == "convoy: stopped", err
    wait_for(lambda: not any(map(served_by, place.nodes)), 60, "the replicas have ended")


def served_by(node: Node) -> list[str]:
    """The replicas of a node."""
    return [text for each in node.processes() if "Replica" in (text := " ".join(each.cmdline()))]


def test_a_model_is_registered_promoted_and_predicts_on_the_nodes(
    place: Machines, champion: str, tmp_path: Path
) -> None:
    images = write_tree(tmp_path / "images", class_tree("ab", 4))
    tables = {}
    for executor in ("ray", "in_process"):
        file = tmp_path / f"{executor}.parquet"
        convoy(
            place, "predict", champion, str(images), "--out", str(file), "--executor", executor,
            "--set=part_images=3",
        )  # fmt: skip
        tables[executor] = pq.read_table(file)
    assert len(tables["ray"]) == 8
    assert tables["ray"].equals(tables["in_process"])


NODES = "nodes of the cluster ({address}): 2 × 1 CPUs and 0 GPUs, 0 CPUs and 0 GPUs"
NO_GPU = "the cluster ({address}) has no GPU: set train.gpus_per_worker=0"


@pytest.mark.parametrize(("settings", "lacking", "there"), [
    ({"num_workers": 4}, "train.num_workers (=4)", NODES),
    ({"num_workers": 1, "cpus_per_worker": 2}, "train.cpus_per_worker (=2)", NODES),  # there are two, on no one node
    ({"num_workers": 2, "gpus_per_worker": 1.0}, "train.gpus_per_worker (=1)", NO_GPU),
], ids=["workers", "cpus", "gpus"])  # fmt: skip
def test_more_than_the_cluster_has_is_refused_with_what_it_has(
    settings: dict[str, Any], lacking: str, there: str, place: Machines
) -> None:
    code, _, err = finish(place.popen(*TRAIN, *sets(**settings)))
    assert code == 2, err
    assert lacking in err
    assert there.format(address=place.ray_address) in err


def test_a_machine_that_is_no_node_is_told_how_to_become_one(place: Machines) -> None:
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        [*apart, PYTHON, "-m", "pipelines", *TRAIN, *sets()], env=place.environment(), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    code, _, err = finish(process)
    assert code == 1, err
    assert "this machine is no node of the Ray cluster" in err.splitlines()[-1]
    assert f"ray start --address {place.ray_address} --num-cpus 0" in err.splitlines()[-1]


# --- what is lost on the way ---------------------------------------------------------------------------------------


def begin(place: Machines, **settings: Any) -> tuple[subprocess.Popen[str], str]:
    """Begin a long training, and return once it has kept a checkpoint: the command, and the run's key."""
    before = set((place.home / "runs").glob("*"))
    process = place.popen(*TRAIN, *sets(**{**LONG, **settings}))

    def kept() -> set[Path]:
        """Folders of runs of which Ray Train lists a checkpoint; what it does not list yet is not gone on from."""
        assert process.poll() is None, process.communicate()
        folders = set()
        for file in (place.home / "runs").glob("*/ray/checkpoint_manager_snapshot.json"):
            with suppress(json.JSONDecodeError):  # it is written in place
                if json.loads(file.read_text())["checkpoint_results"]:
                    folders.add(file.parents[1])
        return folders - before

    wait_for(kept, COMMAND_S, "a checkpoint")
    [folder] = kept()
    return process, folder.name


def require_same_end(place: Machines, key: str, straight: Path) -> None:
    """Type what goes on with the run: the weights are those of an undisturbed one, and MLflow has one run."""
    summary = convoy(place, "train", "--resume", key, "--json")
    assert summary["resumed_from_step"] > 0
    assert_equal_weights(Path(summary["folder"]), straight)
    assert [state for state, _ in mlflow_runs(place, key)] == ["FINISHED"]


@pytest.fixture
def all_there(place: Machines) -> Iterator[Machines]:
    """The machines as they were, however a test leaves them."""
    yield place
    place.boot_again()
    place.start_ray()


def left_of_a_run(place: Machines) -> list[str]:
    """Processes that only a run has, and the command itself."""
    kinds = ("RayTrainWorker", "TrainController", "Mailbox", "Keeper", "Reader", "Augmenter", "pipelines")
    words = [" ".join(process.cmdline()) for node in place.nodes for process in node.processes()]
    return [text for text in words if any(kind in text for kind in kinds)]


@pytest.mark.chaos
def test_a_command_that_is_killed_leaves_nothing_on_the_nodes_and_goes_on(
    place: Machines, one_machine: Callable[..., Path]
) -> None:
    process, key = begin(place)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    wait_for(lambda: not left_of_a_run(place), 60, "the run's processes are gone")
    require_same_end(place, key, one_machine(**LONG))


@pytest.mark.chaos
def test_a_node_that_comes_back_in_time_is_used_again_and_nothing_changes(
    all_there: Machines, one_machine: Callable[..., Path]
) -> None:
    place, (_, far, _) = all_there, all_there.nodes
    process, key = begin(place)
    assert far.kill("raylet") == 1
    wait_for(lambda: not far.processes(), 30, "its processes end with it")
    place.join(far, 1)
    code, out, err = finish(process)
    assert code == 0, err
    summary = json.loads(out)
    assert summary["resumed_from_step"] > 0, "its workers were not started again"
    assert_equal_weights(Path(summary["folder"]), one_machine(**LONG))
    assert mlflow_runs(place, key) == [("FINISHED", "2")]


@pytest.mark.chaos
@pytest.mark.parametrize("loss", ["raylet", "cable"])
def test_a_node_that_is_lost_ends_the_run_clearly_and_it_goes_on_when_the_node_is_back(
    loss: str, all_there: Machines, one_machine: Callable[..., Path]
) -> None:
    place, (_, far, _) = all_there, all_there.nodes
    process, key = begin(place)
    if loss == "raylet":
        assert far.kill("raylet") == 1
    else:
        far.cut()
    code, _, err = finish(process)
    assert code in (1, 2), err
    assert "do not fit: 1 such workers do" in err.splitlines()[-1]
    # over a cable that was pulled no connection ends: gRPC asks after a silent one every five minutes
    wait_for(lambda: not far.processes(), 600, "the lost node's processes end by themselves")
    wait_for(lambda: not left_of_a_run(place), 30, "the run's processes are gone")
    far.mend()
    place.join(far, 1)
    place.wait_for_nodes(3)
    require_same_end(place, key, one_machine(**LONG))


@pytest.mark.chaos
def test_a_head_that_is_lost_ends_the_run_clearly_and_it_goes_on_under_a_new_one(
    all_there: Machines, one_machine: Callable[..., Path]
) -> None:
    place, (head, far, desk) = all_there, all_there.nodes
    process, key = begin(place)
    head.power_off()
    code, _, err = finish(process)
    assert code == 1, err
    assert f"the head of the Ray cluster ({place.ray_address}) has not answered for" in err.splitlines()[-1]
    wait_for(
        lambda: not far.processes() and not desk.processes(), 180, "all nodes' processes end by themselves"
    )
    assert mlflow_runs(place, key)[0][0] == "FAILED"
    place.boot_again()
    place.start_ray()
    require_same_end(place, key, one_machine(**LONG))


@pytest.mark.chaos
def test_a_head_that_is_lost_ends_a_search_clearly_and_it_goes_on_under_a_new_one(
    all_there: Machines,
) -> None:
    place, before = all_there, set((all_there.home / "runs").glob("*"))
    process = place.popen(
        "search", *TRAIN[1:-3], "--stop-after", "search", "--space", "optim.lr=0.05,0.01", "--trials", "2",
        *sets(**LONG, num_workers=1),
    )  # fmt: skip

    def kept() -> set[Path]:
        """Folders of searches in which a trial has kept a checkpoint."""
        assert process.poll() is None, process.communicate()
        return {file.parents[2] for file in (place.home / "runs").glob("*/trials/*/step-*.pt")} - before

    wait_for(kept, COMMAND_S, "a checkpoint")
    [folder] = kept()
    place.nodes[0].power_off()
    code, _, err = finish(process)
    assert code == 1, err
    assert f"the head of the Ray cluster ({place.ray_address}) has not answered for" in err.splitlines()[-1]
    assert mlflow_runs(place, folder.name)[0][0] == "FAILED"
    place.boot_again()
    place.start_ray()
    summary = convoy(place, "search", "--resume", folder.name, "--json")
    # the recipe's own first, and then what its seed draws for a second trial, interrupted or not
    assert [row["changes"] for row in summary["trials"]] == [{"optim.lr": 0.05}, {"optim.lr": 0.05}]
    assert {row["state"] for row in summary["trials"]} <= {"finished", "stopped early"}
    assert [state for state, _ in mlflow_runs(place, folder.name)] == ["FINISHED"]


@pytest.mark.chaos
def test_an_elastic_run_goes_on_with_the_workers_that_are_left(all_there: Machines) -> None:
    place, (_, far, _) = all_there, all_there.nodes
    process, key = begin(place, min_workers=1)
    far.power_off()
    code, out, err = finish(process)
    assert code == 0, err
    summary = json.loads(out)
    assert summary["metrics"]["val_accuracy"] > 0.9
    assert mlflow_runs(place, key) == [("FINISHED", "2 then 1")]


@pytest.mark.chaos
def test_an_elastic_run_takes_a_node_that_comes(all_there: Machines) -> None:
    """Ray Train looks for room once a minute."""
    place, (_, far, _) = all_there, all_there.nodes
    far.power_off()  # the head misses it in five seconds, before a command comes so far as to ask
    process, key = begin(place, min_workers=1, epochs=100000.0, time_budget_s=150.0)
    far.boot()
    place.join(far, 1)
    code, _, err = finish(process)
    assert code == 0, err
    assert mlflow_runs(place, key) == [("FINISHED", "1 then 2")]
