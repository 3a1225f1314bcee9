"""A version takes over when its alias moves; one that cannot be read changes nothing."""

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks import following, ledger, registry
from tasks.following import Follower, Served, answer_together
from tasks.predict import load_predictor
from tasks.recordstore import connect
from tasks.resolution import Resolved, exact_name, follows_alias, resolve
from tests.recording import make_model, pictures, start

URI = "models:/pets@champion"


class Registry:
    """What a follower asks, with versions that tests set."""

    def __init__(self) -> None:
        self.now, self.away = "models:/pets/1", False
        self.broken: set[str] = set()
        self.opened: list[str] = []

    def ask(self, _uri: str) -> str:
        if self.away:
            raise ConnectionError("nobody\n listens")
        return self.now

    def find(self, uri: str) -> Resolved:
        exact = self.now if "@" in uri else uri
        return Resolved(uri, exact, "pets", "run", f"sha of {exact}", Path("nowhere"))

    def open_model(self, resolved: Resolved) -> Served:
        self.opened.append(resolved.exact)
        if resolved.exact in self.broken:
            raise RuntimeError("size mismatch\nfor net.fc")
        predictor: Any = object()
        return Served(resolved, predictor, datetime.now(UTC))


@pytest.fixture
def made() -> Registry:
    return Registry()


def follower_of(made: Registry, told: list[str]) -> Follower:
    return Follower(URI, told.append, made.ask, made.find, made.open_model)


def test_the_version_that_the_alias_names_takes_over(made: Registry) -> None:
    told: list[str] = []
    follower = follower_of(made, told)
    follower.check()
    assert follower.current.version == "models:/pets/1" and not told
    made.now = "models:/pets/2"
    follower.check()
    follower.check()
    assert follower.current.version == "models:/pets/2"
    assert follower.current.resolved.sha256 == "sha of models:/pets/2"
    assert told == ["models:/pets/2 answers from now on; models:/pets/1 did before"]
    assert made.opened == ["models:/pets/1", "models:/pets/2"]


def test_a_version_that_cannot_be_read_leaves_the_old_one_and_one_line(
    made: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    follower = follower_of(made, told)
    made.now, made.broken = "models:/pets/2", {"models:/pets/2"}
    for _ in range(3):
        follower.check()
    assert follower.current.version == "models:/pets/1"
    assert told == [
        "models:/pets/2 cannot be served: size mismatch for net.fc; models:/pets/1 goes on answering"
    ]
    assert made.opened == ["models:/pets/1", "models:/pets/2"]  # not read again at each look
    assert "size mismatch" in follower.fault
    monkeypatch.setattr(following, "RETRY_S", 0.0)
    follower.retry_s = 0.0
    made.broken = set()
    follower.check()
    assert follower.current.version == "models:/pets/2" and follower.fault == ""


def test_going_back_to_the_version_that_answers_ends_the_fault(made: Registry) -> None:
    follower = follower_of(made, [])
    made.now, made.broken = "models:/pets/2", {"models:/pets/2"}
    follower.check()
    made.now = "models:/pets/1"
    follower.check()
    assert follower.fault == "" and follower.current.version == "models:/pets/1"


def test_a_registry_that_is_away_is_told_once(made: Registry) -> None:
    told: list[str] = []
    follower = follower_of(made, told)
    made.away = True
    follower.check()
    follower.check()
    assert told == [f"{URI}: the registry does not answer (nobody listens); models:/pets/1 goes on answering"]
    made.away = False
    follower.check()
    assert follower.fault == ""


def test_what_is_under_way_ends_with_the_version_it_began_with(tmp_path: Path) -> None:
    predictors = [load_predictor(make_model(tmp_path / str(seed), seed)) for seed in (0, 1)]
    blobs = pictures(3)

    def served(number: int) -> Served:
        resolved = Resolved(URI, f"models:/pets/{number}", "pets", "", "", tmp_path)
        return Served(resolved, predictors[number], datetime.now(UTC))

    first = answer_together(served(0), [blobs[:1], [], blobs[1:]])
    assert [len(answer.rows) for answer in first] == [1, 0, 2]
    assert {answer.served.version for answer in first} == {"models:/pets/0"}
    alone = predictors[0].predict(blobs).to_pylist()
    assert [row["label"] for answer in first for row in answer.rows] == [row["label"] for row in alone]


def test_only_an_alias_moves() -> None:
    assert follows_alias("models:/pets@champion")
    assert not follows_alias("models:/pets/3")
    assert not follows_alias("runs/key/model")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "home"))
    run_id = start("pets", tmp_path / "pets")
    for seed in (0, 1):
        model = make_model(tmp_path / f"model-{seed}", seed)
        version = registry.register(run_id, model, name="pets", example=pictures(1), tags={})
        ledger.promote_first("pets", version)
    return tmp_path


def test_a_real_registry_is_followed_by_a_thread(home: Path) -> None:
    assert home.is_dir()
    changed = threading.Event()
    follower = Follower(URI, lambda text: changed.set())
    over = threading.Event()
    thread = threading.Thread(target=follower.follow, args=(0.05, over))
    thread.start()
    try:
        connect().set_registered_model_alias("pets", "champion", "2")
        assert changed.wait(120)
    finally:
        over.set()
        thread.join()
    assert follower.current.version == "models:/pets/2" == exact_name(URI)
    resolved = resolve(URI)
    assert (resolved.exact, resolved.name, resolved.asked) == ("models:/pets/2", "pets", URI)
    assert resolved.run_id == registry.run_id_of("pets")
    expected = load_predictor(resolved.folder).predict(pictures(2)).to_pylist()
    assert follower.current.predictor.predict(pictures(2)).to_pylist() == expected
    # files that were changed since they were registered are refused, and the old version goes on
    connect().set_registered_model_alias("pets", "champion", "1")
    weights = resolve("models:/pets/1").folder / "member-0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    follower.check()
    assert follower.current.version == "models:/pets/2"
    assert "models:/pets/1 cannot be served: the files of models:/pets/1" in follower.fault
