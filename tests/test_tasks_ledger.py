"""The ledger: aliases are whole and each move is one record, however and whenever a process ends."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks import ledger, registry, restoring, turns
from tasks.modelfile import model_sha256
from tasks.paths import ROOT
from tasks.versions import Version
from tests.recording import DIGEST, make_model

WHY = {"because": "it is better"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for the module: its database takes seconds to make. Tests keep apart by their models' names."""
    folder = tmp_path_factory.mktemp("ledger")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVOY_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


@pytest.fixture
def client(home: Path) -> MlflowClient:
    assert registry.tracking_uri() == f"sqlite:///{home}/mlflow.db"
    return registry.connect()


def with_versions(home: Path, name: str, num: int) -> None:
    """A registered model with so many versions, of which the first is champion; without what only serving needs."""
    client = registry.connect()
    client.create_registered_model(name, tags={"convoy.family": "classification"})
    for seed in range(num):
        folder = home / "made" / f"{name}-{seed}"
        sha256 = model_sha256(make_model(folder / "artifacts" / "model", seed))
        tags = {"convoy.model_sha256": sha256, "dvc.digest": DIGEST, "git.commit": "c0ffee"}
        client.create_model_version(name, folder.as_uri(), tags=tags)
    ledger.promote_first(name, 1)


def records(client: MlflowClient, name: str) -> list[Any]:
    found = client.get_experiment_by_name(ledger.EXPERIMENT)
    return list(client.search_runs([found.experiment_id], f"tags.`ledger.model` = '{name}'"))


def test_a_promotion_moves_the_aliases_and_records_who_when_why_and_from_where(home: Path) -> None:
    with_versions(home, "moved", 2)
    assert ledger.promote_first("moved", 2) == "challenger"
    move = ledger.promote("moved", 2, expected=1, evidence={"run": "abc"}, key="run-2", **WHY)
    assert ledger.aliases("moved") == {"champion": 2, "previous": 1}
    assert (move.number, move.action, move.state) == (3, "promote", "sealed")
    assert move.before == {"champion": 1, "challenger": 2}
    assert move.after == {"champion": 2, "previous": 1}
    assert move.what == "champion 1 → 2, previous - → 1, challenger 2 → -"
    assert (move.who, move.because, move.evidence) == (ledger.me(), "it is better", {"run": "abc"})
    assert ledger.history("moved")[-1] == move
    assert [each.number for each in ledger.history("moved")] == [1, 2, 3]


def test_a_rollback_restores_the_whole_version_and_knows_its_data(home: Path) -> None:
    with_versions(home, "back", 2)
    with pytest.raises(
        ValueError, match=r"no version was champion of back before .*knows \[1\]\); name one with --to"
    ):
        restoring.earlier_champion("back")
    ledger.promote("back", 2, expected=1, **WHY)
    version = restoring.earlier_champion("back")
    belongs = restoring.belongings("back", version)
    ledger.rollback("back", version, expected=2, **WHY)
    assert ledger.aliases("back") == {"champion": 1, "previous": 2}
    assert (
        belongs.model_sha256 == registry.connect().get_model_version("back", "1").tags["convoy.model_sha256"]
    )
    assert belongs.preprocessing["crop_px"] == 32 and belongs.networks == ("lenet5",)
    assert (
        belongs.data
        == f"pets ({DIGEST}), which is no version known here: git has the pointer of commit c0ffee"
    )
    assert [move.action for move in ledger.history("back")] == ["register", "promote", "rollback"]


def test_the_version_of_the_data_is_named_where_it_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [Version(number=n, md5=md5 * 32 + ".dir", size=1, nfiles=1) for n, md5 in ((1, "a"), (2, "b"))]
    monkeypatch.setattr("tasks.versions.history", lambda name: listed)
    monkeypatch.setattr("tasks.versions.current", lambda name: listed[1].md5)
    assert restoring.data_of("pets", listed[0].md5, "") == (
        f"version 1 of pets ({listed[0].md5}): ./convoy data checkout pets 1"
    )
    assert restoring.data_of("pets", listed[1].md5, "").startswith("pets as it is checked out now")


def test_a_decision_against_a_champion_that_is_gone_moves_nothing(home: Path) -> None:
    with_versions(home, "late", 3)
    ledger.promote("late", 2, expected=1, who="anna@mill", **WHY)
    with pytest.raises(ledger.Overtaken) as refused:
        ledger.promote("late", 3, expected=1, **WHY)
    text = str(refused.value)
    assert text.startswith(
        "version 1 was the champion of late when this was decided, and now version 2 is, by anna@mill"
    )
    assert "because: it is better" in text and "\n" not in text
    assert ledger.aliases("late")["champion"] == 2
    assert len(ledger.history("late")) == 2


