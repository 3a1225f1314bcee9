"""The ledger: every move of a model's aliases is one record, kept in MLflow, that nothing here changes or removes.

A record is a run of the experiment `convoy/ledger`. It is opened before an alias moves and sealed when all have:

    open      who, when, why, on what evidence, from which versions to which; the aliases may be anywhere between
    sealed    the aliases stood as it says
    undone    it was cut off before an alias moved, or something else moved them: no move, so no part of the history

Whoever comes next finishes what was cut off: a record that has moved an alias is completed, one that has not is undone.
Of a move that a person asked for the record also says whether they were told: where not, they ask again (`take_up`).
Each alias names a whole version at any moment, since MLflow sets one at a time and versions appear when they are whole.
One process at a time moves the aliases of a model, see tasks.turns; one that decided by a champion which is no longer
the champion is refused.
"""

import getpass
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag

from tasks.modelstore import files_of, version_at
from tasks.recordstore import aliases_of, connect
from tasks.registry import ensure_experiment
from tasks.turns import turn

Action = Literal["register", "promote", "rollback"]
State = Literal["open", "sealed", "undone"]

EXPERIMENT = "convoy/ledger"
TOLD = "ledger.told"  # "no", "yes", of moves without the key of a flow's run: flows tell by that
ORDER = ("previous", "champion", "challenger")  # what a rollback needs is in place before the champion moves
LONGEST = 4000  # characters of a reason; MLflow's tags take 8,000 bytes


class Overtaken(ValueError):
    """The champion is another than the one that the decision was made against."""


@dataclass(frozen=True)
class Move:
    """One record. Aliases are versions by alias; one that is not set is not there."""

    model: str
    number: int  # from 1, in the order of the moves of this model
    action: Action
    before: dict[str, int]
    after: dict[str, int]
    who: str
    when: str  # UTC
    because: str
    evidence: dict[str, str]  # what it rests on: runs, verdict, page
    key: str  # of the run that asked for it, "" where a person did: the same key does not move twice
    state: State
    run_id: str  # of the record itself

    @property
    def champions(self) -> tuple[int | None, int | None]:
        """The champion before and after."""
        return self.before.get("champion"), self.after.get("champion")

    @property
    def what(self) -> str:
        """`champion 1 → 2, previous - → 1`: what it changed."""
        names = [name for name in ("champion", "previous", "challenger")
                 if self.before.get(name) != self.after.get(name)]  # fmt: skip
        return ", ".join(
            f"{name} {self.before.get(name, '-')} → {self.after.get(name, '-')}" for name in names
        )


