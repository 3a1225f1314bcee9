"""What a run leaves on its page in Prefect's UI: a progress bar while it trains, and the result.

Prefect's own functions for this open a connection at each call and never close it; these keep one, and close it.
"""

import json
import time
from collections.abc import Callable
from logging import Logger, LoggerAdapter
from types import TracebackType
from typing import Any, Self, Union

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.logging import get_run_logger
from prefect.runtime import flow_run, task_run

from data.counting import counted
from data.findings import Findings, Verdict
from pipelines.adoption import listens
from tasks.intervals import interval_of, is_end, measured_on

RunLogger = Union[Logger, "LoggerAdapter[Logger]"]
UPDATE_EVERY_S = 5.0  # each update is a request to the server


class ProgressBar:
    """A progress bar of the current step. May be moved from any thread, by one at a time."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.client = get_client(sync_client=True)
        self.logger = get_run_logger()
        self.last_s = -UPDATE_EVERY_S

    def __enter__(self) -> Self:
        self.client.__enter__()
        self.id = self.client.create_artifact(artifact("progress", 0.0, self.description)).id
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.__exit__(kind, error, trace)

    def show(self, share: float) -> None:
        """Move it to `share` in [0, 1]. A server that is away does not stop the step."""
        if share < 1 and time.monotonic() - self.last_s < UPDATE_EVERY_S:
            return
        self.last_s = time.monotonic()
        moved = ArtifactUpdate(data=round(100 * share, 1))
        unless_away(
            self.client, self.logger, "the progress bar was not moved",
            lambda: self.client.update_artifact(self.id, moved),
        )  # fmt: skip


def unless_away(
    client: SyncPrefectClient, logger: RunLogger, missed: str, request: Callable[[], Any]
) -> None:
    """Make a request in the middle of a step, which a server that is away does not stop: `missed` is a warning."""
    # Prefect's client would try for a minute, and the step would wait
    if not listens(str(client.api_url)):
        return
    try:
        request()
    except httpx.HTTPError as error:
        logger.warning("%s: %s", missed, error)


def artifact(kind: str, data: Any, description: str, key: str = "") -> ArtifactCreate:
    """An artifact of the current run; a `key`, of a-z, 0-9, _ and -, gives it a history over runs."""
    values: dict[str, Any] = {"type": kind, "data": data, "description": description}
    values |= {"flow_run_id": flow_run.id, "task_run_id": task_run.id}
    return ArtifactCreate(**values, **({"key": key.replace("_", "-")} if key else {}))


def publish_artifact(kind: str, data: Any, description: str, key: str = "") -> None:
    """Leave an artifact on the run's page; an image's data is its address, which may be a data URI."""
    with get_client(sync_client=True) as client:
        client.create_artifact(artifact(kind, data, description, key))


def show_artifact(kind: str, data: Any, description: str, key: str = "") -> None:
    """As `publish_artifact`, while a step goes on: a server that is away does not stop that."""
    made = artifact(kind, data, description, key)
    with get_client(sync_client=True) as client:
        unless_away(
            client, get_run_logger(), f"the run's page does not have {description}",
            lambda: client.create_artifact(made),
        )  # fmt: skip


def publish_table(rows: list[dict[str, Any]], description: str, key: str = "") -> None:
    """Leave a table on the run's page."""
    publish_artifact("table", json.dumps(rows), description, key)


def publish_result(summary: dict[str, Any]) -> None:
    """Leave a run's summary on its page: the model, the test's metrics, and the way to the MLflow run."""
    url = summary["mlflow_url"]
    link = (
        f"[MLflow run]({url})" if url.startswith("http") else f"MLflow run `{summary['mlflow_run']}`: `{url}`"
    )
    model = f"`models:/{summary['model']}/{summary['version']}`" if summary["version"] else "not registered"
    whole = {name: value for name, value in summary["metrics"].items() if "." not in name}
    rows = "\n".join(
        f"| {name} | {value:.4g} | {interval_of(whole, name)} |"
        for name, value in whole.items()
        if not is_end(whole, name)
    )
    # of an ensemble it stands with its members
    early = f" Ended early {summary['ended_early']}." if summary.get("ended_early") else ""
    # not in what a retraining kept before it was told
    on = f"{measured_on(summary['dataset'], 'test', summary['view'])}\n\n" if "view" in summary else ""
    markdown = (
        f"**Model** {model} ({summary['alias'] or 'no alias'})\n\n{link}\n\n"
        f"Trained {summary['num_steps']:,} steps in {summary['train_time_s']:.1f} s, "
        f"{summary['images_per_s']:,.0f} images/s.{early}\n\n"
        f"{on}"
        f"| metric | value | 95% interval |\n| --- | ---: | --- |\n{rows}\n"
    )
    description = f"{summary['dataset']} by the recipe {summary['recipe']}"
    publish_artifact("markdown", markdown, description, f"{summary['family']}-{summary['dataset']}")


