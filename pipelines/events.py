"""The events that start something: `prefect.yaml` has a trigger for each, under the deployments that it starts.

    convoy.data.changed    of convoy.dataset.NAME; told by the deployment `watch-data`, ./convoy data watch
    convoy.drift.found     of convoy.model.NAME; told where a model's predictions drift, twice running

start a retraining: the dataset is in their payload. What a retraining came to, `convoy.retrain.promoted` say, and a
move by hand, `convoy.promote` and `convoy.rollback`, are of convoy.model.NAME too: galleries of faces follow these, and
`model` is in their payload. All carry the label `convoy.family`, by which a trigger finds its deployment.
"""

from typing import Any

from pipelines.notification import FAMILY_LABEL, announce, model_resource
from pipelines.reporting import Reporter
from tasks.watching import Change, sentence

DATA_CHANGED, DRIFT_FOUND = "convoy.data.changed", "convoy.drift.found"


def tell_change(change: Change, difference: dict[str, Any], reporter: Reporter) -> None:
    """Tell that a dataset has another version; `difference` in numbers, {} where it is not known."""
    resource = {
        "prefect.resource.id": f"convoy.dataset.{change.name}", "prefect.resource.name": change.name,
        FAMILY_LABEL: change.family,
    }  # fmt: skip
    payload = {
        "dataset": change.name, "family": change.family, "before": change.before, "after": change.after,
        "difference": difference,
    }  # fmt: skip
    text = sentence(change, difference)
    reporter.note(text)
    announce(DATA_CHANGED, resource, text, payload, reporter)


def tell_drift(
    model: str, family: str, dataset: str, text: str, payload: dict[str, Any], reporter: Reporter
) -> None:
    """Tell that what a registered model is asked about has drifted from the dataset that it was trained on."""
    whole = {"model": model, "family": family, "dataset": dataset, **payload}
    reporter.note(text)
    announce(DRIFT_FOUND, model_resource(model, family), text, whole, reporter)
