"""`./convoy demo`: everything once, on data that a dependency ships, in under two minutes on two cores."""

import time
from pathlib import Path
from typing import Any

from data.dataset import Dataset
from data.ingest import IngestConfig
from pipelines.engines import start_engines
from pipelines.options import Json, quiet_stdout
from pipelines.parameters import section
from pipelines.render import ConsoleReporter, emit, table
from pipelines.runner import run_flow
from tasks import versions
from tasks.paths import store

SOURCE, NAME, FAMILY = "sklearn:digits", "digits", "classification"
RECIPES = ("digits", "digits_resnet")


def demo(*, as_json: Json = False) -> None:
    """Train and register two models on handwritten digits, and test them, alone and together.

    Ingests scikit-learn's 1,797 digits, trains LeNet-5 and a small ResNet by the flow that `train` runs, tests
    each and their ensemble, registers both, promotes the first champion, and says where to look. Run again, it
    ingests the same bytes and registers the next versions.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    with quiet_stdout(as_json):
        start_engines("ray")
        seconds["ingest"] = ingest_digits()
        summaries = []
        for recipe in RECIPES:
            before = time.perf_counter()
            summaries.append(run_flow(FAMILY, NAME, recipe, {}))
            seconds[recipe] = time.perf_counter() - before
        before = time.perf_counter()
        together = evaluate_together([Path(summary["folder"]) / "model" for summary in summaries])
        seconds["ensemble"] = time.perf_counter() - before
    seconds["in all"] = time.perf_counter() - started
    document = {"models": summaries, "ensemble": together, "phases_s": seconds}
    emit(document, views(summaries, together, seconds), as_json)


def ingest_digits() -> float:
    """Ingest and record the digits; returns the seconds it took."""
    before = time.perf_counter()
    added = versions.add(SOURCE, name=NAME, family=FAMILY, config=section("ingest", IngestConfig, {}))
    report = added.report
    ConsoleReporter().note(
        f"ingested {report.num_images:,} digits into {report.path}, DVC digest {added.digest}"
    )
    return time.perf_counter() - before


def evaluate_together(folders: list[Path]) -> dict[str, float]:
    """The metrics of the models' averaged outputs on the test images."""
    from pipelines.configuration import configuration
    from tasks.evaluate import evaluate

    config: Any = configuration(FAMILY, NAME, RECIPES[0], {})
    return evaluate(folders, Dataset.open(store() / NAME), config=config.evaluate).metrics


def views(
    summaries: list[dict[str, Any]], together: dict[str, float], seconds: dict[str, float]
) -> list[Any]:
    """What the demo shows at its end."""
    columns = ("model", "version", "alias", "accuracy", "95% interval", "ECE", "images/s", "MB")
    rows = [[s["architecture"], s["version"], s["alias"], *tested(s["metrics"])] for s in summaries]
    rows.append(["both, averaged", None, None, *tested(together)])
    first = summaries[0]
    model = f"models:/{first['model']}@champion"
    phases = ", ".join(f"{name} {time_s:.1f}" for name, time_s in seconds.items())
    return [
        table(f"Handwritten digits: {first['model']}, tested", columns, rows),
        f"seconds          {phases}; first step {first['to_first_step_s']:.1f} after the command",
        *(
            f"training         {s['architecture']}: {s['train_time_s']:.1f} s, {s['images_per_s']:,.0f} images/s"
            for s in summaries
        ),
        "",
        "look at",
        f"  the runs       {first['mlflow_url']}",
        f"  the champion   ./convoy models show {model}",
        f"  the figures    {first['folder']}/evaluation/",
        f"  the data       ./convoy data show {NAME}",
        f"use it           ./convoy predict {model} IMAGE...",
    ]


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