@pytest.mark.parametrize(
    ("version", "because", "says"),
    [
        (1, "why", "version 1 is the champion of refused already"),
        (7, "why", "no such version"),
        (2, " ", "because must"),
    ],
)
def test_what_cannot_be_moved_is_told_and_leaves_no_record(
    home: Path, version: int, because: str, says: str
) -> None:
    if not ledger.aliases("refused"):
        with_versions(home, "refused", 2)
    with pytest.raises(ValueError, match=says):
        ledger.promote("refused", version, expected=1, because=because)
    assert len(ledger.history("refused")) == 1
    assert ledger.unfinished("refused") == []


def test_a_version_whose_files_are_damaged_is_never_the_champion(home: Path) -> None:
    with_versions(home, "damaged", 2)
    weights = registry.resolve_model("models:/damaged/2") / "member-0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="are not those that were registered"):
        ledger.promote("damaged", 2, expected=1, **WHY)
    assert ledger.aliases("damaged")["champion"] == 1


WRITES = (
    "create_run", "set_registered_model_alias", "set_registered_model_alias", "delete_registered_model_alias",
    "set_terminated", "log_batch",
)  # fmt: skip


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("place", range(len(WRITES)))
def test_a_kill_at_any_write_leaves_aliases_whole_and_at_last_one_record(
    home: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, place: int, after: bool
) -> None:
    name = f"killed-{place}-{after}"
    with_versions(home, name, 2)
    ledger.promote_first(name, 2)
    seen: list[str] = []

    def dying(method: str) -> Any:
        original = getattr(client, method)

        def call(*arguments: Any, **options: Any) -> Any:
            here = len(seen) == place
            seen.append(method)
            if here and not after:
                raise KeyboardInterrupt
            found = original(*arguments, **options)
            if here:
                raise KeyboardInterrupt
            return found

        return call

    with monkeypatch.context() as patch:
        for method in set(WRITES):
            patch.setattr(client, method, dying(method))
        with pytest.raises(KeyboardInterrupt):
            ledger.promote(name, 2, expected=1, key="the run", **WHY)
    assert tuple(seen) == WRITES[: place + 1]
    now = ledger.aliases(name)
    assert now["champion"] in (1, 2)
    if now["champion"] == 2:
        assert now["previous"] == 1, "what a rollback needs is there before the champion moves"

    def again() -> ledger.Move:
        return ledger.promote(name, 2, expected=1, key="the run", **WHY)

    move, twice = again(), again()
    assert move == twice, "the same run moves once"
    assert ledger.aliases(name) == {"champion": 2, "previous": 1}
    assert [each.action for each in ledger.history(name)] == ["register", "register", "promote"]
    assert [each.number for each in ledger.history(name)] == [1, 2, 3]
    assert ledger.unfinished(name) == []
    states = sorted(run.data.tags["ledger.state"] for run in records(client, name))
    assert states in (["sealed"] * 3, ["sealed"] * 3 + ["undone"])


def test_a_cut_off_move_that_others_have_crossed_is_no_move(home: Path, client: MlflowClient) -> None:
    with_versions(home, "crossed", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "log_batch", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger.promote("crossed", 2, expected=1, **WHY)
    client.set_registered_model_alias("crossed", "champion", "3")  # in MLflow's own page
    move = ledger.promote("crossed", 1, expected=3, **WHY)
    assert move.champions == (3, 1)
    assert [each.champions for each in ledger.history("crossed")] == [(None, 1), (3, 1)]


def test_a_move_that_nobody_was_told_of_is_not_made_again_when_it_is_asked_for_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_versions(home, "untold", 2)
    ledger.promote("untold", 2, expected=1, **WHY)
    back = ledger.rollback("untold", 1, expected=2, because="it drifts")

    def again() -> ledger.Move | None:
        return ledger.take_up("untold", "rollback", "it drifts")

    assert again() == back == ledger.take_up("untold", "rollback", "it drifts", 1)
    assert ledger.take_up("untold", "rollback", "it drifts", 2) is None
    assert ledger.take_up("untold", "rollback", "another reason") is None
    assert ledger.take_up("untold", "promote", "it is better", 2) is None, "it is not the last"
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "me", lambda: "somebody@else")
        assert again() is None
    registry.connect().set_registered_model_alias("untold", "champion", "2")  # in MLflow's own page
    assert again() is None
    registry.connect().set_registered_model_alias("untold", "champion", "1")
    ledger.note_told(back)
    assert again() is None, "who was told and asks again wants another"
    ledger.rollback("untold", 2, expected=1, because="by a flow", key="its run")
    assert ledger.take_up("untold", "rollback", "by a flow") is None


