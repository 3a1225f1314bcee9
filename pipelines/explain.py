"""The flow that shows what units of a network see: patches of a dataset, synthesised pictures, a gallery of both.

    ./convoy explain units models:/classifier-digits@champion --layer conv1 conv2

The run key names the flow run, the folder below `runs/` and the MLflow run, which keeps the gallery (units.html),
contact sheets of each layer, units.json, and patches.csv with the nine strongest patches of every unit. What was asked
for, and what was found so far, lie in that folder: a run that was stopped goes on.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run

from data.dataset import Split
from data.files import write_whole
from pipelines import environment, steps
from pipelines.artifacts import publish_units
from pipelines.configuration import SectionForm
from pipelines.engines import start_ray
from pipelines.families import Executor
from pipelines.interruption import interruptible, resume_command
from pipelines.parameters import flatten, section
from pipelines.reporting import Reporter, Status, progress_of
from pipelines.runfolders import run_folder
from pipelines.training import end_badly, exclusive
from pipelines.unitrequest import (
    JOB_FILE,
    ExplainConfig,
    Request,
    UnitsJob,
    keep_job,
    partners_of,
    read_job,
    request_of,
)
from tasks import registry
from tasks.curvedata import Place, everywhere, here
from tasks.lineage import Lineage, data_state, git_state, params_sha256
from tasks.paths import ROOT
from tasks.result import require_same_beginning
from tasks.unitpage import LayerView, UnitView, field_text, write_gallery, write_sheets
from tasks.unitstate import Seen
from tasks.unitviews import look_at_split, patches_of, rows_of, synthesise_each

EXPERIMENT = "convoy/explanations"
SECTION = "explain"
SEEN_FILE, SYNTHESISED = "seen.pt", "synthesised"


@flow(name="explain-units", flow_run_name="explain-units-{model}", persist_result=False)
def explain_units(
    model: str = "",
    layers: tuple[str, ...] = (),
    dataset: str | None = None,
    split: Split = "test",
    units: tuple[int, ...] = (),
    against: str | None = None,
    synthesis: bool = True,
    network: str | None = None,
    px: int | None = None,
    class_names: tuple[str, ...] = (),
    changes: Annotated[dict[str, Any] | None, SectionForm(ExplainConfig)] = None,
    executor: Executor = "ray",
    resume: str | None = None,
) -> dict[str, Any]:
    """Show the patches of a dataset that units answer to most, and pictures synthesised for them.

    Args:
        model: a trained classifier, or bare weights as transfer.weights takes them
        layers: stages or modules of the network
        dataset: whose pictures are looked at, of family classification; otherwise the one that the model was trained
            on, where it is here; without any, pictures are synthesised alone
        split: which pictures
        units: units to show; otherwise the first ones
        against: another version of the model, to show side by side
        synthesis: whether pictures are synthesised
        network: of bare weights, the network that they are of
        px: of bare weights, side of the pictures
        class_names: names of the classes, in their order
        changes: what differs from params.yaml, section explain
        executor: ray, or in_process
        resume: key of a run that was stopped, to go on with it; what was asked of that one counts then
    """
    environment.prepare()
    if executor == "ray":
        start_ray()
    key = resume or str(flow_run.id)
    folder = run_folder(key)
    reporter = steps.reporter_here()
    with exclusive(folder):
        if resume or (folder / JOB_FILE).is_file():
            job = read_job(folder)
        else:
            config = section(SECTION, ExplainConfig, changes or {})
            job = UnitsJob(
                model, layers, dataset, split, units, against, synthesis, network, px, class_names, config
            )
        request = request_of(job)
        keep_job(job, folder)
        going_on = resume_command("explain units", key, executor)
        reporter.note(f"run {key}: units of {' beside '.join(job.models)}; if cut off: {going_on}")
        if request.note:
            reporter.note(f"note: {request.note}")
        return run_steps(request, key, folder, reporter, executor, going_on)


def run_steps(
    request: Request, key: str, folder: Path, reporter: Reporter, executor: Executor, going_on: str
) -> dict[str, Any]:
    """The steps in their order, inside the record that MLflow keeps of them; returns the summary."""
    run_id = ""
    try:
        lineage = lineage_of(request, key)
        require_same_beginning(folder, *lineage.beginning)
        run_id = open_record(request, lineage)
        stopped = "stopped: what was found is kept"
        with interruptible(executor, reporter.note, going_on, stopped):
            where = everywhere() if executor == "ray" else here()
            seen = look(request, where, folder / SEEN_FILE, reporter) if request.dataset else None
            pictures = synthesise(request, seen, where, folder / SYNTHESISED, reporter)
        summary = keep(request, seen, pictures, key, folder, run_id, lineage)
        registry.finish_run(run_id, "FINISHED")
    except BaseException as error:
        end_badly(run_id, error)
        raise
    publish_units(summary)
    return summary


def lineage_of(request: Request, key: str) -> Lineage:
    """Which code and data the gallery is made of."""
    commit, dirty, git_problem = git_state(ROOT)
    digest, dvc_problem = data_state(request.dataset.path) if request.dataset else ("", "")
    return Lineage(
        key=key, git_commit=commit, git_dirty=dirty, dvc_digest=digest,
        params_sha256=params_sha256(request.config), seed=request.config.synthesis.seed,
        prefect_flow_run_id=key, weights_source=request.subjects[0].source,
        weights_sha256=" ".join(subject.sha256 for subject in request.subjects),
        problems=tuple(problem for problem in (git_problem, dvc_problem) if problem),
    )  # fmt: skip


@steps.step("open MLflow run")
def open_record(request: Request, lineage: Lineage) -> str:
    """Start the gallery's record; returns its id."""
    data, subject = request.dataset, request.subjects[0]
    asked = {
        "model": subject.source,
        "against": request.names[1] if len(request.names) > 1 else "",
        "architecture": subject.architecture,
        "layers": list(request.layers[0]),
        "split": request.split if data else "",
    }
    return registry.start_run(
        key=lineage.key,
        experiment=EXPERIMENT,
        name=f"{data.info.name if data else 'synthesis'}-{subject.architecture}-{subject.sha256[:8]}",
        tags=lineage.tags(),
        parameters={**asked, **flatten(request.config.model_dump(mode="json"), f"{SECTION}.")},
        dataset=data,
        digest=lineage.dvc_digest,
    )


