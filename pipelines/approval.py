"""A person is asked whether the champion may change: on the command line, or by a form of the paused flow run.

Nobody answers: that is a no. Prefect ends a run whose pause runs out as Failed, so the pause is answered by us then.
"""

import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from prefect.flow_runs import pause_flow_run, resume_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import Field

POLL_S = 5
SPARE_S = 600  # longer than ours, Prefect's own limit never comes


@dataclass(frozen=True)
class Answer:
    """What a person said."""

    approved: bool
    who: str
    because: str


class ApprovalForm(RunInput):
    """The form of a paused retraining."""

    approve: bool = Field(False, description="let the challenger take the champion's place")
    because: str = Field("", description="why; it is kept in the ledger")
    who: str = Field("", description="your name; it is kept in the ledger")


Asker = Callable[[str], Answer]
_asker: ContextVar[Asker | None] = ContextVar("asker", default=None)


def set_asker(asker: Asker) -> None:
    """From here on, flows called from this thread ask by `asker`, which is given the evidence as Markdown."""
    _asker.set(asker)


def ask(evidence: str, timeout_s: float) -> Answer:
    """The answer of whoever is there: of the command line that runs this flow, else of the form in Prefect's UI."""
    asker = _asker.get()
    return asker(evidence) if asker is not None else ask_in_prefect(evidence, timeout_s)


def ask_in_prefect(evidence: str, timeout_s: float) -> Answer:
    """Pause the flow run until the form is sent, or for `timeout_s` seconds; then the answer is no."""
    late = f"nobody answered in {timeout_s / 3600:g} hours"
    key = flow_run.id
    refusal = {"approve": False, "because": late, "who": ""}
    timer = threading.Timer(timeout_s, resume_flow_run, args=(key,), kwargs={"run_input": refusal})
    timer.daemon = True
    timer.start()
    try:
        form = pause_flow_run(
            wait_for_input=ApprovalForm.with_initial_data(description=evidence, approve=False),
            timeout=int(timeout_s + SPARE_S),
            poll_interval=POLL_S,
        )
    finally:
        timer.cancel()
    who = form.who.strip() or "somebody in Prefect's UI"
    return Answer(form.approve, who, form.because.strip() or "no reason was given")
