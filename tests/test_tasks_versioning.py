import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import yaml

from tasks import versioning
from tasks.paths import ROOT
from tasks.versioning import add, digest, is_tracked, measure
from tests.platforms import wait_for

# A stage that ingests and records, as `data add` does under `dvc repro`, and one that reads the digest after it.
STAGES = """
stages:
  ingest:
    cmd: {python} ingest.py
    deps: [ingest.py]
    outs: [data/store/digits]
  train:
    cmd: {python} train.py
    deps: [data/store/digits, train.py]
    outs: [trained.txt]
"""
INGEST = """
import os
from pathlib import Path
from tasks.versioning import add
folder = Path("data/store/digits")
folder.mkdir(parents=True)
(folder / "dataset.json").write_text("{}")
Path("added.txt").write_text(add(folder))
"""
TRAIN = """
from pathlib import Path
from tasks.versioning import digest
Path("trained.txt").write_text(digest(Path("data/store/digits")))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a home with spaces"
    folder.mkdir()
    monkeypatch.setenv("CONVOY_HOME", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    return folder


def make_dataset(home: Path, name: str = "digits") -> Path:
    """A folder with names that a hash of a tree may order or encode wrongly."""
    folder = home / "data" / "store" / name
    for file in ("a/b.txt", "a.txt", "a-b.txt", "ä/ö ü.txt", "Z.txt", "dataset.json"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"{name} {file}")
    return folder


def dvc(home: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def forbid_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object, **options: object) -> None:
        raise AssertionError(f"started a process: {arguments} {options}")

    monkeypatch.setattr(versioning.subprocess, "run", run)


def test_add_records_the_bytes_and_a_second_add_of_them_costs_no_process(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset(home)
    assert digest(folder) == ""
    assert not is_tracked(folder)

    recorded = add(folder)

    assert recorded.endswith(".dir")
    assert recorded == digest(folder) == measure(folder)
    assert is_tracked(folder)
    pointer = yaml.safe_load((home / "data" / "store" / "digits.dvc").read_text())
    assert pointer["outs"][0]["md5"] == recorded
    assert "up to date" in dvc(home, "status")
    config = (home / ".dvc" / "config").read_text().lower()
    assert "no_scm = true" in config
    assert "analytics = false" in config

    forbid_processes(monkeypatch)
    assert add(folder) == recorded


def test_changed_bytes_get_another_digest_and_the_old_ones_stay_in_the_cache(home: Path) -> None:
    folder = make_dataset(home)
    before = add(folder)
    (folder / "a.txt").write_text("changed")
    assert digest(folder) == before != measure(folder)

    after = add(folder)

    assert after == measure(folder) != before
    cache = home / ".dvc" / "cache" / "files" / "md5"
    assert all((cache / name[:2] / name[2:]).is_file() for name in (before, after))


def test_a_single_file_is_recorded_by_its_md5(home: Path) -> None:
    file = home / "weights.bin"
    file.write_bytes(b"abc")
    assert add(file) == digest(file) == measure(file) == "900150983cd24fb0d6963f7d28e17f72"


def test_bytes_are_saved_as_add_would_and_what_is_recorded_stays(home: Path) -> None:
    folder = make_dataset(home)
    before = add(folder)
    (folder / "a.txt").write_text("changed")
    pointer = folder.with_name("digits.dvc").read_bytes()

    saved = versioning.save(folder)

    assert saved == measure(folder) != before
    assert versioning.is_cached(saved)
    assert folder.with_name("digits.dvc").read_bytes() == pointer
    (folder / "a.txt").write_text("the file is no link into the cache")
    versioning.restore(saved, home / "copy")
    assert measure(home / "copy") == saved


def test_what_a_store_says_is_told_without_a_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "remote x is not to be reached: https://ann:geheim@store.example/x: 403"
    child = subprocess.CompletedProcess([], 1, "", f"a warning\n{said}\n")
    monkeypatch.setattr(versioning.subprocess, "run", lambda *_, **__: child)
    with pytest.raises(RuntimeError) as error:
        versioning.push(["0" * 32])
    assert str(error.value) == said.replace("ann:geheim", "…")
    assert list(home.iterdir()) == []


def test_a_question_makes_no_repository(home: Path) -> None:
    absent = "0" * 32 + ".dir"
    assert not versioning.is_cached(absent)
    for call in (versioning.fetch, versioning.push):
        with pytest.raises(
            RuntimeError, match=r"no remote is set; set one: \./convoy data remote URL"
        ) as error:
            call([absent])
        assert "\n" not in str(error.value)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("relpath", "md5"),
    [
        ("/proc/x", ""),
        ("../x", ""),
        ("a/../../x", ""),
        ("..", ""),
        ("", ""),
        (".", ""),
        ("x", "//etc/hostname"),
    ],
)
def test_a_recorded_file_outside_its_folder_is_refused(home: Path, relpath: str, md5: str) -> None:
    recorded = add(make_dataset(home))
    cache = home / ".dvc" / "cache" / "files" / "md5"
    lists = cache / recorded[:2] / recorded[2:]
    entries = json.loads(lists.read_text())
    entries[0] |= {"relpath": relpath, "md5": md5 or entries[0]["md5"]}
    lists.chmod(0o644)
    lists.write_text(json.dumps(entries))
    target = home / "b" / "c"
    for call in (lambda: versioning.restore(recorded, target), lambda: versioning.view(recorded).__enter__()):
        with pytest.raises(RuntimeError, match="names a file outside its folder") as error:
            call()
        assert "\n" not in str(error.value)
    assert not (home / "b").exists()


def test_a_path_that_a_stage_makes_is_committed_to_that_stage(home: Path) -> None:
    folder = make_dataset(home)
    stages = {"ingest": {"foreach": ["digits"], "do": {"cmd": "false", "outs": ["data/store/${item}"]}}}
    (home / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))

    recorded = add(folder)

    assert recorded == digest(folder) == measure(folder)
    assert not (home / "data" / "store" / "digits.dvc").exists()
    assert list(yaml.safe_load((home / "dvc.lock").read_text())["stages"]) == ["ingest@digits"]


def test_inside_a_running_stage_add_gives_the_digest_that_dvc_then_records(home: Path) -> None:
    make_dataset(home, "other")
    add(home / "data" / "store" / "other")  # makes the repository
    (home / "dvc.yaml").write_text(STAGES.format(python=sys.executable))
    (home / "ingest.py").write_text(INGEST)
    (home / "train.py").write_text(TRAIN)

    dvc(home, "repro", "--quiet")

    recorded = digest(home / "data" / "store" / "digits")
    assert recorded
    assert (home / "added.txt").read_text() == recorded
    assert (home / "trained.txt").read_text() == recorded


def test_two_that_record_at_once_in_a_fresh_home_both_succeed(home: Path) -> None:
    folders = [make_dataset(home, name) for name in ("one", "two")]
    found: dict[Path, str] = {}
    threads = [threading.Thread(target=lambda f=f: found.update({f: add(f)})) for f in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {folder: measure(folder) for folder in folders}
    assert len(set(found.values())) == 2


def test_add_waits_while_another_dvc_holds_the_lock(home: Path) -> None:
    add(make_dataset(home, "one"))
    folder = make_dataset(home, "two")
    released_s = []
    with (home / ".dvc" / "tmp" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def release() -> None:
            released_s.append(time.monotonic())
            fcntl.flock(lock, fcntl.LOCK_UN)

        threading.Timer(7.0, release).start()  # DVC itself gives up after three seconds
        recorded = add(folder)
    assert recorded == measure(folder)
    assert time.monotonic() > released_s[0]


def test_a_dvc_whose_command_ended_before_it_looked_ends_too(home: Path) -> None:
    folder = make_dataset(home)
    (home / ".cache").mkdir()
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    with (home / ".cache" / "dvc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it would wait here for as long as it lives
        command = [sys.executable, "-m", "tasks.dvcprocess", "record", str(home), str(ended.pid)]
        given = json.dumps({"path": str(folder)})
        done = subprocess.run(command, input=given, text=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_what_dvc_refuses_is_one_clear_line(home: Path) -> None:
    folder = make_dataset(home)
    add(folder)
    (folder / "a.txt").write_text("changed")
    stages = {"ingest": {"cmd": "false", "outs": ["data/store/digits"]}}  # and digits.dvc claims it too
    (home / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    with pytest.raises(RuntimeError, match=r"could not record .*digits.*ingest") as error:
        add(folder)
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_missing_path_and_one_outside_home_are_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        add(home / "nowhere")
    stray = tmp_path / "stray.txt"
    stray.write_text("x")
    with pytest.raises(ValueError, match="must lie below"):
        add(stray)


def test_a_broken_pointer_is_named(home: Path) -> None:
    folder = make_dataset(home)
    folder.with_name("digits.dvc").write_text("outs: [")
    with pytest.raises(ValueError, match=r"digits\.dvc is not readable YAML") as error:
        digest(folder)
    assert "\n" not in str(error.value)


def test_a_lock_file_above_the_repository_does_not_speak_for_its_paths(home: Path) -> None:
    folder = make_dataset(home)
    inner = {"stages": {"a": {"outs": [{"path": "data/store/digits", "md5": "outer.dir"}]}}}
    (home / "dvc.lock").write_text(yaml.safe_dump(inner))
    assert digest(folder) == "outer.dir"
    (home / "data" / ".dvc").mkdir()
    assert digest(folder) == ""


def test_asking_for_a_digest_does_not_import_dvc(home: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from tasks.versioning import digest, measure
        digest(Path(sys.argv[1])), measure(Path(sys.argv[1]))
        assert "dvc" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(make_dataset(home))], check=True)


@pytest.mark.chaos
def test_a_pointer_that_dvc_was_killed_in_is_the_one_before(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset(home)
    first = add(folder)
    pointer = folder.with_name("digits.dvc")
    written = pointer.read_text()
    (folder / "a.txt").write_text("changed")
    mark, failed = tmp_path / "mark", []

    def interrupted() -> None:
        with pytest.raises(RuntimeError, match="DVC could not record") as error:
            add(folder)
        failed.append(error)

    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", str(ROOT / "tests" / "points"))
        patched.setenv("CHAOS_POINT", "dvc.utils.serialize._yaml:_dump:1")
        patched.setenv("CHAOS_MARK", str(mark))
        adding = threading.Thread(target=interrupted)
        adding.start()
        wait_for(mark.exists, 60, "DVC writes the pointer", 0.01)
        os.kill(int(mark.read_text()), signal.SIGKILL)
        adding.join()
    assert failed and pointer.read_text() == written and digest(folder) == first
    assert add(folder) == measure(folder) == digest(folder) != first
