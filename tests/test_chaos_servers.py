"""Servers that die while they are used: MLflow's, Prefect's, the worker, and DVC in the middle of a push."""

import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from data.dataset import Dataset
from tasks import versioning
from tasks.paths import store
from tests.chaos import TRAIN, judge_locks, run, running, tiny_changes, weights_of
from tests.pictures import class_tree, write_tree
from tests.platforms import CHANGES, ENDED, Platform, wait_for
from tests.platforms import running as platform_of
from tests.test_chaos_points import IN_PROCESS, POINTS, add_words, slow
from tests.test_tasks_remotes import KEYS, s3_url  # noqa: F401 (a fixture)
from tests.tiny import tiny_dataset

pytestmark = pytest.mark.chaos
RUN_S = 400.0
LONG = {**CHANGES, "train": {**CHANGES["train"], "epochs": 200, "checkpoint_every_steps": 20}}


# --- the platform's servers, while a command or a flow run uses them ---------------------------------------------


@dataclass(frozen=True)
class Up:
    """A platform with the digits, and the weights that undisturbed runs give: of the tiny run, and of the long one."""

    platform: Platform
    weights: str
    long_weights: str


@pytest.fixture(scope="module")
def up(module_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    assert tiny_dataset("classification", store()).info.name == "digits"
    versioning.add(store() / "digits")
    folder, last = tmp_path_factory.mktemp("straight"), ("--stop-after=train", IN_PROCESS)
    long = tiny_changes(train__epochs=200, train__checkpoint_every_steps=20)
    made = [run(module_home, folder / name, *TRAIN, *last, *changes)["folder"]
            for name, changes in (("tiny", tiny_changes()), ("long", long))]  # fmt: skip
    with platform_of(module_home) as platform:
        yield Up(platform, *(weights_of(Path(each)) for each in made))


def kill_service(platform: Platform, name: str) -> None:
    psutil.Process(platform.status()[name]["pid"]).kill()
    wait_for(lambda: platform.status()[name]["state"] == "stopped", 20, "the death is seen")


@pytest.mark.slow
@pytest.mark.parametrize("point", ["between checkpoints", "before the version"])
@pytest.mark.parametrize("service", ["mlflow", "prefect"])
def test_a_command_outlasts_a_server_that_is_killed_and_started_again(
    service: str, point: str, up: Up, tmp_path: Path
) -> None:
    words = [*TRAIN, IN_PROCESS, *tiny_changes(), "--json"]
    with running(up.platform.home, tmp_path / "hurt", words, POINTS[point]) as hurt:
        hurt.reach()
        kill_service(up.platform, service)
        hurt.let_go()
        assert up.platform.convoy("up")["started"] == [service]
        hurt.process.wait(RUN_S)
        assert hurt.process.returncode == 0, hurt.err
        assert up.platform.mlflow(hurt.key) == ["FINISHED"]
        assert weights_of(up.platform.home / "runs" / hurt.key) == up.weights


@pytest.mark.slow
@pytest.mark.parametrize("service", ["mlflow", "prefect"])
def test_a_command_whose_server_stays_away_says_which_and_goes_on_later(
    service: str, up: Up, tmp_path: Path
) -> None:
    words = [*TRAIN, IN_PROCESS, *tiny_changes()]
    with running(up.platform.home, tmp_path / "hurt", words, POINTS["between checkpoints"]) as hurt:
        hurt.reach()
        kill_service(up.platform, service)
        hurt.let_go()
        code, err = hurt.end(RUN_S)
        assert code == 1, err
        said = err.splitlines()[-1]
        assert {"mlflow": "MLflow", "prefect": "Prefect"}[service] in said and "Traceback" not in err
    up.platform.convoy("up")
    again = run(up.platform.home, tmp_path / "again", "train", "--resume", hurt.key, IN_PROCESS)
    assert up.platform.mlflow(hurt.key) == ["FINISHED"]
    assert weights_of(Path(again["folder"])) == up.weights


@pytest.mark.slow
@pytest.mark.parametrize("service", ["prefect", "mlflow", "worker"])
def test_a_flow_run_outlasts_a_service_that_is_killed_and_started_again(service: str, up: Up) -> None:
    platform = up.platform
    flow_run = platform.run(dataset="digits", changes=LONG, executor="in_process", stop_after="train")
    checkpoints = platform.home / "runs" / flow_run / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("step-*")), RUN_S, "a checkpoint")
    kill_service(platform, service)
    platform.convoy("up")
    wait_for(lambda: platform.state(flow_run) in ENDED, RUN_S, "the run has ended")
    assert platform.state(flow_run) == "Completed", (platform.folder / "logs" / "worker.log").read_text()
    assert platform.mlflow(flow_run) == ["FINISHED"]
    assert weights_of(platform.home / "runs" / flow_run) == up.long_weights