def me() -> str:
    """Who this process works for: user and machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def aliases(name: str) -> dict[str, int]:
    """The versions of a registered model that have an alias of ours; {} for one that is not there."""
    return {alias: version for alias, version in aliases_of(name).items() if alias in ORDER}


def promote_first(name: str, version: int, because: str = "registered", key: str = "") -> str:
    """Make a version the challenger, and the champion too if there is none; returns its higher alias.

    A run that has moved them to it already moves nothing: they may be a newer one's by now. Its alias may be "" then.
    """
    with turn(name) as require_mine:
        settle(name, require_mine)
        before = aliases(name)
        if (done := done_before(name, key, "register")) and done.after["challenger"] == version:
            return next((alias for alias in ("champion", "challenger") if before.get(alias) == version), "")
        champion = before.get("champion", version)
        after = {**before, "challenger": version, "champion": champion}
        if before.get("champion") == version:
            return "champion"
        if after != before:
            _move(name, "register", before, after, me(), because, {}, key, require_mine)
    return "champion" if champion == version else "challenger"


def promote(
    name: str,
    version: int,
    *,
    because: str,
    expected: int | None,
    who: str = "",
    evidence: Mapping[str, str] | None = None,
    key: str = "",
) -> Move:
    """Make a version the champion; the one that was becomes `previous`, and a challenger of that version none.

    `expected` is the champion that the decision was made against, None for none. Raises ValueError where it is another
    by now, where the version is the champion already, is not there, or its files are damaged.
    """
    return _replace(name, version, "promote", because, expected, who, evidence or {}, key)


def rollback(
    name: str, version: int, *, because: str, expected: int | None, who: str = "", key: str = ""
) -> Move:
    """Make a version that was registered before the champion again; otherwise as `promote`."""
    return _replace(name, version, "rollback", because, expected, who, {}, key)


def _replace(
    name: str, version: int, action: Action, because: str, expected: int | None, who: str,
    evidence: Mapping[str, str], key: str,
) -> Move:  # fmt: skip
    if not because.strip() or len(because) > LONGEST:
        raise ValueError(f"because must say why, in at most {LONGEST:,} characters; got {len(because):,}")
    client = connect()
    # raises for what is not there, or not whole
    files_of(client, version_at(client, f"models:/{name}/{version}"))
    with turn(name) as require_mine:
        settle(name, require_mine)
        if done := done_before(name, key, action):
            return done
        before = aliases(name)
        champion = before.get("champion")
        if champion != expected:
            raise Overtaken(overtaken(name, expected, champion))
        if champion == version:
            raise ValueError(f"version {version} is the champion of {name} already: nothing to do")
        after = {**before, "champion": version}
        if champion is not None:
            after["previous"] = champion
        if after.get("challenger") == version:
            del after["challenger"]
        return _move(name, action, before, after, who or me(), because, evidence, key, require_mine)


def take_up(name: str, action: Action, because: str, version: int | None = None) -> Move | None:
    """Finish a move that was cut off: the last move, where it is the one that is asked for again; `version` None: any.

    It is that where it was finished now, or where who asks now asked then and was never told. What was registered since
    is no move of what a person asks for: the champion stands where it was put.
    """
    with turn(name) as require_mine:
        settled = settle(name, require_mine)
    move = last_decision(name)
    if move is None or (move.action, move.because) != (action, because):
        return None
    now = aliases(name)
    if any(now.get(alias) != move.after.get(alias) for alias in ("champion", "previous")):
        return None
    untold = connect().get_run(move.run_id).data.tags.get(TOLD) == "no" and move.who == me()
    return move if version in (None, move.after["champion"]) and (untold or move == settled) else None


def last_decision(name: str) -> Move | None:
    """The last promotion or rollback; None where there was none."""
    return next((move for move in reversed(history(name)) if move.action != "register"), None)


def note_told(move: Move) -> None:
    """Note that whoever asked for a move was told of it: asked for again, it is another move."""
    connect().set_tag(move.run_id, TOLD, "yes")


def done_before(name: str, key: str, action: Action) -> Move | None:
    """The move that a run has made already, where it is tried again."""
    moves = history(name) if key else []
    return next((move for move in reversed(moves) if (move.key, move.action) == (key, action)), None)


def overtaken(name: str, expected: int | None, champion: int | None) -> str:
    """Why a promotion is refused whose champion is not the champion any more."""
    was = "there was no champion" if expected is None else f"version {expected} was the champion"
    now = "there is none" if champion is None else f"version {champion} is"
    last = next((move for move in reversed(history(name)) if move.after.get("champion") == champion), None)
    by = f", by {last.who} at {last.when} because: {last.because}" if last else ""
    return (
        f"{was} of {name} when this was decided, and now {now}{by}. Nothing was moved: compare with the champion of "
        "now, and try again"
    )


def _move(
    name: str, action: Action, before: dict[str, int], after: dict[str, int], who: str, because: str,
    evidence: Mapping[str, str], key: str, require_mine: Callable[[], None],
) -> Move:  # fmt: skip
    """Open a record, move the aliases, seal it; the turn must be ours, see tasks.turns."""
    client = connect()
    move = Move(
        name, len(history(name)) + 1, action, before, after, who,
        datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), because, dict(evidence), key, "open", "",
    )  # fmt: skip
    values = {
        "ledger.model": name, "ledger.number": str(move.number), "ledger.action": action,
        "ledger.before": json.dumps(before), "ledger.after": json.dumps(after), "ledger.who": who,
        "ledger.when": move.when, "ledger.because": because, "ledger.evidence": json.dumps(move.evidence),
        "ledger.key": key, "ledger.state": "open", **({} if key else {TOLD: "no"}),
    }  # fmt: skip
    require_mine()
    run = client.create_run(
        ensure_experiment(client, EXPERIMENT), tags=values, run_name=f"{name} {move.number}: {move.what}"
    )
    _set_aliases(client, name, after, require_mine)
    return _close(client, run, "sealed", require_mine)


def _set_aliases(
    client: MlflowClient, name: str, wanted: Mapping[str, int], require_mine: Callable[[], None]
) -> None:
    now = aliases(name)
    for alias in ORDER:
        if alias in wanted and now.get(alias) != wanted[alias]:
            require_mine()
            client.set_registered_model_alias(name, alias, str(wanted[alias]))
        elif alias in now and alias not in wanted:
            require_mine()
            client.delete_registered_model_alias(name, alias)


def _close(client: MlflowClient, run: Run, state: State, require_mine: Callable[[], None]) -> Move:
    require_mine()
    client.set_terminated(run.info.run_id, "FINISHED" if state == "sealed" else "KILLED")
    client.log_batch(run.info.run_id, tags=[RunTag("ledger.state", state)])
    return read_move(client.get_run(run.info.run_id))


def settle(name: str, require_mine: Callable[[], None]) -> Move | None:
    """Finish a move that was cut off, if there is one; the turn must be ours. Returns it as it is now."""
    client = connect()
    settled = None
    for run in _records(client, name, "open"):
        move, now = read_move(run), aliases(name)
        moved = now != move.before
        on_the_way = all(now.get(alias) in (move.before.get(alias), move.after.get(alias)) for alias in ORDER)
        # MLflow's client sends a request again whose answer was lost: the second record of one move
        twin = any(sealed.number == move.number for sealed in history(name))
        finish = moved and on_the_way and not twin
        if finish:
            _set_aliases(client, name, move.after, require_mine)
        settled = _close(client, run, "sealed" if finish else "undone", require_mine)
    return settled


def history(name: str) -> list[Move]:
    """The moves of a model, oldest first."""
    moves = [read_move(run) for run in _records(connect(), name, "sealed")]
    return sorted(moves, key=lambda move: move.number)


def unfinished(name: str) -> list[Move]:
    """Moves that were cut off, or that another process is making."""
    return [read_move(run) for run in _records(connect(), name, "open")]


def _records(client: MlflowClient, name: str, state: State) -> list[Run]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    found: list[Run] = []
    token: str | None = ""
    while token is not None:
        condition = f"tags.`ledger.model` = '{name}' and tags.`ledger.state` = '{state}'"
        page = client.search_runs([experiment.experiment_id], condition, page_token=token or None)
        found += page
        token = page.token or None
    return found


def read_move(run: Run) -> Move:
    """A record as it is kept."""
    tags: dict[str, Any] = run.data.tags
    return Move(
        model=tags["ledger.model"], number=int(tags["ledger.number"]), action=tags["ledger.action"],
        before=json.loads(tags["ledger.before"]), after=json.loads(tags["ledger.after"]), who=tags["ledger.who"],
        when=tags["ledger.when"], because=tags["ledger.because"], evidence=json.loads(tags["ledger.evidence"]),
        key=tags["ledger.key"], state=tags["ledger.state"], run_id=run.info.run_id,
    )  # fmt: skip
