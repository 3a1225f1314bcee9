"""The flows of style transfer: one picture by optimisation (tasks.stylize), and a grid of them (tasks.stylegrid).

    ./convoy stylize content.jpg style.jpg --out picture.png
    ./convoy stylize content.jpg style.jpg --grid --out grid.png

The run key names the flow run, the folder below `runs/` and the MLflow run. The pictures and the parameters are copied
to that folder before anything else: a run that was stopped goes on with its own, to the same bits.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run

from data.files import write_whole
from data.samples import read_photo
from pipelines import environment, steps
from pipelines.artifacts import ProgressBar, publish_artifact, publish_style, show_artifact
from pipelines.configuration import RecipeForm, SectionForm
from pipelines.course import Course
from pipelines.engines import start_ray
from pipelines.interruption import interruptible, resume_command
from pipelines.parameters import AUTO, choose_recipe, flatten, merge, recipes, section
from pipelines.reporting import Reporter, Status
from pipelines.runfolders import BEGUN, begun, run_folder
from pipelines.training import end_badly, exclusive
from tasks import registry
from tasks.featurenet import StyleNet
from tasks.lineage import Lineage, git_state, params_sha256
from tasks.paths import ROOT
from tasks.result import require_same_beginning
from tasks.styleconfig import StylizeConfig
from tasks.stylegrid import Cell, GridConfig, cells_of, render_grid
from tasks.stylenet import read_style_net
from tasks.stylepictures import Pictures, data_uri, read_pictures
from tasks.stylize import PICTURES, RESULT, Step, Stylized, load_state, stylize

SECTION, GRID_SECTION, JOB_FILE, INPUTS = "stylize", "stylize_grid", BEGUN["style transfer"], "inputs"
EXPERIMENT = "convoy/style"
LOG_EVERY = 5  # iterations between two points of MLflow's charts


@dataclass(frozen=True)
class StyleJob:
    """What a person asked for, complete; names of pictures as they gave them."""

    content: str
    styles: tuple[str, ...]
    weights: tuple[float, ...]
    masks: tuple[str, ...]
    recipe: str
    config: StylizeConfig
    grid: GridConfig | None = None


@flow(name="stylize", flow_run_name="stylize-{recipe}", persist_result=False)
def stylize_picture(
    content: str = "",
    styles: Sequence[str] = (),
    weights: Sequence[float] = (),
    masks: Sequence[str] = (),
    recipe: Annotated[str, RecipeForm(SECTION)] = AUTO,
    changes: Annotated[dict[str, Any] | None, SectionForm(StylizeConfig)] = None,
    grid: dict[str, Any] | None = None,
    resume: str | None = None,
) -> dict[str, Any]:
    """Render a picture in the style of others, by optimisation; or a grid of such pictures.

    Args:
        content: a picture's file, one of scikit-image's as skimage:NAME, or one drawn as convoy:NAME
        styles: one or more pictures, likewise
        weights: how much each style counts; none: all the same
        masks: a picture for each style, white on the content where the style is wanted; none: everywhere
        recipe: parameters by name; auto: `default`
        changes: parameters that differ from the recipe
        grid: what a grid varies, where it differs from params.yaml; {} for a grid as it stands there; none: one picture
        resume: key of a run that was stopped, to go on with it; its own parameters and pictures count then
    """
    environment.prepare()
    key = resume or str(flow_run.id)
    folder = run_folder(key)
    reporter = steps.reporter_here()
    with exclusive(folder):
        begun_before = resume is not None or (folder / JOB_FILE).is_file()
        job = (
            read_job(folder)
            if begun_before
            else job_of(content, styles, weights, masks, recipe, changes or {}, grid)
        )
        net = resolve_net(job)
        if not begun_before:  # what is refused until here is no run that could go on
            keep_job(job, folder)
        if job.grid is not None:
            start_ray()
        reporter.note(f"run {key}: {job.content} by recipe {job.recipe}; if cut off: {going_on(key)}")
        return run_steps(job, net, key, folder, reporter)


def going_on(key: str) -> str:
    """What a person types to go on."""
    return resume_command("stylize", key, "ray")


def job_of(
    content: str, styles: Sequence[str], weights: Sequence[float], masks: Sequence[str], recipe: str,
    changes: dict[str, Any], grid: dict[str, Any] | None,
) -> StyleJob:  # fmt: skip
    """The complete parameters; raises ValueError for those that do not fit."""
    name = choose_recipe(SECTION, "", recipe)
    config = StylizeConfig.parse(merge(recipes(SECTION)[name], changes), f"{SECTION}.{name}")
    varied = None if grid is None else section(GRID_SECTION, GridConfig, grid)
    if varied is not None:
        cells_of(varied, config)
    return StyleJob(content, tuple(styles), tuple(weights), tuple(masks), name, config, varied)


def keep_job(job: StyleJob, folder: Path) -> None:
    """Put the pictures and, last, the parameters into a run's folder; raises what reading them raises."""
    read_pictures(job.content, job.styles, job.weights, job.masks)
    inputs = folder / INPUTS
    inputs.mkdir(parents=True, exist_ok=True)
    for name, photo in named_inputs(job).items():
        (inputs / name).write_bytes(read_photo(photo))
    values = {
        **asdict(job),
        "config": job.config.model_dump(mode="json"),
        "grid": None if job.grid is None else job.grid.model_dump(mode="json"),
    }
    write_whole(folder / JOB_FILE, json.dumps(values, indent=2) + "\n")


