"""What may be freed: nothing that a version, commit, record, alias or run needs, and nothing that is young or held."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.ingest import IngestConfig
from tasks import leftovers, maintenance, registry, runrecords, versioning, versions
from tasks.leftovers import Item
from tasks.maintenance import MaintainConfig, find, free
from tasks.paths import ROOT, home, runs, store
from tests.conftest import Run
from tests.pictures import class_tree, write_tree

CONFIG = IngestConfig(val_fraction=0.2, test_fraction=0.3, near_duplicate_distance=0, max_source_gb=1)
NOW, LATER = MaintainConfig(keep_days=0), MaintainConfig(keep_days=1)
NOBODY = 2**22 + 1  # no process has such a number


@pytest.fixture(scope="module", autouse=True)
def quiet(module_home: Path) -> Iterator[Path]:
    """A home, and no folder of this machine that others use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(module_home.parent / "site"))
        patch.setattr(leftovers, "RAY_SESSIONS", module_home / "ray")
        patch.setattr(leftovers, "SHARED_MEMORY", module_home / "shm")
        patch.setattr(leftovers, "SCRATCH", module_home / "tmp")
        yield module_home


def paths(items: list[Item]) -> set[Path]:
    return {item.path for item in items}


def everything() -> dict[Path, bytes]:
    """All files below the home but databases and locks, which looking may touch."""
    return {
        file: file.read_bytes()
        for file in home().rglob("*")
        if file.is_file() and not file.name.startswith("mlflow.db") and ".dvc/tmp" not in str(file)
        and file.suffix != ".lock"
    }  # fmt: skip


def start_run(key: str, **tags: str) -> str:
    return registry.start_run(
        key=key, experiment="convoy/classification", name=key, tags={"convoy.key": key, **tags}, parameters={}
    )


def git(*arguments: str) -> None:
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(home()), *name, *arguments], check=True, capture_output=True)


def record(folder: str, text: str) -> str:
    """Record a folder of one file, and forget its pointer: the digest."""
    place = home() / folder
    place.mkdir()
    (place / "file").write_text(text)
    digest = versioning.add(place)
    place.with_name(f"{folder}.dvc").unlink()
    return digest


def test_the_cache_keeps_what_a_pointer_a_list_a_commit_or_a_record_names(quiet: Path) -> None:
    added = [
        versions.add(
            write_tree(quiet.parent / f"source-{num}", class_tree("ab", num)), name="set",
            family="classification", config=CONFIG,
        ).digest
        for num in (8, 9)
    ]  # fmt: skip
    assert versions.current("set") == added[1]  # the pointer names the second, the list alone the first
    committed = record("committed", "of a commit")
    git("init", "-b", "main")
    pointer = home() / "gone.dvc"
    pointer.write_text(f"outs:\n- md5: {committed}\n  path: gone\n")
    git("add", "-f", "gone.dvc")
    git("commit", "-m", "a pointer")
    git("rm", "gone.dvc")
    git("commit", "-m", "and none")
    trained = record("trained", "of a record")
    start_run("digests", **{"dvc.digest": trained})
    lost = record("lost", "of nothing")
    before = everything()
    [item] = find(NOW)
    assert (item.kind, item.num_files) == ("cache", 2)  # the file, and the list of its folder
    assert find(LATER) == []
    assert everything() == before
    assert [each.num_files for each in free(NOW, print)] == [2]
    gone = {file for file in before if not file.exists()}
    assert {f"{file.parent.name}{file.name}" for file in gone} >= {lost} and len(gone) == 2
    for digest in (*added, committed, trained):
        assert versioning.is_cached(digest)
    assert not versioning.is_cached(lost)
    assert find(NOW) == []


def run_folder(key: str, *, result: bool = True) -> Path:
    """A run's folder as training leaves it."""
    for name in ("ray/x", "model"):
        (runs() / key / name).mkdir(parents=True)
    (runs() / key / "ray" / "x" / "state.pt").write_bytes(b"0" * 1000)
    (runs() / key / "lock").touch()
    if result:
        (runs() / key / "result.json").write_text("{}")
    return runs() / key