def publish_findings(findings: Findings, verdict: Verdict) -> None:
    """Leave what the checks of the dataset found on the run's page, as a table."""
    accepted = {finding.name for finding in verdict.accepted}
    rows = [
        {
            "severity": "accepted" if finding.name in accepted else finding.severity,
            "check": finding.name,
            "found": ": ".join(part for part in (finding.amount, finding.detail) if part),
            "meaning": finding.meaning,
            "to do": finding.remedy,
        }
        for finding in findings.findings
    ]
    stopped = counted(len(verdict.stopped_by), "error stops", "errors stop")
    description = f"{findings.name}: {stopped} training, {counted(len(rows), 'finding')}"
    publish_table(rows, description, f"checks-{findings.name}")


def publish_metrics(model: str, document: dict[str, Any]) -> None:
    """Leave what a test of a model found on its run's page, as a table."""
    rows = [{"metric": name, "value": f"{value:.4g}"} for name, value in document["metrics"].items()]
    notes = "; ".join(["", *document["notes"]])
    description = f"{model} on {document['dataset']}, {document['split']}{notes}"
    publish_table(rows, description, f"evaluation-{document['dataset']}")


def publish_freed(document: dict[str, Any]) -> None:
    """Leave what was freed, or would be, on the run's page, as a table."""
    done = "would be freed" if document["dry_run"] else "freed"
    publish_table(document["items"], f"{document['num_bytes'] / 1e6:,.1f} MB {done}", "maintain")


def publish_curve(summary: dict[str, Any]) -> None:
    """Leave a learning curve on its run's page, as a table."""
    description = f"{summary['dataset']} by the recipe {summary['recipe']}: accuracy on validation by mode"
    publish_table(summary["points"], description, f"curve-{summary['dataset']}")


def publish_units(summary: dict[str, Any]) -> None:
    """Leave what units answer to on the run's page, as a table; the gallery lies in the MLflow run."""
    rows = [
        {"layer": layer["name"], **{name: unit[name] for name in ("unit", "activation", "labels")}}
        for layer in summary["layers"]
        for unit in layer["units"]
    ]
    publish_table(rows, f"units of {summary['model']}; gallery: {summary['mlflow_url']}")


def publish_search(summary: dict[str, Any]) -> None:
    """Leave the trials of a search on its run's page, as a table."""
    description = f"{summary['dataset']} by the recipe {summary['recipe']}: trials by {summary['metric']}"
    rows = [{**row, **row["changes"]} for row in summary["trials"]]
    for row in rows:
        del row["changes"]
    publish_table(rows, description, f"search-{summary['family']}-{summary['dataset']}")


def publish_re_embedding(summary: dict[str, Any]) -> None:
    """Leave what a gallery was re-embedded from and to on the run's page, as a table."""
    rows = [{"what": name, "value": summary[name]} for name in ("before", "now", "num_pictures")]
    publish_table(rows, f"gallery {summary['gallery']}")


def publish_style(summary: dict[str, Any]) -> None:
    """Leave what a style transfer was made of, and what it came to, on its run's page, as a table."""
    rows = [
        {"what": name, "value": summary[name]} for name in ("content", "styles", "recipe", "num_iterations")
    ]
    rows += [{"what": f"{name} cost", "value": f"{value:.4g}"} for name, value in summary["costs"].items()]
    rows += [{"what": "MLflow run", "value": summary["mlflow_url"]}]
    publish_table(rows, f"stylize {summary['key']}", "stylize")


def publish_predictions(summary: dict[str, Any]) -> None:
    """Leave what was predicted on the run's page."""
    names = ("model", "source", "out", "files", "errors", "model_sha256", "dataset", "dataset_digest")
    rows = "\n".join(f"| {name} | {summary[name]} |" for name in names)
    publish_artifact(
        "markdown", f"| | |\n| --- | --- |\n{rows}\n", f"predictions of {summary['source']}", "predictions"
    )