def named_inputs(job: StyleJob) -> dict[str, str]:
    """The pictures of a job, by the names they have in its folder."""
    styles = {f"style-{i}": style for i, style in enumerate(job.styles)}
    masks = {f"mask-{i}": mask for i, mask in enumerate(job.masks)}
    return {"content": job.content, **styles, **masks}


def read_job(folder: Path) -> StyleJob:
    """The job of a run that was started before; raises ValueError if there is none in `folder`."""
    file = folder / JOB_FILE
    values = begun(folder, "style transfer")
    return StyleJob(
        values["content"], tuple(values["styles"]), tuple(values["weights"]), tuple(values["masks"]), values["recipe"],
        StylizeConfig.parse(values["config"], str(file)),
        None if values["grid"] is None else GridConfig.parse(values["grid"], str(file)),
    )  # fmt: skip


def run_steps(job: StyleJob, net: StyleNet, key: str, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """The steps in their order, inside the record that MLflow keeps of them; returns the summary."""
    run_id = ""
    try:
        lineage = lineage_of(job, net, key)
        require_same_beginning(folder, *lineage.beginning)
        pictures = open_pictures(job, folder)
        run_id = open_record(job, lineage, folder)
        if job.grid is None:
            result = render_picture(job, pictures, net, key, folder, run_id, reporter)
            summary = keep(job, key, folder, run_id, result)
        else:
            sheet = render_cells(job, pictures, net, key, folder, run_id, reporter)
            summary = {**about(job, key, folder, run_id), "picture": str(sheet), "cells": len_cells(job.grid)}
        registry.finish_run(run_id, "FINISHED")
    except BaseException as error:
        end_badly(run_id, error)
        raise
    return summary


@steps.step("resolve feature net")
def resolve_net(job: StyleJob) -> StyleNet:
    """The network by whose features pictures are compared, made once to see that it has the layers."""
    net = read_style_net(job.config.net, registry.resolve_model)
    net.build(job.config.cost.weights().layers, job.config.seed)
    return net


def open_pictures(job: StyleJob, folder: Path) -> Pictures:
    """The pictures as they were when the run began."""
    inputs = folder / INPUTS
    styles = [str(inputs / f"style-{i}") for i in range(len(job.styles))]
    masks = [str(inputs / f"mask-{i}") for i in range(len(job.masks))]
    return read_pictures(str(inputs / "content"), styles, job.weights, masks)


def lineage_of(job: StyleJob, net: StyleNet, key: str) -> Lineage:
    """Which code and which network's weights the picture is made by; it has pictures, and no dataset."""
    commit, dirty, problem = git_state(ROOT)
    return Lineage(
        key=key, git_commit=commit, git_dirty=dirty, dvc_digest="", params_sha256=params_sha256(job.config),
        seed=job.config.seed, prefect_flow_run_id=str(flow_run.id), weights_source=job.config.net.weights,
        weights_sha256=net.sha256, problems=(problem,) if problem else (),
    )  # fmt: skip


@steps.step("open MLflow run")
def open_record(job: StyleJob, lineage: Lineage, folder: Path) -> str:
    """Start the run's record, or go on with it; returns its id."""
    hashes = {
        f"{name}.sha256": hashlib.sha256((folder / INPUTS / name).read_bytes()).hexdigest()
        for name in named_inputs(job)
    }
    own = {} if job.grid is None else {f"grid.{n}": v for n, v in job.grid.model_dump(mode="json").items()}
    parts = [job.content, *job.styles]
    return registry.start_run(
        key=lineage.key,
        experiment=EXPERIMENT,
        name="-".join([*(Path(part).stem.rpartition(":")[2] for part in parts), job.config.net.name]),
        tags={**lineage.tags(), **hashes},
        parameters={
            "content": job.content, "styles": list(job.styles), "weights": list(job.weights),
            "masks": list(job.masks), **flatten(job.config.model_dump(mode="json")), **own,
        },
    )  # fmt: skip


@steps.step("render picture")
def render_picture(
    job: StyleJob, pictures: Pictures, net: StyleNet, key: str, folder: Path, run_id: str, reporter: Reporter
) -> Stylized:
    """Change the picture until it is done, telling the console or log, MLflow and Prefect how it looks."""
    from tasks.stylereport import write_curve  # only now: matplotlib takes half a second

    total = job.config.num_iterations
    bar, course = ProgressBar(f"rendering {job.content}"), Course(run_id, again=True, mark="total")
    began, here, steps_so_far = time.perf_counter(), 0, load_state(folder).steps

    def hear(step: Step, file: Path | None) -> None:
        nonlocal here
        here, done = here + 1, step.iteration + 1
        steps_so_far.append(step)
        told = (
            f"J {step.total:.4g} (content {step.content:.3g}, style {step.style:.3g}) at {step.longer_px} px"
        )
        reporter.show(
            Status("stylize", done, total, here / (time.perf_counter() - began), told, unit="iterations")
        )
        if done % LOG_EVERY == 0 or done == total:
            parts = {"content": step.content, "style": step.style, "variation": step.variation}
            course.hear(done, {**parts, "total": step.total, "iteration_s": step.time_s})
        if file is not None:
            registry.show_folder(run_id, folder / PICTURES, PICTURES)
            when = f"after {done} of {total} iterations"
            show_artifact("image", data_uri(file), when, "stylize-picture")
            curve = write_curve(folder, steps_so_far, job.config.cost, curve_text(job))
            show_artifact("image", data_uri(curve), f"the parts of J {when}", "stylize-costs")
        bar.show(done / total)

    with bar, interruptible("in_process", reporter.note, going_on(key)) as stop:
        stop.under_way = True
        result = stylize(job.config, pictures, net, folder, hear, stop.asked.is_set)
    course.end()
    return result


@steps.step("render grid")
def render_cells(
    job: StyleJob, pictures: Pictures, net: StyleNet, key: str, folder: Path, run_id: str, reporter: Reporter
) -> Path:
    """Render what is left of the grid's pictures on Ray, and the contact sheet."""
    assert job.grid is not None

    def hear(done: int, total: int, cell: Cell | None) -> None:
        reporter.show(Status("grid", done, total, None, cell.name if cell else ""))

    stopped = "stopped: pictures that were done are kept"
    with interruptible("ray", reporter.note, going_on(key), stopped):
        sheet = render_grid(job.config, job.grid, pictures, net, folder, hear)
    registry.log_folder(run_id, sheet, "grid")
    publish_artifact("image", data_uri(sheet), f"{job.content}: β/α by layers and seeds", "stylize-grid")
    return sheet


@steps.step("keep picture")
def keep(job: StyleJob, key: str, folder: Path, run_id: str, result: Stylized) -> dict[str, Any]:
    """Log the picture, its costs and their curve; the summary that the command prints."""
    from tasks.stylereport import write_curve  # only now: matplotlib takes half a second

    curve = write_curve(folder, result.steps, job.config.cost, curve_text(job))
    if (folder / PICTURES).is_dir():  # MLflow may have been away when the last ones were kept
        registry.log_missing(run_id, folder / PICTURES, PICTURES)
    for file in (folder / RESULT, folder / "costs.csv", curve):
        registry.log_folder(run_id, file, "style")
    registry.log_metrics(run_id, {f"final.{name}": value for name, value in result.final.items()})
    publish_artifact("image", data_uri(folder / RESULT), f"{job.content}, done", "stylize-picture")
    publish_artifact("image", data_uri(curve), "the parts of J", "stylize-costs")
    render_s = sum(step.time_s for step in result.steps)
    summary = {
        **about(job, key, folder, run_id), "picture": str(folder / RESULT), "costs": result.final,
        "num_iterations": len(result.steps), "render_s": render_s,
    }  # fmt: skip
    publish_style(summary)
    return summary


def curve_text(job: StyleJob) -> str:
    """What the curve of the costs is of."""
    return f"{job.content}, {job.config.net.name}"


def about(job: StyleJob, key: str, folder: Path, run_id: str) -> dict[str, Any]:
    """What both kinds of runs say."""
    return {
        "key": key, "folder": str(folder), "content": job.content, "styles": list(job.styles), "recipe": job.recipe,
        "network": job.config.net.name, "weights": job.config.net.weights,
        "mlflow_run": run_id, "mlflow_url": registry.run_url(run_id),
    }  # fmt: skip


def len_cells(grid: GridConfig) -> int:
    return len(grid.ratios) * len(grid.depths) * len(grid.seeds)