# --- DVC in the middle of a push -------------------------------------------------------------------------------

FILES = "dvc_objects.fs.utils:copyfile"  # of a remote that is a folder
OBJECTS = "s3fs.core:S3FileSystem._put_file"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home with a recorded dataset, and one that has only its pointer."""
    folder = tmp_path_factory.mktemp("recorded")
    source = write_tree(folder / "source", class_tree("ab", 8))
    run(folder / "home", folder / "out", *add_words(source))
    for file in ("set.dvc", "set.versions.json"):
        (folder / "other" / "data" / "store").mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / "home" / "data" / "store" / file, folder / "other" / "data" / "store")
    return folder / "home", folder / "other"


KILLS: dict[str, Callable[[psutil.Process, psutil.Process], None]] = {
    "the command": lambda command, _dvc: command.kill(),
    "DVC": lambda _command, dvc: dvc.kill(),
    "Ctrl-C": lambda command, _dvc: command.send_signal(signal.SIGINT),
}


@pytest.mark.parametrize(
    ("kind", "number", "killed"),
    [("folder", 3, "the command"), *(slow("folder", number, killed) for number in (1, 3, 6) for killed in KILLS),
     slow("s3", 3, "the command"), slow("s3", 3, "DVC")],
)  # fmt: skip
def test_a_push_that_is_cut_off_leaves_the_remote_whole_once_it_is_typed_again(
    kind: str, number: int, killed: str, recorded: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    homes = [Path(shutil.copytree(home, tmp_path / home.name)) for home in recorded]
    url, options, environment = str(tmp_path / "remote"), [], {"DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
    if kind == "s3":
        url, options = (
            f"s3://photos/{tmp_path.name}",
            ["--option", f"endpointurl={request.getfixturevalue('s3_url')}"],
        )
        environment |= KEYS
    for home in homes:
        run(home, tmp_path / f"remote-{home.name}", "data", "remote", url, *options, **environment)
    where = f"{FILES if kind == 'folder' else OBJECTS}:{number}"
    with running(homes[0], tmp_path / "hurt", ["data", "push", "set"], where, environment) as hurt:
        KILLS[killed](psutil.Process(hurt.process.pid), hurt.reach())
        code, err = hurt.end()
        assert code != 0 and "Traceback" not in err
        assert hurt.left_after(10) == []
    with running(homes[1], tmp_path / "early", ["data", "pull", "set"], "", environment) as early:
        assert early.end()[0] == 1, "half a dataset is none"
    pushed = run(homes[0], tmp_path / "again", "data", "push", "set", **environment)["files"]
    assert pushed >= 1
    assert run(homes[0], tmp_path / "third", "data", "push", "set", **environment)["files"] == 0
    run(homes[1], tmp_path / "pulled", "data", "pull", "set", **environment)
    sets = [home / "data" / "store" / "set" for home in homes]
    assert [versioning.measure(path) for path in sets] == [versioning.digest(path) for path in sets]
    assert Dataset.open(sets[1]).info == Dataset.open(sets[0]).info
    if kind == "folder":
        objects = [file for file in Path(url).rglob("*") if file.is_file() and not file.name.endswith(".tmp")]
        assert len(objects) == 1 + len(list(sets[0].iterdir()))
    monkeypatch.setenv("CONVOY_HOME", str(homes[0]))
    judge_locks()
