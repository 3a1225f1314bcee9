"""What is known of registered models: the rows of a list, and all of one model."""

from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tasks.modelfile import load_card
from tasks.modelstore import find_aliases, find_versions, version_at
from tasks.recordstore import aliases_of, connect
from tasks.registry import resolve_model, run_url

MEASURES = ("accuracy", "ap", "nme")  # of a test: the first that a model has is what lists of models show


def list_models() -> list[dict[str, Any]]:
    """Every registered version: name, version, aliases, accuracy, measure, dataset, created, run_id.

    `measure` is how good it was on the test split, as `ap 0.593`: "" if that is not known; `accuracy` is None then, and
    of models that have none.
    """
    client = connect()
    return [
        _row(client, version, aliases.get(int(version.version), []))
        for name, aliases in sorted(find_aliases(client).items())
        for version in find_versions(client, f"name = '{name}'")
    ]


def _row(client: MlflowClient, version: ModelVersion, aliases: list[str]) -> dict[str, Any]:
    run = _run_of(client, version)
    metrics = run.data.metrics if run else {}
    tested = [name for name in MEASURES if f"test.{name}" in metrics]
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return {
        "name": version.name,
        "version": int(version.version),
        "aliases": aliases,
        "accuracy": metrics.get("test.accuracy"),
        "measure": f"{tested[0]} {metrics[f'test.{tested[0]}']:.4g}" if tested else "",
        "dataset": version.tags.get("convoy.dataset", ""),
        "created": created.isoformat(timespec="seconds"),
        "run_id": version.run_id or "",
    }


def _run_of(client: MlflowClient, version: ModelVersion) -> Run | None:
    """The run that made a version; None if it has none, or none any more."""
    try:
        return client.get_run(version.run_id) if version.run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def champion_beside(name: str, version: int) -> dict[str, Any] | None:
    """The champion of a model beside another version: `version`, `metric`, `value`; None where that is the champion.

    `metric` is the first of MEASURES that both were tested in, and `value` the champion's; None where there is
    none, or where it is not known that both were tested on the same data.
    """
    champion = aliases_of(name).get("champion")
    if champion in (None, version):
        return None
    client = connect()
    both = [version_at(client, f"models:/{name}/{number}") for number in (champion, version)]
    runs = [_run_of(client, each) for each in both]
    metrics, others = ({} if run is None else run.data.metrics for run in runs)
    digest, other = (each.tags.get("dvc.digest") for each in both)
    shared = [metric for metric in MEASURES if f"test.{metric}" in metrics and f"test.{metric}" in others]
    metric = shared[0] if shared and digest and digest == other else None
    return {"version": champion, "metric": metric, "value": metrics[f"test.{metric}"] if metric else None}


def show_model(uri: str) -> dict[str, Any]:
    """All that is known of a model: its folder and card; if it is registered, its row, tags, metrics, parameters."""
    folder = resolve_model(uri)
    shown = {"uri": uri, "folder": str(folder), "card": load_card(folder).model_dump(mode="json")}
    if not uri.startswith("models:/"):
        return shown
    client = connect()
    version = version_at(client, uri)
    run = _run_of(client, version)
    return {
        **shown,
        **_row(client, version, find_aliases(client).get(version.name, {}).get(int(version.version), [])),
        "run_url": run_url(version.run_id) if run else "",
        "tags": dict(version.tags),
        "metrics": dict(run.data.metrics) if run else {},
        "parameters": dict(run.data.params) if run else {},
    }
