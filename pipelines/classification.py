"""The training flow of classification.

    ./convoy train classification --dataset digits

and the same from Prefect's UI, where the parameters below are a form: `recipe` is a drop-down of the recipes in
params.yaml, `changes` has a field for each parameter of a recipe, and what is left empty stays as the recipe says.
"""

from typing import Annotated, Any

from prefect import flow

from pipelines.configuration import AcceptForm, ChangesForm, RecipeForm
from pipelines.families import Executor, StopAfter
from pipelines.parameters import AUTO
from pipelines.training import run_job


@flow(name="train-classifier", flow_run_name="train-classifier-{dataset}", persist_result=False)
def train_classifier(
    dataset: str,
    recipe: Annotated[str, RecipeForm("classification")] = AUTO,
    changes: Annotated[dict[str, Any] | None, ChangesForm("classification")] = None,
    stop_after: StopAfter = "promote",
    resume: str | None = None,
    executor: Executor = "ray",
    accept: Annotated[tuple[str, ...], AcceptForm()] = (),
) -> dict[str, Any]:
    """Train a classifier on an ingested dataset, test it, register it, and promote it if it is the first.

    Args:
        dataset: name of an ingested dataset (./convoy data list)
        recipe: parameters by name; auto: the recipe called like the dataset, else `default`
        changes: parameters that differ from the recipe; an empty field stays as the recipe says
        stop_after: the last step: train, evaluate (no registration), or promote (everything)
        resume: key of a run that was cut off, to go on with it; its own parameters count then
        executor: ray, or in_process to train inside the flow's process
        accept: checks of the dataset whose errors are waived (./convoy data check NAME)
    """
    return run_job(
        "classification",
        dataset,
        recipe,
        changes or {},
        stop_after=stop_after,
        resume=resume,
        executor=executor,
        accept=accept,
    )
