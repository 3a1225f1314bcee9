"""`./convoy demo`: everything once, on data that a dependency ships, in under two minutes on two cores."""

import time
from pathlib import Path
from typing import Any

from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from pipelines.options import Json, quiet_stdout
from pipelines.parameters import configuration, section
from pipelines.render import ConsoleReporter, emit, table
from pipelines.runner import run_flow, start_engines
from tasks import versioning
from tasks.paths import home, store

SOURCE, NAME, FAMILY = "sklearn:digits", "digits", "classification"
RECIPES = ("digits", "digits_resnet")
SHOWN = ("accuracy", "accuracy_low", "accuracy_high", "ece", "images_per_s", "memory_mb")


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
    report = ingest(
        SOURCE, name=NAME, family=FAMILY, store=store(), config=section("ingest", IngestConfig, {})
    )
    digest = versioning.add(store() / NAME)
    ConsoleReporter().note(f"ingested {report.num_images:,} digits into {report.path}, DVC digest {digest}")
    return time.perf_counter() - before


def evaluate_together(folders: list[Path]) -> dict[str, float]:
    """The metrics of the models' averaged outputs on the test images."""
    from tasks.evaluate import evaluate

    config: Any = configuration(FAMILY, NAME, RECIPES[0], {})
    return evaluate(folders, Dataset.open(store() / NAME), config=config.evaluate).metrics


def views(
    summaries: list[dict[str, Any]], together: dict[str, float], seconds: dict[str, float]
) -> list[Any]:
    """What the demo shows at its end."""
    columns = ("model", "registered as", "alias", "test accuracy", "from", "to", "ECE", "images/s", "MB")
    rows = [
        [
            s["architecture"],
            f"models:/{s['model']}/{s['version']}",
            s["alias"],
            *(s["metrics"][m] for m in SHOWN),
        ]
        for s in summaries
    ]
    rows.append(["both, averaged", None, None, *(together[m] for m in SHOWN)])
    first = summaries[0]
    trained = [
        [
            s["architecture"],
            s["to_first_step_s"],
            s["train_time_s"],
            s["images_per_s"],
            *s["phases_s"].values(),
        ]
        for s in summaries
    ]
    model = f"models:/{first['model']}@champion"
    return [
        table("Handwritten digits", columns, rows),
        table(
            "Seconds",
            ("model", "until the first step", "training", "images/s", *first["phases_s"]),
            trained,
        ),
        table("Wall-clock, seconds", tuple(seconds), [list(seconds.values())]),
        "Look at",
        f"  the runs       {first['mlflow_url']}",
        f"  the champion   ./convoy models show {model}",
        f"  the figures    {home()}/runs/{first['key']}/evaluation/",
        f"  the data       ./convoy data show {NAME}",
        f"Use it:          ./convoy predict {model} IMAGE...",
    ]
