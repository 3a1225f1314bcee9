"""`./convoy promote`, `rollback` and `history`: the aliases of registered models, and the ledger of their moves."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from cyclopts import Parameter

from pipelines import server
from pipelines.options import Json
from pipelines.render import ConsoleReporter, emit, pairs, table
from tasks import ledger, restoring, retrainings
from tasks.cost import Cost, told
from tasks.modelstore import find_aliases, version_at
from tasks.recordstore import connect
from tasks.runrecords import costs_until

BY_HAND = "by hand"


def promote(model: str, version: int, /, *, because: str = BY_HAND, as_json: Json = False) -> None:
    """Make a version of a registered model the champion, without a gate; the champion of now becomes `previous`.

    Example: ./convoy promote classifier-products 4 --because "new classes"

    Parameters
    ----------
    model
        Name of a registered model; ./convoy models list shows them.
    version
        Its version.
    because
        Why; it is kept in the ledger.
    """
    require_known(model)
    move = ledger.take_up(model, "promote", because, version)
    if move is None:
        expected = ledger.aliases(model).get("champion")
        move = ledger.promote(model, version, because=because, expected=expected)
    emit_move(move, as_json)


def rollback(
    model: str,
    /,
    *,
    to: Annotated[int | None, Parameter(name="--to")] = None,
    because: str = "rolled back by hand",
    as_json: Json = False,
) -> None:
    """Make the version that was champion before the champion again: weights, thresholds and preprocessing.

    Says which version of the data belongs to it, and how to check that out.
    Example: ./convoy rollback classifier-products

    Parameters
    ----------
    model
        Name of a registered model; ./convoy models list shows them.
    to
        The version to go back to; otherwise the one that the alias `previous` names.
    because
        Why; it is kept in the ledger.
    """
    require_known(model)
    # else the version before would be the one that was left
    move = ledger.take_up(model, "rollback", because, to)
    if move is None:
        expected = ledger.aliases(model).get("champion")
        version = restoring.earlier_champion(model) if to is None else to
        restoring.belongings(model, version)  # raises for what is not there, or not whole
        move = ledger.rollback(model, version, because=because, expected=expected)
    emit_move(move, as_json)


def history(
    model: str,
    /,
    *,
    retrains: Annotated[bool, Parameter(name="--retrains", negative=())] = False,
    as_json: Json = False,
) -> None:
    """List the moves of a model's aliases, the latest first: what, when, who, why.

    Parameters
    ----------
    model
        Name of a registered model; ./convoy models list shows them.
    retrains
        List the retrainings instead: what came of each and why, the skipped ones too.
    """
    require_known(model)
    if retrains:
        list_retrainings(model, as_json)
        return
    moves = ledger.history(model)[::-1]
    now = ledger.aliases(model)
    costs = costs_of_champions(model, moves)
    rows = [
        [each.number, each.when, each.action, each.what, each.who, each.because, since(costs.get(each.number))]
        for each in moves
    ]  # fmt: skip
    columns = ("", "when", "action", "what", "who", "because", "cost since the champion before")
    made = table(f"Moves of {model}", columns, rows) if moves else f"no move of {model} is recorded"
    standing = ", ".join(f"{alias} {version}" for alias, version in sorted(now.items())) or "no alias"
    notes = remarks(model, moves, now)
    document = {
        "model": model, "aliases": now, "moves": [
            {**asdict(move), "what": move.what,
             "cost": asdict(costs[move.number]) if move.number in costs else None}
            for move in moves
        ],
        "notes": notes,
    }  # fmt: skip
    emit(document, [made, f"now: {standing}", *notes], as_json)


def costs_of_champions(model: str, moves: list[ledger.Move]) -> dict[int, Cost]:
    """By number, for each move that made a newly trained version the champion: all runs since the one before."""
    made = [
        move for move in moves[::-1] if move.action != "rollback" and move.champions[0] != move.champions[1]
    ]
    if not made:
        return {}
    version = version_at(connect(), f"models:/{model}/{made[-1].after['champion']}")
    ends = [datetime.fromisoformat(move.when) for move in made]
    costs = costs_until(version.tags["convoy.family"], version.tags["convoy.dataset"], ends)
    return {move.number: cost for move, cost in zip(made, costs, strict=True)}


def since(cost: Cost | None) -> str | None:
    """A cost in a line; None where none was measured."""
    return told(cost) if cost is not None and cost.runs else None


def list_retrainings(model: str, as_json: bool) -> None:
    """Print what came of each retraining, and why."""
    found = retrainings.retrainings(model)
    rows = [
        [each.when, each.outcome, each.reason, each.why or None, each.champion, each.digest[:8] or None, each.key]
        for each in found
    ]  # fmt: skip
    columns = ("when", "outcome", "because", "retrained because", "champion", "data", "run")
    empty = f"{model} was never retrained: ./convoy retrain"
    document = {"model": model, "retrainings": [asdict(each) for each in found]}
    emit(document, [table(f"Retrainings of {model}", columns, rows) if rows else empty], as_json)


def remarks(model: str, moves: list[ledger.Move], now: dict[str, int]) -> list[str]:
    """What is to be known of the ledger: moves past it, and one that was cut off."""
    found = []
    unfinished = ledger.unfinished(model)
    if unfinished:
        found.append(
            f"note: a move by {unfinished[0].who} at {unfinished[0].when} ({unfinished[0].what}) is under way, or was "
            "cut off: the next promotion, rollback or training finishes it"
        )
    elif moves and moves[0].after != now:
        found.append("note: aliases were moved past the ledger since, in MLflow itself")
    return found


def require_known(model: str) -> None:
    """Raise ValueError for a name that no registered model has."""
    known = find_aliases(connect())
    if model not in known:
        raise ValueError(f"no registered model {model!r}; known: {', '.join(sorted(known)) or 'none yet'}")


def emit_move(move: ledger.Move, as_json: bool) -> None:
    """Tell of a move where a server is to hear it; print it, with what belongs to the version that is champion now.

    That it was told is noted last: whoever was not, and gives the command again, is told of this move.
    """
    belongs = restoring.belongings(move.model, move.after["champion"])
    if server.is_named():
        from pipelines.aliases import tell  # only now: Prefect takes seconds to import

        tell(move, belongs, ConsoleReporter())
    behind = behind_now(move.model, belongs.family)
    document = {**asdict(move), "what": move.what, "restored": asdict(belongs), "galleries_behind": behind}
    values = {
        "moved": move.what,
        "because": move.because,
        "networks": ", ".join(belongs.networks),
        "preprocessing": ", ".join(f"{name} {value}" for name, value in belongs.preprocessing.items()),
        "thresholds": ", ".join(f"{name} {value:.4g}" for name, value in belongs.thresholds.items())
        or "none",
        "temperature": belongs.temperature,
        "model's sha256": belongs.model_sha256,
        "trained on": belongs.data,
        "by the code of": belongs.commit or "not known",
    }
    views: list[Any] = [pairs(f"models:/{move.model}@champion is version {belongs.version}", values)]
    if behind:
        listed = ", ".join(f"{gallery} (version {version})" for gallery, version in behind.items())
        views.append(
            f"galleries with vectors of another version: {listed}; they answer by these until they are re-embedded, by "
            f"the server's trigger or by ./convoy faces gallery re-embed --gallery {one_of(behind)}"
        )
    emit(document, views, as_json)
    ledger.note_told(move)


def one_of(galleries: dict[str, str]) -> str:
    """The name of the only one; NAME stands for several."""
    return next(iter(galleries)) if len(galleries) == 1 else "NAME"


def behind_now(model: str, family: str) -> dict[str, str]:
    """The galleries of faces that hold another version of the model than its champion, with theirs."""
    if family != "faces":
        return {}
    from tasks.gallerynames import galleries_behind  # only now, for SciPy takes its time

    return galleries_behind(model)
