"""The events that start a retraining: `prefect.yaml` has a trigger for each, under the deployments that it starts.

    convoy.data.changed    of convoy.dataset.NAME; told by the deployment `watch-data`, ./convoy data watch
    convoy.drift.found     of convoy.model.NAME; told where a model's predictions drift, twice running

Both carry the label `convoy.family`, by which a trigger finds its deployment, and the dataset in their payload.
"""

from typing import Any

from pipelines.notification import announce, model_resource
from pipelines.reporting import Reporter
from tasks.watching import Change, sentence

DATA_CHANGED, DRIFT_FOUND = "convoy.data.changed", "convoy.drift.found"
FAMILY_LABEL = "convoy.family"


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
    announce(DATA_CHANGED, resource, sentence(change, difference), payload, reporter)


def tell_drift(
    model: str, family: str, dataset: str, text: str, payload: dict[str, Any], reporter: Reporter
) -> None:
    """Tell that what a registered model is asked about has drifted from the dataset that it was trained on."""
    resource = {**model_resource(model), FAMILY_LABEL: family}
    whole = {"model": model, "family": family, "dataset": dataset, **payload}
    announce(DRIFT_FOUND, resource, text, whole, reporter)