def test_records_of_killed_runs_are_closed_and_those_of_living_ones_stay() -> None:
    run_ids = {key: start_run(key) for key in ("lost", "living", "elsewhere")}
    for key in ("lost.10", "living.10", "elsewhere.10", "lost-winner"):  # of searches
        run_ids[key] = start_run(key, **{"search.trial": "10"})
    for key in ("lost", "lost-winner"):
        run_folder(key)
    with (run_folder("living") / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        runrecords.close_lost()
    status = {key: registry.connect().get_run(run_id).info.status for key, run_id in run_ids.items()}
    # the others on another machine, say
    lost = {"lost", "lost.10", "lost-winner"}
    assert status == {key: "KILLED" if key in lost else "RUNNING" for key in run_ids}
    for key in ("lost", "lost-winner", "living"):
        shutil.rmtree(runs() / key)


def test_checkpoints_go_when_a_run_is_finished_and_has_its_result() -> None:
    done, killed, cut = run_folder("done"), run_folder("killed"), run_folder("cut", result=False)
    strange = run_folder("strange")  # of which there is no record
    registry.finish_run(start_run("done"), "FINISHED")
    registry.end_run(start_run("killed"), "KILLED")
    registry.finish_run(start_run("cut"), "FINISHED")
    [item] = find(NOW)
    assert (item.path, item.num_files, item.num_bytes) == (done / "ray", 1, 1000)
    assert find(LATER) == []
    notes: list[str] = []
    with (done / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert find(NOW) == [] == free(NOW, notes.append), "a run that goes on keeps what it stands on"
    assert paths(free(NOW, notes.append)) == {done / "ray"}
    assert not (done / "ray").exists() and (done / "model").is_dir() and (done / "result.json").is_file()
    for other in (killed, cut, strange):
        assert (other / "ray" / "x" / "state.pt").is_file()


def test_what_a_dead_process_left_half_written_goes_and_a_living_ones_stays() -> None:
    store().mkdir(parents=True, exist_ok=True)
    left = store() / f".set.partial-{NOBODY}-ab12cd_3"
    alive = store() / f".set.partial-{os.getpid()}-ab12cd_3"
    for each in (left, alive):
        each.mkdir()
        (each / "shard.parquet").touch()
    runs().mkdir(exist_ok=True)
    half = runs() / f".job.json.{NOBODY}-0123abcd"
    half.touch()
    lock = store() / ".nosuch.versions.lock"
    lock.touch()
    scratch, mine = (leftovers.SCRATCH / f"convoy-checkpoint-{pid}-abcd_123" for pid in (NOBODY, os.getpid()))
    for each in (scratch, mine):
        each.mkdir(parents=True)
    download = home() / ".cache" / "downloads" / f".{'0' * 32}.part"
    download.parent.mkdir(parents=True)
    download.touch()
    left_by_nobody = {left, half, lock, scratch}
    assert paths(find(NOW)) == {*left_by_nobody, download}
    with download.with_suffix(".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert paths(find(NOW)) == left_by_nobody == paths(free(NOW, print))
    assert alive.is_dir() and mine.is_dir() and download.is_file()
    assert paths(free(NOW, print)) == {download}


WRITING = """
import os, signal, sys
from pathlib import Path
from data.files import whole, whole_folder
with whole_folder(Path(sys.argv[1])), whole(Path(sys.argv[2])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("place", [
    "runs/one/trials/0", "runs/two/trials/0/checkpoints", "recordings/pets", ".cache/features",
])  # fmt: skip
def test_what_was_killed_while_it_wrote_is_found_wherever_it_wrote(place: str, quiet: Path) -> None:
    gallery, folder = quiet / "galleries" / "staff", quiet / place
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", WRITING, str(gallery), str(folder / "file")]
    subprocess.run(command, cwd=ROOT, check=False)
    [half_gallery] = gallery.parent.iterdir()
    [half_file] = folder.iterdir()
    assert find(LATER) == [], "it is young"
    assert paths(find(NOW)) == {half_gallery, half_file} == paths(free(NOW, print))
    assert find(NOW) == []


BRINGING = """
import os, signal, sys
from contextlib import nullcontext
from pathlib import Path
from data.transfer import Reply, transfer
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
reply = Reply(0, 3, "x", iter([b"abc"]))
transfer(lambda *_: nullcontext(reply), Path(sys.argv[1]), "x", verified=False, max_bytes=9, hear=print)
"""


def test_what_a_download_that_was_killed_knew_of_its_file_is_found(quiet: Path) -> None:
    partial = quiet / ".cache" / "downloads" / f".{'0' * 32}.part"
    partial.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", BRINGING, str(partial)], cwd=ROOT, check=False)
    left = {file for file in partial.parent.iterdir() if file.suffix != ".lock"}
    assert partial in left and len(left) == 2
    assert find(LATER) == []
    assert paths(find(NOW)) == left == paths(free(NOW, print))


def test_a_folder_goes_with_the_half_written_files_in_it() -> None:
    folder = runs() / "key" / f".model.partial-{NOBODY}-ab12cd_3"
    folder.mkdir(parents=True)
    (folder / f".card.json.{NOBODY}-0123abcd").touch()
    assert [item.path for item in find(NOW)] == [folder]
    notes: list[str] = []
    assert paths(free(NOW, notes.append)) == {folder} and notes == []


def test_a_dataset_that_a_dead_run_held_is_let_go_and_its_bytes_count_once(quiet: Path) -> None:
    folder = write_tree(quiet / "held", class_tree("ab", 2))
    run = run_folder("cut off", result=False)
    shutil.copytree(folder, run / "data", copy_function=os.link)
    with (run / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert find(NOW) == [], "a training reads it"
    [item] = find(NOW)
    assert (item.kind, item.path, item.num_files, item.num_bytes) == ("partial", run / "data", 4, 0)
    size = sum(file.stat().st_size for file in folder.rglob("*.png"))
    shutil.rmtree(folder)  # as an `add` or `remove` does
    [item] = free(NOW, print)
    assert item.num_bytes == size and not (run / "data").exists()


LOCKING = """
import os, signal, sys
from dvc.fs import localfs
from dvc.rwlock import rwlock
with rwlock(sys.argv[1], localfs, "dvc repro", [], [sys.argv[2]], False):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_lock_of_a_dvc_that_was_killed_goes_and_that_of_a_living_one_stays() -> None:
    record("first", "there is a repository now")
    free(NOW, print)
    folder = home() / ".dvc" / "tmp"
    file, place = folder / "rwlock", home() / "locked"
    subprocess.run([sys.executable, "-c", LOCKING, str(folder), str(place)], check=False)
    kept = file.read_text()
    killed = json.loads(kept)["write"][str(place)]["pid"]
    for each in (NOW, LATER):  # whose process has ended is known, however young it is
        [item] = find(each)
        assert (item.kind, item.path) == ("locks", file)
        assert item.why == f"process {killed} (dvc repro), which locked it, has ended"
    with (folder / "rwlock.lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # DVC is changing it
        assert find(NOW) == []
    file.write_text(kept.replace(f'"pid": {killed}', f'"pid": {os.getpid()}'))
    assert find(NOW) == []
    os.utime(file, (1e9, 1e9))  # before this process began: the number was another's then
    assert paths(find(NOW)) == {file}
    file.write_text(kept[:20])
    os.utime(file)
    [item] = find(NOW)
    assert item.why == "DVC was killed while it wrote it, and cannot read it"
    assert paths(free(NOW, print)) == {file} and not file.exists()
    file.write_text(kept[:20])
    assert versioning.is_cached(record("second", "whoever records next needs no maintenance"))
    free(NOW, print)


def test_a_session_of_ray_goes_when_no_process_is_of_it(quiet: Path) -> None:
    dead, used = (quiet / "ray" / f"session_2026-01-01_00-00-00_{n}_{NOBODY}" for n in (1, 2))
    for each in (dead, used):
        (each / "logs").mkdir(parents=True)
    command = [sys.executable, "-c", "import time; time.sleep(600)", str(used)]
    with subprocess.Popen(command) as raylet:
        try:
            assert paths(find(NOW)) == {dead}
            assert find(LATER) == []
        finally:
            raylet.kill()
    assert paths(free(NOW, print)) == {dead, used}


def test_the_command_lists_and_frees_only_when_told_to(run: Run) -> None:
    file = store() / f".x.partial-{NOBODY}-abcdefgh"
    file.mkdir()
    past = time.time() - 8 * maintenance.DAY_S
    os.utime(file, (past, past))
    code, out, _err = run("maintain", "--json")
    document = json.loads(out)
    assert code == 0 and document["dry_run"] and [each["path"] for each in document["items"]] == [str(file)]
    code, out, _err = run("maintain", "--set", "keep_days=9")
    assert code == 0 and "nothing to free" in out and file.exists()
    assert "in the last 9 days; 1 of the latter, 0.0 MB: --set keep_days=0\n" in out
    code, out, _err = run("maintain", "--apply")
    assert code == 0 and "freed 0.0 MB" in out and not file.exists()
