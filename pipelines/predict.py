"""The flow that predicts all files of a folder or bucket into one Parquet file (tasks.batchpredict).

    ./convoy predict models:/classifier-digits@champion photos/ --out predictions.parquet

What was done before a stop stays beside the file: the same flow, or the same command, goes on with it.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from prefect import flow

from pipelines import environment, steps
from pipelines.artifacts import publish_predictions
from pipelines.configuration import SectionForm
from pipelines.engines import start_ray
from pipelines.families import Executor
from pipelines.interruption import interruptible
from pipelines.parameters import section
from pipelines.reporting import Clock, Reporter, Status
from pipelines.training import exclusive
from tasks.batchpredict import (
    Done,
    Plan,
    PredictConfig,
    begin,
    begun,
    caller,
    carry_out,
    count_errors,
    finished,
    parts_folder,
)
from tasks.folders import Source, open_source, places_of, suffixes_of
from tasks.modelfile import load_card
from tasks.recordings import RecordConfig, Recorder
from tasks.resolution import Resolved, resolve

SECTION, RECORD_SECTION = "predict", "record"


@flow(name="predict", flow_run_name="predict-{model}", persist_result=False)
def predict_folder(
    model: str,
    source: str,
    out: str,
    executor: Executor = "ray",
    record: bool = False,
    changes: Annotated[dict[str, Any] | None, SectionForm(PredictConfig)] = None,
) -> dict[str, Any]:
    """Predict all files of a folder or bucket into one Parquet file.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, a run key, or a folder with a model.json
        source: a folder of the worker's machine, or s3://BUCKET/PREFIX
        out: the file to write, which ends in .parquet
        executor: ray, or in_process to predict inside the flow's process
        record: keep features of the files, and no picture, for ./convoy drift
        changes: how the files are cut into parts, where that differs from params.yaml
    """
    environment.prepare()
    reporter = steps.reporter_here()
    config = section(SECTION, PredictConfig, changes or {})
    target = require_target(out)
    files = open_source(source)
    plan = finished(target)
    if plan is not None:
        require_same(plan, model, files, target)
        reporter.note(f"{target} is done already, by {plan.model}")
        return summary_of(Done(plan, count_errors(target), plan.num_parts), target)
    if executor == "ray":
        start_ray()
    recorder = Recorder(section(RECORD_SECTION, RecordConfig, {})) if record else None
    with exclusive(parts_folder(target), "made"):
        plan, resolved = planned(model, files, target, config, reporter)
        done = predict_parts(target, plan, resolved, files, config, executor, recorder, reporter)
    summary = summary_of(done, target)
    publish_predictions(summary)
    return summary


def require_target(out: str) -> Path:
    """Where to write; raises ValueError for what is no name of a Parquet file."""
    target = Path(out).resolve()
    if target.suffix != ".parquet":
        raise ValueError(f"--out (={out}) must end in .parquet")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def require_same(plan: Plan, model: str, source: Source, target: Path) -> None:
    """Raise ValueError where a file was begun by another command."""
    for what, then, now in (("model", plan.asked, model), ("source", plan.source, source.shown)):
        if then != now:
            raise ValueError(
                f"{target} was begun with the {what} {then}, and this is {now}: give another --out, or remove it and "
                f"{parts_folder(target)}"
            )


@steps.step("list files")
def planned(
    model: str, source: Source, target: Path, config: PredictConfig, reporter: Reporter
) -> tuple[Plan, Resolved]:
    """The plan to go on with, or a new one, and its model: the version that the plan was made for."""
    plan = begun(target)
    if plan is not None:
        require_same(plan, model, source, target)
        resolved = resolve(plan.model)
        if resolved.sha256 != plan.model_sha256:
            raise ValueError(
                f"{plan.model} is not what {target} was begun with: remove {parts_folder(target)} to begin again"
            )
        reporter.note(f"going on with {target}, by {plan.model}")
        return plan, resolved
    resolved = resolve(model)
    places = places_of(source, suffixes_of(load_card(resolved.folder).family))
    return begin(target, resolved, source, places, config), resolved


@steps.step("predict files")
def predict_parts(
    target: Path, plan: Plan, resolved: Resolved, source: Source, config: PredictConfig, executor: Executor,
    recorder: Recorder | None, reporter: Reporter,
) -> Done:  # fmt: skip
    """Predict what is left, telling how far it is."""
    clock = Clock()

    def hear(done: int, total: int) -> None:
        reporter.show(Status("predict", done, total, clock.own_rate(done)))

    kept = "stopped: parts that are done are kept"
    with interruptible(executor, reporter.note, "the same command", kept):
        return carry_out(target, plan, resolved, source, caller(executor, resolved, config), hear, recorder)


def summary_of(done: Done, target: Path) -> dict[str, Any]:
    """What the command prints."""
    plan = asdict(done.plan)
    return {
        "out": str(target), "files": plan.pop("num_files"), "errors": done.num_errors, "parts": plan.pop("num_parts"),
        "parts_before": done.num_before, **plan,
    }  # fmt: skip