@steps.step("look at pictures")
def look(request: Request, where: Place, file: Path, reporter: Reporter) -> Seen:
    """The strongest patches of all units of the layers; `file` keeps them while they are found."""
    assert request.dataset is not None
    hear = progress_of(reporter, "look")
    return look_at_split(request.dataset, request.split, request.subjects, request.layers, where, file, hear)


@steps.step("synthesise")
def synthesise(
    request: Request, seen: Seen | None, where: Place, folder: Path, reporter: Reporter
) -> list[dict[int, Any]]:
    """Pictures for the shown units: of each network, of each layer in its order; `folder` keeps those done."""
    partners = partners_of(request, seen)
    wanted = []
    for place, (subject, layers) in enumerate(zip(request.subjects, request.layers, strict=True)):
        for name, layer in layers.items():
            units = request.units[name]
            own = units if place == 0 else sorted({partners[name][unit][0] for unit in units})
            wanted.append((subject, layer, own))
    if not request.synthesis:
        return [{} for _ in wanted]

    def hear(done: int, total: int) -> None:
        reporter.show(Status("synthesise", done, total, None))

    return synthesise_each(wanted, request.config.synthesis, where, folder, hear)


def views_of(request: Request, seen: Seen | None, pictures: list[dict[int, Any]]) -> list[LayerView]:
    """What is shown of each layer."""
    partners = partners_of(request, seen)
    num = len(request.layers[0])
    views = []
    for number, (name, layer) in enumerate(request.layers[0].items()):
        columns: list[list[UnitView]] = []
        for place, subject in enumerate(request.subjects):
            beside = partners.get(name, {}) if place else {}
            shown = [beside.get(unit, (unit, None)) for unit in request.units[name]]
            units = [unit for unit, _ in shown]
            own = request.layers[place][name]
            patches: dict[int, Any] = {}
            if request.dataset is not None and seen is not None:
                tops = seen.tops[place][name]
                patches = patches_of(request.dataset, request.split, subject, own, tops, units)
            made = pictures[place * num + number]
            columns.append(
                [UnitView(unit, tuple(patches.get(unit, ())), made.get(unit), value) for unit, value in shown]
            )
        views.append(LayerView(request.called[name], layer, tuple(zip(*columns, strict=True))))
    return views


