"""`./convoy demo`: everything once, on data that a dependency ships, in under two minutes on two cores."""

import time
from pathlib import Path
from typing import Any

from data.dataset import Dataset
from data.ingest import IngestConfig
from pipelines.engines import start_engines
from pipelines.options import Json, quiet_stdout
from pipelines.parameters import AUTO, section
from pipelines.render import ConsoleReporter, emit, table
from pipelines.runner import run_flow
from tasks import versions
from tasks.paths import store

SOURCE, NAME, FAMILY = "sklearn:digits", "digits", "classification"
RECIPES = ("digits", "digits_resnet")
SCENES_SOURCE, SCENES, DETECTION = "sklearn:digit_scenes", "digit_scenes", "detection"
SHORT = {"train": {"epochs": 20.0}}  # a third of the recipe's: the demo is to be short


def demo(*, as_json: Json = False) -> None:
    """Train and register two models of handwritten digits, alone and together, and a detector of digits in scenes.

    Ingests scikit-learn's 1,797 digits, trains LeNet-5 and a small ResNet by the flow that `train` runs, tests
    each and their ensemble, registers both, promotes the first champion; then composes scenes of the digits and does
    the same with a small YOLO, for a third of its recipe's epochs. Says where to look. Run again, it ingests the same
    bytes and registers the next versions.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    with quiet_stdout(as_json):
        start_engines("ray")
        seconds["ingest"] = ingest(SOURCE, NAME, FAMILY)
        summaries = []
        for recipe in RECIPES:
            before = time.perf_counter()
            summaries.append(run_flow(FAMILY, NAME, recipe, {}))
            seconds[recipe] = time.perf_counter() - before
        before = time.perf_counter()
        together = evaluate_together([Path(summary["folder"]) / "model" for summary in summaries])
        seconds["ensemble"] = time.perf_counter() - before
        seconds["scenes"] = ingest(SCENES_SOURCE, SCENES, DETECTION)
        before = time.perf_counter()
        detector = run_flow(DETECTION, SCENES, AUTO, SHORT)
        seconds["detector"] = time.perf_counter() - before
    seconds["in all"] = time.perf_counter() - started
    document = {"models": summaries, "ensemble": together, "detector": detector, "phases_s": seconds}
    emit(document, views(summaries, together, detector, seconds), as_json)


def ingest(source: str, name: str, family: str) -> float:
    """Ingest and record a built-in dataset; returns the seconds it took."""
    before = time.perf_counter()
    added = versions.add(source, name=name, family=family, config=section("ingest", IngestConfig, {}))
    report = added.report
    ConsoleReporter().note(
        f"ingested {report.num_images:,} pictures into {report.path}, DVC digest {added.digest}"
    )
    return time.perf_counter() - before


def evaluate_together(folders: list[Path]) -> dict[str, float]:
    """The metrics of the models' averaged outputs on the test images."""
    from pipelines.configuration import configuration
    from tasks.evaluate import evaluate

    config: Any = configuration(FAMILY, NAME, RECIPES[0], {})
    return evaluate(folders, Dataset.open(store() / NAME), config=config.evaluate).metrics


def views(
    summaries: list[dict[str, Any]],
    together: dict[str, float],
    detector: dict[str, Any],
    seconds: dict[str, float],
) -> list[Any]:
    """What the demo shows at its end."""
    columns = ("model", "version", "alias", "accuracy", "95% interval", "ECE", "images/s", "MB")
    rows = [[s["architecture"], s["version"], s["alias"], *tested(s["metrics"])] for s in summaries]
    rows.append(["both, averaged", None, None, *tested(together)])
    first = summaries[0]
    model, finder = (f"models:/{each['model']}@champion" for each in (first, detector))
    phases = ", ".join(f"{name} {time_s:.1f}" for name, time_s in seconds.items())
    return [
        table(f"Handwritten digits: {first['model']}, tested", columns, rows),
        table(f"Digits in scenes: {detector['model']}, tested", *boxes_tested(detector)),
        f"seconds          {phases}; first step {first['to_first_step_s']:.1f} after the command",
        *(
            f"training         {s['architecture']}: {s['train_time_s']:.1f} s, {s['images_per_s']:,.0f} images/s"
            for s in [*summaries, detector]
        ),
        "",
        "look at",
        f"  the runs       {first['mlflow_url']}",
        f"  the champion   ./convoy models show {model}",
        f"  the figures    {first['folder']}/evaluation/report.html",
        f"  found boxes    {detector['folder']}/evaluation/examples.png",
        f"  the data       ./convoy data show {NAME}",
        f"use it           ./convoy predict {model} IMAGE...",
        f"                 ./convoy predict {finder} IMAGE... --draw drawn/",
    ]


def boxes_tested(detector: dict[str, Any]) -> tuple[tuple[str, ...], list[list[Any]]]:
    """The columns of a detector's test, and its row."""
    columns = ("model", "version", "alias", "AP", "95% interval", "AP50", "precision", "recall", "images/s")
    metrics = detector["metrics"]
    shares = {
        name: f"{metrics[name]:.4f}" for name in ("ap", "ap_low", "ap_high", "ap50", "precision", "recall")
    }
    interval = f"{shares['ap_low']} to {shares['ap_high']}"
    numbers = [
        shares["ap"],
        interval,
        shares["ap50"],
        shares["precision"],
        shares["recall"],
        metrics["images_per_s"],
    ]
    return columns, [[detector["architecture"], detector["version"], detector["alias"], *numbers]]


def tested(metrics: dict[str, float]) -> list[Any]:
    """The columns of a test."""
    interval = f"{metrics['accuracy_low']:.4f} to {metrics['accuracy_high']:.4f}"
    return [
        f"{metrics['accuracy']:.4f}",
        interval,
        metrics["ece"],
        metrics["images_per_s"],
        metrics["memory_mb"],
    ]
