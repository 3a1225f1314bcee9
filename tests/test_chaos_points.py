"""Whatever is done to a command at any point of its work: typed again, it ends as if nothing had happened.

Each cell sends a real process to a point, hurts it or one of its helpers there, types the command again, and judges:
the same bits as a run that nobody disturbed, one record, no process, no lock, nothing half-written that is read.
docs/faults.md has the table.
"""

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from data.dataset import Dataset
from data.syntheticfaces import synthetic_faces
from tasks import ledger
from tasks.enrolment import bind, enrol_files
from tasks.gallery import Gallery
from tasks.gallerynames import folder_of
from tasks.paths import store
from tests.chaos import (
    CODES,
    FAULTS,
    IN_PROCESS,
    RAY_AGENTS_S,
    TRAIN,
    Command,
    Straight,
    freeze,
    judge_home,
    judge_locks,
    judge_run,
    judge_store,
    lives,
    run,
    running,
    running_records,
    statuses,
    undisturbed,
)
from tests.facegalleries import write_embedder
from tests.pictures import class_tree, write_tree
from tests.platforms import tiny_changes, wait_for
from tests.test_tasks_ledger import with_versions

pytestmark = pytest.mark.chaos
NAP_S, NIGHT_S = 5.0, 60.0  # of a laptop that sleeps


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


# --- train, evaluate, register, promote ------------------------------------------------------------------------

POINTS = {
    "prepare": "tasks.registry:start_run:1",
    "before the first checkpoint": "tasks.train:LocalSession.save:1",
    "between checkpoints": "tasks.train:LocalSession.save:3",
    "trained": "tasks.train:keep:1",
    "evaluate": "tasks.report:Report.write:1",
    "model half registered": "tasks.packaging:save_package:1",
    "before the version": "tasks.registry:_ensure_registered:1",
    "before the alias": "tasks.ledger:_set_aliases:1",
    "alias moved": "tasks.ledger:_close:1",
    "before the record ends": "tasks.registry:finish_run:1",
}
FAST = {("between checkpoints", "kill"), ("between checkpoints", "term")}
CELLS = [
    (point, fault) if (point, fault) in FAST else slow(point, fault) for point in POINTS for fault in FAULTS
]


