"""The flow that tests a model, or several together, on a dataset: `./convoy evaluate` from a form.

Nothing is registered and no alias moves. The report goes to `runs/KEY/evaluation`.
"""

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from data.dataset import Split
from pipelines import environment, steps
from pipelines.artifacts import publish_metrics
from pipelines.options import overlap_of
from pipelines.parameters import AUTO
from pipelines.reporting import Reporter
from pipelines.runfolders import run_folder
from pipelines.scoring import Tested, score_models
from tasks.settings import ViewName


@flow(name="evaluate", flow_run_name="evaluate-{model}", persist_result=False)
def evaluate_model(
    model: str,
    members: tuple[str, ...] = (),
    dataset: str | None = None,
    split: Split = "test",
    views: tuple[ViewName, ...] = (),
    recipe: str = AUTO,
    tile: bool = False,
) -> dict[str, Any]:
    """Test a model, or several together, on a dataset; nothing is registered, and no alias moves.

    Args:
        model: a registered model (models:/NAME@ALIAS, models:/NAME/VERSION), or the key of a run
        members: more models, tested together with the first as an ensemble
        dataset: name of an ingested dataset (./convoy data list); empty: the one that the model was trained on
        split: which images
        views: ways to look at each image; none: those of the recipe
        recipe: whose `evaluate` section counts; auto: the recipe called like the dataset, else `default`
        tile: detectors alone: look at images that are larger than the network's input in tiles of its size
    """
    environment.prepare()
    reporter = steps.reporter_here()
    tested = score((model, *members), dataset, split, views, recipe, tile, reporter)
    folder = run_folder(str(flow_run.id)) / "evaluation"
    tested.report.write(folder)
    document = {**tested.document(), "out": str(folder)}
    publish_metrics(model, document)
    return document


@steps.step("evaluate")
def score(
    called: tuple[str, ...], dataset: str | None, split: Split, views: tuple[ViewName, ...], recipe: str,
    tile: bool, reporter: Reporter,
) -> Tested:  # fmt: skip
    """The test itself."""
    return score_models(called, dataset, split, views or None, recipe, overlap_of(tile, None), reporter)