def test_a_rollback_that_nobody_was_told_of_is_not_made_again_though_a_model_was_registered_since(
    home: Path,
) -> None:
    with_versions(home, "nightly", 3)
    ledger.promote("nightly", 2, expected=1, **WHY)
    back = ledger.rollback("nightly", 1, expected=2, because="it drifts")
    assert ledger.promote_first("nightly", 3, key="its run") == "challenger"
    assert ledger.history("nightly")[-1].action == "register"
    assert ledger.take_up("nightly", "rollback", "it drifts") == back


def test_a_rollback_of_a_rollback_needs_a_version(home: Path) -> None:
    """Two people who answer one alarm would undo each other."""
    with_versions(home, "alarm", 3)
    ledger.promote("alarm", 2, expected=1, **WHY)
    assert restoring.earlier_champion("alarm") == 1
    ledger.rollback("alarm", 1, expected=2, because="it drifts", who="ann@mill")
    ledger.promote_first("alarm", 3)
    with pytest.raises(
        ValueError, match=r"rolled back already \(champion 2 → 1.*ann@mill .* it drifts\. .* give --to 2"
    ):
        restoring.earlier_champion("alarm")
    ledger.promote("alarm", 3, expected=1, **WHY)
    assert restoring.earlier_champion("alarm") == 1


def test_a_run_that_is_resumed_takes_no_alias_back_from_a_newer_version(home: Path) -> None:
    with_versions(home, "resumed", 3)
    assert ledger.promote_first("resumed", 2, key="older run") == "challenger"
    assert ledger.promote_first("resumed", 3, key="newer run") == "challenger"
    assert ledger.promote_first("resumed", 2, key="older run") == ""
    assert ledger.aliases("resumed") == {"champion": 1, "challenger": 3}
    assert ledger.promote_first("resumed", 3, key="newer run") == "challenger"
    ledger.promote("resumed", 3, expected=1, **WHY)
    assert ledger.promote_first("resumed", 3, key="newer run") == "champion"
    assert [move.action for move in ledger.history("resumed")] == ["register"] * 3 + ["promote"]