@pytest.fixture(scope="module")
def straight(
    module_home: Path, versioned_digits: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Straight:
    assert versioned_digits.info.name == "digits"
    return undisturbed(module_home, tmp_path_factory.mktemp("straight") / "run")


def suffer(hurt: Command, fault: str) -> str:
    """Hurt a command at its point, and let what is left of it end, by the code that the fault has: its stderr."""
    hurt.reach()
    FAULTS[fault](hurt)
    hurt.let_go()
    code, err = hurt.end()
    assert code == CODES[fault], err
    return err


@pytest.mark.parametrize(("point", "fault"), CELLS)
def test_a_training_goes_on_from_any_point_to_the_same_bits_and_one_record(
    point: str, fault: str, straight: Straight, tmp_path: Path
) -> None:
    with running(
        straight.home, tmp_path / "hurt", [*TRAIN, IN_PROCESS, *tiny_changes()], POINTS[point]
    ) as hurt:
        err = suffer(hurt, fault)
        assert hurt.left_after(10) == []
        if not fault.startswith("kill"):
            assert "Traceback" not in err and err.splitlines()[-1] == "convoy: stopped"
            assert statuses(hurt.key) == ([] if point == "prepare" else ["KILLED"])
            if "alias" not in point:  # a move that was cut off is finished by the next command
                assert running_records() == []
    again = run(straight.home, tmp_path / "again", "train", "--resume", hurt.key, IN_PROCESS)
    judge_run(straight, hurt.key, again)


@pytest.mark.slow
def test_the_same_words_without_a_key_train_anew_and_no_record_stays_running(
    straight: Straight, tmp_path: Path
) -> None:
    words = [*TRAIN, IN_PROCESS, *tiny_changes()]
    with running(straight.home, tmp_path / "hurt", words, POINTS["between checkpoints"]) as hurt:
        hurt.reach()
        hurt.process.kill()
        hurt.end()
        assert statuses(hurt.key) == ["RUNNING"]  # nobody was left to say otherwise
    again = run(straight.home, tmp_path / "again", *words)
    assert statuses(hurt.key) == ["KILLED"]
    judge_run(straight, again["key"], again)


@pytest.mark.parametrize(("point", "seconds"), [
    ("between checkpoints", NAP_S), slow("between checkpoints", NIGHT_S), slow("evaluate", NIGHT_S),
    slow("before the version", NIGHT_S), slow("before the alias", NIGHT_S),
])  # fmt: skip
def test_a_training_outlasts_the_sleep_of_a_laptop(
    point: str, seconds: float, straight: Straight, tmp_path: Path
) -> None:
    words = [*TRAIN, IN_PROCESS, *tiny_changes(), "--json"]
    with running(straight.home, tmp_path / "slept", words, POINTS[point]) as slept:
        slept.reach()
        freeze(slept, seconds)
        judge_run(straight, slept.key, slept.document())
        assert slept.left_after(10) == []


# --- the embedded Ray ------------------------------------------------------------------------------------------

RAY_POINTS = {"before the first checkpoint": 1, "between checkpoints": 3}


def kill_named(name: str) -> Callable[[Command, psutil.Process], None]:
    def fault(command: Command, _there: psutil.Process) -> None:
        victims = command.named(name)
        assert victims, f"no {name} runs"
        for victim in victims:
            victim.kill()
        wait_for(lambda: not any(lives(victim) for victim in victims), 10, f"the end of {name}", 0.01)

    return fault


RAY_FAULTS: dict[str, Callable[[Command, psutil.Process], None]] = {
    "worker": lambda _command, there: there.kill(),
    "controller": kill_named("TrainController"),
    "raylet": kill_named("raylet/raylet"),
    "gcs": kill_named("gcs_server"),
    "driver": lambda command, _there: command.process.kill(),
}


@pytest.mark.slow
@pytest.mark.parametrize("point", RAY_POINTS)
@pytest.mark.parametrize("victim", RAY_FAULTS)
def test_a_training_on_ray_outlasts_the_death_of_each_of_its_processes(
    victim: str, point: str, straight: Straight, tmp_path: Path
) -> None:
    where = f"tasks.raytrain:RaySession.save:{RAY_POINTS[point]}"
    with running(straight.home, tmp_path / "hurt", [*TRAIN, *tiny_changes(), "--json"], where) as hurt:
        RAY_FAULTS[victim](hurt, hurt.reach())
        hurt.let_go()
        code, err = hurt.end()
        assert "Traceback" not in err
        if victim in ("worker", "controller"):  # Ray replaces it
            assert code == 0, err
        else:
            assert code != 0
        if victim == "gcs":
            judge_loss(code, err)
        key, document = hurt.key, json.loads((hurt.folder / "out").read_text() or "null")
        assert hurt.left_after(RAY_AGENTS_S) == []
    if code:
        document = run(straight.home, tmp_path / "again", "train", "--resume", key)
    judge_run(straight, key, document)


def judge_loss(code: int, err: str) -> None:
    """The one error, last, of a command whose embedded Ray has lost its head."""
    assert code == 1, err
    assert err.splitlines()[-1].startswith("convoy: the head of the embedded Ray ("), err
    assert "type the same command again" in err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("point", ["tasks.raytrain:cpus_of_each:1", "tasks.train:keep:1"])
def test_a_training_whose_ray_has_lost_its_head_does_not_ask_it(
    point: str, straight: Straight, tmp_path: Path
) -> None:
    """Before the workers start and when they have ended, the driver asks what the cluster has."""
    with running(straight.home, tmp_path / "hurt", [*TRAIN, *tiny_changes()], point) as hurt:
        RAY_FAULTS["gcs"](hurt, hurt.reach())
        hurt.let_go()
        judge_loss(*hurt.end())
        assert hurt.left_after(RAY_AGENTS_S) == []
    judge_run(straight, hurt.key, run(straight.home, tmp_path / "again", "train", "--resume", hurt.key))


SEARCH = (
    "search", *TRAIN[1:], "--stop-after", "search", "--space", "optim.lr=0.05,0.01", "--trials", "2",
    "--max-concurrent", "1", *tiny_changes(),
)  # fmt: skip


@pytest.fixture(scope="module")
def searched(straight: Straight, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The trials of a search that nobody disturbed."""
    return trials_of(run(straight.home, tmp_path_factory.mktemp("searched") / "run", *SEARCH))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["gcs", "term", "ctrl-c"])
def test_a_search_that_loses_the_head_of_its_ray_or_is_stopped_says_so_and_goes_on(
    fault: str, straight: Straight, searched: list[dict[str, Any]], tmp_path: Path
) -> None:
    with running(straight.home, tmp_path / "hurt", SEARCH, "tasks.train:LocalSession.save:3") as hurt:
        there = hurt.reach()
        if fault == "gcs":
            RAY_FAULTS[fault](hurt, there)
        else:
            FAULTS[fault](hurt)
        hurt.let_go()
        code, err = hurt.end()
        assert "Traceback" not in err
        if fault == "gcs":
            judge_loss(code, err)
        else:
            assert code == CODES[fault] and err.splitlines()[-1] == "convoy: stopped", err
        assert hurt.left_after(RAY_AGENTS_S) == []
    assert statuses(hurt.key) == ["FAILED" if fault == "gcs" else "KILLED"]
    assert trials_of(run(straight.home, tmp_path / "again", "search", "--resume", hurt.key)) == searched
    assert statuses(hurt.key) == ["FINISHED"] and running_records() == []


def trials_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What came of the trials of a search, but for how long they took."""
    return [
        {name: row[name] for name in ("trial", "state", "value", "changes")} for row in document["trials"]
    ]


@pytest.mark.slow
def test_a_training_on_ray_outlasts_the_sleep_of_a_laptop(straight: Straight, tmp_path: Path) -> None:
    where = "tasks.raytrain:RaySession.save:3"
    with running(straight.home, tmp_path / "slept", [*TRAIN, *tiny_changes(), "--json"], where) as slept:
        slept.reach()
        freeze(slept, NIGHT_S)
        judge_run(straight, slept.key, slept.document())


# --- ingest ----------------------------------------------------------------------------------------------------

INGEST_POINTS = {
    "start": "data.ingest:measure_items:1",
    "shards": "data.storage:_sync:1",
    "before the name": "data.storage:move_into_place:1",
    "before the pointer": "tasks.versioning:add:1",
    "inside DVC": "dvc_data.hashfile.transfer:transfer:1",
    "before the list": "tasks.versions:write_list:1",
}
INGEST_FAST = {("before the pointer", "kill", 2)}
INGEST_CELLS = [
    (point, fault, number) if (point, fault, number) in INGEST_FAST else slow(point, fault, number)
    for point in INGEST_POINTS
    for fault in FAULTS
    for number in (1, 2)
]


def add_words(source: Path) -> list[str]:
    return ["data", "add", str(source), "--name", "set", "--family", "classification", "--workers", "1"]


@dataclass(frozen=True)
class Ingested:
    """Two sources, and the homes that an undisturbed ingest of the first, and of both, leaves."""

    sources: tuple[Path, Path]
    homes: tuple[Path, Path, Path]  # of none, one, and two versions


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    folder = tmp_path_factory.mktemp("ingested")
    sources = tuple(write_tree(folder / f"source-{images}", class_tree("ab", images)) for images in (8, 10))
    homes = [folder / f"home-{number}" for number in range(3)]
    homes[0].mkdir()
    for number, source in enumerate(sources, 1):
        shutil.copytree(homes[number - 1], homes[number])
        run(homes[number], folder / f"out-{number}", *add_words(source))
    return Ingested((sources[0], sources[1]), (homes[0], homes[1], homes[2]))


def told(home: Path) -> list[dict[str, Any]]:
    """What a home's list says of the versions, but for when."""
    entries = json.loads((home / "data" / "store" / "set.versions.json").read_text())["versions"]
    assert all(entry.pop("added") for entry in entries)
    return list(entries)


@pytest.mark.parametrize(("point", "fault", "number"), INGEST_CELLS)
def test_an_ingest_typed_again_leaves_what_an_undisturbed_one_leaves(
    point: str, fault: str, number: int, ingested: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    shutil.copytree(ingested.homes[number - 1], home)
    monkeypatch.setenv("CONVOY_HOME", str(home))
    words = add_words(ingested.sources[number - 1])
    with running(home, tmp_path / "hurt", words, INGEST_POINTS[point]) as hurt:
        hurt.reach()
        FAULTS[fault](hurt)
        if not fault.startswith("kill"):
            hurt.let_go()
        code, err = hurt.end()
        assert code == CODES[fault], err
        assert "Traceback" not in err
        assert hurt.left_after(20) == []  # a DVC that nobody waits for ends too
    document = run(home, tmp_path / "again", *words)
    assert (document["version"], document["new_version"]) == (number, True)
    assert told(home) == told(ingested.homes[number])
    names = sorted(file.name for file in store().iterdir() if not file.name.endswith("lock"))
    assert names == ["set", "set.dvc", "set.versions.json"]
    judge_store()
    judge_locks()


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_an_ingest_whose_dvc_is_killed_says_so_and_is_made_whole_by_the_same_words(
    number: int, ingested: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    shutil.copytree(ingested.homes[number - 1], home)
    monkeypatch.setenv("CONVOY_HOME", str(home))
    words = add_words(ingested.sources[number - 1])
    with running(home, tmp_path / "hurt", words, INGEST_POINTS["inside DVC"]) as hurt:
        dvc = hurt.reach()
        assert dvc.pid != hurt.process.pid
        dvc.kill()
        code, err = hurt.end()
        assert code == 1 and "Traceback" not in err
        assert "DVC could not" in err.splitlines()[-1]
        assert hurt.left_after(20) == []
    document = run(home, tmp_path / "again", *words)
    assert document["version"] == number
    assert told(home) == told(ingested.homes[number])
    judge_store()
    judge_locks()


@pytest.mark.slow
@pytest.mark.parametrize("point", ["shards", "inside DVC"])
def test_an_ingest_outlasts_the_sleep_of_a_laptop(
    point: str, ingested: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    shutil.copytree(ingested.homes[1], home)
    monkeypatch.setenv("CONVOY_HOME", str(home))
    words = [*add_words(ingested.sources[1]), "--json"]
    with running(home, tmp_path / "slept", words, INGEST_POINTS[point]) as slept:
        slept.reach()
        freeze(slept, NIGHT_S)
        assert slept.document()["version"] == 2
        assert slept.left_after(20) == []
    assert told(home) == told(ingested.homes[2])
    judge_store()
    judge_locks()


# --- promote and roll back -------------------------------------------------------------------------------------

MOVE_POINTS = {
    "before the alias": "tasks.ledger:_set_aliases:1",
    "alias moved": "tasks.ledger:_close:1",
    "moved, not told": "pipelines.commands_aliases:emit_move:1",
}
WORDS = {
    "promote": ["promote", "moved", "2", "--because", "it is better"],
    "rollback": ["rollback", "moved", "--because", "it drifts"],
}
AFTER = {  # the first version is the challenger too, until it is made the champion
    "promote": {"champion": 2, "previous": 1, "challenger": 1},
    "rollback": {"champion": 1, "previous": 2},
}
MOVES_FAST = {("rollback", "alias moved", "kill"), ("promote", "before the alias", "ctrl-c")}
MOVES = [
    (action, point, fault) if (action, point, fault) in MOVES_FAST else slow(action, point, fault)
    for action in WORDS
    for point in MOVE_POINTS
    for fault in FAULTS
]


@pytest.fixture
def moved_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with two versions of a model, of which the first is the champion."""
    home = tmp_path / "home"
    monkeypatch.setenv("CONVOY_HOME", str(home))
    with_versions(home, "moved", 2)
    return home


@pytest.mark.parametrize(("action", "point", "fault"), MOVES)
def test_a_move_of_aliases_typed_again_is_made_once(
    action: str, point: str, fault: str, moved_home: Path, tmp_path: Path
) -> None:
    if action == "rollback":
        ledger.promote("moved", 2, because="it is better", expected=1)
    before = len(ledger.history("moved"))
    with running(moved_home, tmp_path / "hurt", WORDS[action], MOVE_POINTS[point]) as hurt:
        assert "Traceback" not in suffer(hurt, fault)
        assert hurt.left_after(5) == []
    document = run(moved_home, tmp_path / "again", *WORDS[action])
    assert (document["action"], document["state"]) == (action, "sealed")
    assert ledger.aliases("moved") == AFTER[action]
    assert [move.action for move in ledger.history("moved")[before:]] == [action]
    judge_home()


# --- re-embed --------------------------------------------------------------------------------------------------

EMBED_POINTS = {
    "first batch": "tasks.reembedding:_waiting:1",
    "between batches": "tasks.reembedding:check_unit:2",
    "what came since": "tasks.reembedding:_waiting:2",
    "before the switch": "tasks.reembedding:_switch:1",
    "switched": "tasks.reembedding:_tidy_up:1",
}


@pytest.fixture(scope="module")
def enrolled(module_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `enrol_people` leaves in the module's home."""
    return enrol_people(module_home, tmp_path_factory.mktemp("faces"))


def enrol_people(home: Path, folder: Path) -> Path:
    """The folder of the successor of an embedder that the gallery `staff` has its vectors of; and `straight`, of it.

    `home` is CONVOY_HOME, and `folder` gets models and pictures.
    """
    files = write_tree(
        folder, {name: data for name, data in synthetic_faces(20, 4).items() if name.endswith("jpg")}
    )
    reader = bind("staff", str(write_embedder(folder / "first")), None)
    for person in sorted(files.glob("person_*")):
        enrol_files("staff", reader, person.name, sorted(person.iterdir()))
    shutil.copytree(folder_of("staff"), folder_of("straight"))
    second = write_embedder(folder / "second", seed=1)
    run(home, folder / "out", *re_embed_words("straight", second))
    return second


def re_embed_words(gallery: str, model: Path) -> list[str]:
    return ["faces", "gallery", "re-embed", "--gallery", gallery, "--model", str(model)]


def vectors(gallery: str) -> dict[str, np.ndarray]:
    with Gallery.open(folder_of(gallery)) as opened:
        assert opened.check() == len(opened.people())
        return {
            f"{person.name}/{picture.sha256}": picture.vector
            for person in opened.people()
            for picture in opened.pictures(person.name)
        }


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("point", EMBED_POINTS)
def test_a_re_embedding_typed_again_leaves_what_an_undisturbed_one_leaves(
    point: str, fault: str, enrolled: Path, module_home: Path, tmp_path: Path
) -> None:
    gallery = f"hurt-{point}-{fault}".replace(" ", "-")
    shutil.copytree(folder_of("staff"), folder_of(gallery))
    with running(
        module_home, tmp_path / "hurt", re_embed_words(gallery, enrolled), EMBED_POINTS[point]
    ) as hurt:
        err = suffer(hurt, fault)
        assert "Traceback" not in err
        with Gallery.open(folder_of(gallery)) as opened:  # whole, old or new
            assert opened.check() == len(opened.people())
        assert hurt.left_after(RAY_AGENTS_S) == []
    run(module_home, tmp_path / "again", *re_embed_words(gallery, enrolled))
    judge_re_embedded(gallery)


def judge_re_embedded(gallery: str) -> None:
    """A gallery has the vectors and the files of the one that was re-embedded undisturbed, and nothing waits in it."""
    found, wanted = vectors(gallery), vectors("straight")
    assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in found)
    names = {file.name for file in folder_of(gallery).iterdir()}
    assert names == {file.name for file in folder_of("straight").iterdir()}
    with sqlite3.connect(folder_of(gallery) / "gallery.sqlite") as database:
        assert database.execute("SELECT COUNT(*) FROM pending").fetchone() == (0,)
    database.close()


EMBEDDING = "tasks.embedshards:embed_batch:1"  # in a worker of Ray


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "raylet", "gcs", "driver"])
def test_a_re_embedding_outlasts_the_death_of_each_process_of_ray(
    victim: str, enrolled: Path, module_home: Path, tmp_path: Path
) -> None:
    gallery = f"lost-{victim}"
    shutil.copytree(folder_of("staff"), folder_of(gallery))
    with running(module_home, tmp_path / "hurt", re_embed_words(gallery, enrolled), EMBEDDING) as hurt:
        there = hurt.reach()
        assert there.pid != hurt.process.pid
        RAY_FAULTS[victim](hurt, there)
        if victim != "gcs":  # else it would go on, and be done before anybody misses the head
            hurt.let_go()
        code, err = hurt.end()
        assert "Traceback" not in err
        assert (code == 0) == (victim == "worker"), err  # what a lost worker did is done once more
        if victim == "gcs":
            judge_loss(code, err)
        with Gallery.open(folder_of(gallery)) as opened:
            assert opened.check() == len(opened.people())
        assert hurt.left_after(RAY_AGENTS_S) == []
    if code:
        run(module_home, tmp_path / "again", *re_embed_words(gallery, enrolled))
    judge_re_embedded(gallery)


@pytest.mark.slow
def test_a_re_embedding_outlasts_the_sleep_of_a_laptop(
    enrolled: Path, module_home: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder_of("staff"), folder_of("slept"))
    with running(module_home, tmp_path / "slept", re_embed_words("slept", enrolled), EMBEDDING) as slept:
        slept.reach()
        freeze(slept, NIGHT_S)
        code, err = slept.end()
        assert code == 0, err
        assert slept.left_after(RAY_AGENTS_S) == []
    judge_re_embedded("slept")