@steps.step("keep gallery")
def keep(
    request: Request, seen: Seen | None, pictures: list[dict[int, Any]], key: str, folder: Path, run_id: str,
    lineage: Lineage,
) -> dict[str, Any]:  # fmt: skip
    """Write the gallery's files, log them, and return the summary that the command prints."""
    views = views_of(request, seen, pictures)
    data, names = request.dataset, request.names
    of = f", {data.info.name} {request.split}" if data else ""
    what = f"{' beside '.join(names)} ({request.subjects[0].architecture}{of})"
    notes = [problem for problem in lineage.problems if data] + ([request.note] if request.note else [])
    files = [folder / "units.html"]
    write_gallery(files[0], views, short_names(names), what)
    for view in views:
        files += write_sheets(folder, view, short_names(names), what)
    if seen is not None:
        files.append(write_patches(folder / "patches.csv", request, seen))
    document = {
        "model": names[0], "against": names[1] if len(names) > 1 else None,
        "dataset": data.info.name if data else None, "split": request.split if data else None,
        "num_images": data.info.num_images(request.split) if data else 0,
        "layers": [layer_document(view) for view in views],
    }  # fmt: skip
    files.append(folder / "units.json")
    write_whole(files[-1], json.dumps(document, indent=2) + "\n")
    for file in files:
        registry.log_folder(run_id, file, "units")
    record = {"mlflow_run": run_id, "mlflow_url": registry.run_url(run_id)}
    return {
        "key": key, "folder": str(folder), "files": [file.name for file in files], **document, "notes": notes,
        **record,
    }  # fmt: skip


def short_names(names: Sequence[str]) -> list[str]:
    """The models as a caption has room for them."""
    return [
        name.removeprefix("models:/") if name.startswith("models:/") else Path(name).name for name in names
    ]


def write_patches(file: Path, request: Request, seen: Seen) -> Path:
    """The strongest patches of every unit as a table."""
    assert request.dataset is not None
    text = io.StringIO(newline="")
    writer: csv.DictWriter[str] | None = None
    for subject, tops, layers in zip(request.subjects, seen.tops, request.layers, strict=True):
        want = subject.preprocessing
        for layer in layers.values():
            which = {"model": subject.source, "layer": request.called[layer.name], "module": layer.name}
            for row in rows_of(request.dataset, request.split, want, layer, tops[layer.name]):
                if writer is None:
                    writer = csv.DictWriter(text, [*which, *row])
                    writer.writeheader()
                writer.writerow({**which, **row})
    write_whole(file, text.getvalue())
    return file


def layer_document(view: LayerView) -> dict[str, Any]:
    """A layer and its shown units as plain values."""
    units = []
    for own, *other in view.units:
        row: dict[str, Any] = {
            "unit": own.unit,
            "activation": own.patches[0].activation if own.patches else None,
            "labels": ", ".join(f"{label} ×{num}" for label, num in own.labels()),
        }
        if other:
            value = other[0].correlation
            row["against"] = {
                "unit": other[0].unit, "correlation": None if value is None else round(value, 2)
            }  # fmt: skip
        units.append(row)
    layer = view.layer
    return {
        "name": view.name, "module": layer.name, "title": view.title, "shape": layer.shape, "text": field_text(layer),
        "field": None if layer.widest is None else asdict(layer.widest), "units": units,
    }  # fmt: skip