def test_a_record_that_the_server_made_twice_is_one_move(
    home: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client sends a request again whose answer was lost on its way."""
    with_versions(home, "twice", 2)
    original = client.create_run
    with monkeypatch.context() as patch:
        patch.setattr(
            client, "create_run", lambda *each, **named: [original(*each, **named) for _ in "12"][1]
        )
        ledger.promote("twice", 2, expected=1, **WHY)
    ledger.rollback("twice", 1, expected=2, **WHY)
    assert [(move.number, move.action) for move in ledger.history("twice")] == [
        (1, "register"), (2, "promote"), (3, "rollback"),
    ]  # fmt: skip
    assert ledger.unfinished("twice") == []
    assert ledger.aliases("twice") == {"champion": 1, "previous": 2}


def test_a_server_that_goes_away_in_a_turn_is_named_and_is_no_model_that_is_not_there(
    home: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_versions(home, "gone", 2)
    monkeypatch.setattr(ledger, "turn", turns.leased)  # as on a server
    monkeypatch.setattr(turns, "SETTLE_S", 0.05)

    def away(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(client, "get_registered_model", away)
        raise MlflowException("API request failed: connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(client, "set_registered_model_alias", away)
        with pytest.raises(MlflowException, match="connection refused"):
            ledger.promote("gone", 2, expected=1, **WHY)
    with pytest.raises(MlflowException, match="connection refused"):
        turns.standing("gone")


def test_of_two_promoters_at_once_one_wins_and_the_other_is_told(home: Path) -> None:
    with_versions(home, "raced", 3)
    barrier, told = threading.Barrier(2), list[str]()

    def promote(version: int) -> None:
        barrier.wait()
        try:
            ledger.promote("raced", version, expected=1, **WHY)
        except ledger.Overtaken as error:
            told.append(str(error))

    threads = [threading.Thread(target=promote, args=(version,)) for version in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1 and "version 1 was the champion of raced when this was decided" in told[0]
    champion = ledger.aliases("raced")["champion"]
    assert [move.champions for move in ledger.history("raced")] == [(None, 1), (1, champion)]


def test_who_has_to_wait_too_long_is_told_for_whom(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(home, "busy", 2)
    monkeypatch.setattr(turns, "WAIT_S", 0.2)
    with (
        turns.turn("busy"),
        pytest.raises(ValueError, match=rf"process {os.getpid()} is moving the aliases of busy"),
    ):
        ledger.promote("busy", 2, expected=1, **WHY)


def test_on_a_server_one_process_at_a_time_has_the_turn(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(home, "leased", 1)
    monkeypatch.setattr(turns, "SETTLE_S", 0.2)
    inside, most, barrier = list[int](), list[int](), threading.Barrier(3)

    def work(number: int) -> None:
        barrier.wait()
        with turns.leased("leased"):
            inside.append(number)
            most.append(len(inside))
            threading.Event().wait(0.1)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
    assert turns.standing("leased") is None


def test_the_turn_of_a_process_that_died_on_a_server_ends_by_itself(
    home: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_versions(home, "dead", 1)
    monkeypatch.setattr(turns, "SETTLE_S", 0.05)
    monkeypatch.setattr(turns, "WAIT_S", 0.3)
    client.set_registered_model_tag("dead", turns.TAG, "abc 9999999999 mill:7")
    with pytest.raises(ValueError, match="mill:7 is moving the aliases of dead"), turns.leased("dead"):
        pass
    client.set_registered_model_tag("dead", turns.TAG, "abc 1000 mill:7")
    with turns.leased("dead"):
        assert (turns.standing("dead") or "").split(" ")[0] != "abc"


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_who_wakes_after_its_lease_on_a_server_moves_and_seals_nothing_more(
    home: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    name = f"asleep-{place}"
    with_versions(home, name, 3)
    ledger.promote_first(name, 2)
    monkeypatch.setattr(ledger, "turn", turns.leased)  # as between machines, which share no file system
    monkeypatch.setattr(turns, "SETTLE_S", 0.05)
    writes: list[str] = []

    def meanwhile() -> None:
        """The lease runs out, and another machine promotes the third version."""
        client.set_registered_model_tag(name, turns.TAG, "abc 1000 asleep:7")
        ledger.take_up(name, "rollback", "to settle")
        ledger.promote(name, 3, expected=ledger.aliases(name)["champion"], because="better still")

    def sleepy(method: str) -> Any:
        original = getattr(client, method)

        def call(*arguments: Any, **options: Any) -> Any:
            found = original(*arguments, **options)
            writes.append(method)
            if len(writes) == place + 1:
                meanwhile()
            return found

        return call

    with monkeypatch.context() as patch:
        for method in set(WRITES):
            patch.setattr(client, method, sleepy(method))
        with pytest.raises(RuntimeError, match=f"not its turn to move the aliases of {name} any more"):
            ledger.promote(name, 2, expected=1, **WHY)
    assert writes[place] == WRITES[place]
    assert ledger.aliases(name)["champion"] == 3
    moves = ledger.history(name)
    assert [move.number for move in moves] == list(range(1, len(moves) + 1))
    assert [later.before for later in moves[1:]] == [earlier.after for earlier in moves[:-1]]
    assert moves[-1].after == ledger.aliases(name) and ledger.unfinished(name) == []


def test_nothing_is_begun_in_a_turn_that_is_about_to_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(home, "late-lease", 1)
    monkeypatch.setattr(turns, "SETTLE_S", 0.05)
    with turns.leased("late-lease") as require_mine:
        require_mine()
    monkeypatch.setattr(turns, "LEASE_S", turns.MARGIN_S - 1)
    with turns.leased("late-lease") as require_mine, pytest.raises(RuntimeError, match="took so long"):
        require_mine()


KILLED = """
import os, signal, sys
from tasks import ledger
from tasks.recordstore import connect
client = connect()
original = client.set_registered_model_alias
def last_word(name, alias, version):
    original(name, alias, version)
    if alias == "previous":
        os.kill(os.getpid(), signal.SIGKILL)
client.set_registered_model_alias = last_word
ledger.promote("sigkilled", 2, because="it is better", expected=1)
"""


@pytest.mark.chaos
def test_a_killed_process_leaves_its_move_to_the_next(home: Path) -> None:
    with_versions(home, "sigkilled", 3)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert ledger.aliases("sigkilled") == {"champion": 1, "challenger": 1, "previous": 1}
    assert [move.what for move in ledger.unfinished("sigkilled")] == ["champion 1 → 2, previous - → 1"]
    move = ledger.promote("sigkilled", 3, because="better still", expected=2)
    assert move.champions == (2, 3), "the move that was cut off was completed first"
    assert [each.champions for each in ledger.history("sigkilled")] == [(None, 1), (1, 2), (2, 3)]
