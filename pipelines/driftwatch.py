"""The flow that looks for drift at what a registered model is asked, and tells of it, so that a retraining may begin.

    ./convoy drift models:/classifier-digits@champion     looks once, and tells nobody

`watch-drift` in prefect.yaml has the schedule.
"""

from typing import Annotated, Any

from prefect import flow

from pipelines import environment, steps
from pipelines.configuration import SectionForm
from pipelines.events import tell_drift
from pipelines.parameters import section
from tasks.drift import DriftConfig
from tasks.driftlooks import TooFew, drift_document
from tasks.modelfile import load_card
from tasks.resolution import resolve


@flow(name="watch-drift", flow_run_name="watch-drift-{model}", persist_result=False)
def watch_drift(
    model: str, changes: Annotated[dict[str, Any] | None, SectionForm(DriftConfig)] = None
) -> dict[str, Any]:
    """Compare what a model was asked since the last look with its dataset; tell of drift that is found twice running.

    Args:
        model: a registered model, models:/NAME@ALIAS, whose predictions are recorded
        changes: what differs from the section `drift` of params.yaml; an empty field stays as it says
    """
    environment.prepare()
    config = section("drift", DriftConfig, changes or {})
    reporter = steps.reporter_here()
    resolved = resolve(model)
    try:
        document = drift_document(resolved, config)
    except TooFew as error:  # the usual case on a schedule, and no fault
        reporter.note(str(error))
        return {"model": model, "looked": False, "why": str(error)}
    if document["twice_running"]:
        card, effect = load_card(resolved.folder), document["looks"][-1]["effect"]
        text = f"what {resolved.exact} is asked has drifted from {card.dataset}, twice running (effect {effect:.3f})"
        tell_drift(resolved.name, card.family, card.dataset, text, document, reporter)
    return {"looked": True, **document}
