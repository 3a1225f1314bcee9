"""A person is asked whether the champion may change: on the command line, or by a form of the suspended flow run.

A run that waits has no process, and holds no place in a queue: hours may pass, and the platform may go down and up. The
form starts it again, and by its journal it goes on where it was. Nobody answers: that is a no, which a run of
`close-approval` gives, that is scheduled for then. Prefect would end the run as Failed.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import NotPausedError
from prefect.flow_runs import resume_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from pydantic import Field

from pipelines import environment

CLOSING = "close-approval/close-approval"  # flow and deployment
SPARE_S = 24 * 3600  # longer than ours, for a worker that is away: Prefect's own limit should never come


@dataclass(frozen=True)
class Answer:
    """What a person said."""

    approved: bool
    who: str
    because: str


class ApprovalForm(RunInput):
    """The form of a retraining that waits."""

    approve: bool = Field(False, description="let the challenger take the champion's place")
    because: str = Field("", description="why; it is kept in the ledger")
    who: str = Field("", description="your name; it is kept in the ledger")


Asker = Callable[[str], Answer]
_asker: ContextVar[Asker | None] = ContextVar("asker", default=None)


def set_asker(asker: Asker) -> None:
    """From here on, flows called from this thread ask by `asker`, which is given the evidence as Markdown."""
    _asker.set(asker)


def require_somebody() -> None:
    """Raise ValueError where nobody could be asked: Prefect can only start again what a deployment describes."""
    if _asker.get() is None and not deployment.id:
        raise ValueError(
            "nobody can be asked here: this flow run is of no deployment, so that no form could start it again; run "
            "./convoy retrain or the deployment, or give approval none"
        )


def ask(evidence: str, timeout_s: float) -> Answer:
    """The answer of whoever is there: of the command line that runs this flow, else of the form in Prefect's UI."""
    asker = _asker.get()
    return asker(evidence) if asker is not None else ask_in_prefect(evidence, timeout_s)


def ask_in_prefect(evidence: str, timeout_s: float) -> Answer:
    """The answer of the form; where it was not sent yet, the flow run ends here, suspended, for `timeout_s` seconds.

    To be called in the same place when the run is started again.
    """
    closing = schedule_closing(str(flow_run.id), timeout_s)
    form = suspend_flow_run(
        wait_for_input=ApprovalForm.with_initial_data(description=evidence),
        timeout=int(timeout_s + SPARE_S),
    )
    call_off(closing)
    who = form.who.strip() or "somebody in Prefect's UI"
    return Answer(form.approve, who, form.because.strip() or "no reason was given")


def schedule_closing(run: str, timeout_s: float) -> UUID:
    """Have the approval of a run closed after `timeout_s` seconds; the flow run that will, one for each run."""
    made: Any = run_deployment(
        CLOSING, parameters={"run": run, "hours": timeout_s / 3600}, timeout=0, as_subflow=False,
        scheduled_time=datetime.now(UTC) + timedelta(seconds=timeout_s), idempotency_key=f"{CLOSING} {run}",
    )  # fmt: skip
    return UUID(str(made.id))


def call_off(closing: UUID) -> None:
    """Take back the flow run that would close an approval, unless it is that which gave the answer."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(closing).state
        if state is not None and state.is_scheduled():
            client.delete_flow_run(closing)


@flow(name="close-approval", flow_run_name="close-approval-{run}", persist_result=False)
def close_approval(run: str, hours: float) -> dict[str, Any]:
    """Answer no in place of whoever was asked to approve a retraining. Retrainings that ask schedule this themselves.

    Args:
        run: id of the retraining's flow run
        hours: how long it has waited
    """
    environment.prepare()
    refusal = {"approve": False, "because": f"nobody answered in {hours:g} hours", "who": "whoever was asked"}
    try:
        resume_flow_run(UUID(run), run_input=refusal)
    except NotPausedError:
        return {"run": run, "closed": False}  # somebody has answered, or it was cancelled
    return {"run": run, "closed": True}
