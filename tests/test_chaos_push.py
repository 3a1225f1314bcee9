"""A push that is cut off in the middle: half a dataset is none, and typed again it leaves the remote whole."""

import shutil
from pathlib import Path

import pytest

from data.dataset import Dataset
from tasks import versioning
from tests.chaos import CODES, FAULTS, judge_locks, run, running
from tests.pictures import class_tree, write_tree
from tests.test_chaos_points import add_words, slow
from tests.test_tasks_remotes import KEYS, s3_url  # noqa: F401 (a fixture)

pytestmark = pytest.mark.chaos
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


FIRST, MIDDLE, LAST = 1, 3, 6  # of the files that are copied


@pytest.mark.parametrize(
    ("kind", "number", "fault"),
    [("folder", MIDDLE, "kill"),
     *(slow("folder", number, fault) for number in (FIRST, MIDDLE, LAST) for fault in (*FAULTS, "DVC")
       if (number, fault) != (MIDDLE, "kill")),
     slow("s3", MIDDLE, "kill"), slow("s3", MIDDLE, "DVC")],
)  # fmt: skip
def test_a_push_that_is_cut_off_leaves_the_remote_whole_once_it_is_typed_again(
    kind: str, number: int, fault: str, recorded: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest,
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
        dvc = hurt.reach()
        assert dvc.pid != hurt.process.pid
        if fault == "DVC":
            dvc.kill()
        else:
            FAULTS[fault](hurt)
        code, err = hurt.end()
        assert code == CODES.get(fault, 1) and "Traceback" not in err, err
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
