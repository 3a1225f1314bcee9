"""The flows that move the champion of a registered model by hand: promote, and rollback.

    ./convoy promote classifier-digits 2 --because "..."
    ./convoy rollback classifier-digits

do the same without a flow run. Each move is a record of the ledger (tasks.ledger), and an event for automations.
"""

from dataclasses import asdict
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from pipelines import environment
from pipelines.notification import notify
from pipelines.reporting import Reporter
from pipelines.steps import reporter_here
from tasks import ledger, restoring
from tasks.restoring import Belongings


@flow(name="promote", flow_run_name="promote-{model}-{version}", persist_result=False)
def promote(model: str, version: int, because: str, who: str = "") -> dict[str, Any]:
    """Make a version of a registered model the champion, without a gate; the champion of now becomes `previous`.

    Args:
        model: name of a registered model, such as classifier-digits (./convoy models list)
        version: its version
        because: why; it is kept in the ledger
        who: your name, for the ledger; empty: the user that the worker runs as
    """
    environment.prepare()
    move = ledger.promote(
        model, version, because=because, expected=ledger.aliases(model).get("champion"), who=who,
        key=str(flow_run.id),
    )  # fmt: skip
    return told(move)


@flow(name="rollback", flow_run_name="rollback-{model}", persist_result=False)
def rollback(model: str, because: str, to: int | None = None, who: str = "") -> dict[str, Any]:
    """Make the version that was champion before the champion again: weights, thresholds, preprocessing.

    Args:
        model: name of a registered model, such as classifier-digits (./convoy models list)
        because: why; it is kept in the ledger
        to: the version to go back to; empty: the one that the alias `previous` names
        who: your name, for the ledger; empty: the user that the worker runs as
    """
    environment.prepare()
    expected = ledger.aliases(model).get("champion")
    version = restoring.earlier_champion(model) if to is None else to
    move = ledger.rollback(model, version, because=because, expected=expected, who=who, key=str(flow_run.id))
    return told(move)


def told(move: ledger.Move) -> dict[str, Any]:
    """Tell of a move; returns it with what belongs to the version that is champion now."""
    belongs = restoring.belongings(move.model, move.after["champion"])
    reporter = reporter_here()
    reporter.note(tell(move, belongs, reporter))
    return {**asdict(move), "what": move.what, "restored": asdict(belongs)}


def tell(move: ledger.Move, belongs: Belongings, reporter: Reporter) -> str:
    """Tell automations and the webhook of a move; returns what they were told, in a line."""
    text = f"{move.model}: {move.what}, because: {move.because}; trained on {belongs.data}"
    payload = {"version": belongs.version, "because": move.because, "who": move.who}
    notify(f"convoy.{move.action}", move.model, belongs.family, text, payload, reporter)
    return text
