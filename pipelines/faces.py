"""The flows of faces: training, and the search for its parameters.

    ./convoy train faces --dataset lfw

and the same from Prefect's UI, where the parameters below are a form: `recipe` is a drop-down of the recipes in
params.yaml, `changes` has a field for each parameter of a recipe, and what is left empty stays as the recipe says.
"""

from typing import Annotated, Any

from prefect import flow

from pipelines.configuration import AcceptForm, ChangesForm, RecipeForm, SectionForm
from pipelines.families import Executor, SearchStop, StopAfter
from pipelines.parameters import AUTO
from pipelines.search import run_search
from pipelines.training import run_job
from tasks.space import SearchConfig


@flow(name="train-faces", flow_run_name="train-faces-{dataset}", persist_result=False)
def train_faces(
    dataset: str,
    recipe: Annotated[str, RecipeForm("faces")] = AUTO,
    changes: Annotated[dict[str, Any] | None, ChangesForm("faces")] = None,
    stop_after: StopAfter = "promote",
    resume: str | None = None,
    executor: Executor = "ray",
    accept: Annotated[tuple[str, ...], AcceptForm()] = (),
) -> dict[str, Any]:
    """Train an embedder of faces on an ingested dataset, test it, register it, and promote it if it is the first.

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
        "faces",
        dataset,
        recipe,
        changes or {},
        stop_after=stop_after,
        resume=resume,
        executor=executor,
        accept=accept,
    )


@flow(name="search-faces", flow_run_name="search-faces-{dataset}", persist_result=False)
def search_faces(
    dataset: str,
    space: tuple[str, ...] = (),
    recipe: Annotated[str, RecipeForm("faces")] = AUTO,
    changes: Annotated[dict[str, Any] | None, ChangesForm("faces")] = None,
    search: Annotated[dict[str, Any] | None, SectionForm(SearchConfig)] = None,
    stop_after: SearchStop = "promote",
    resume: str | None = None,
    accept: Annotated[tuple[str, ...], AcceptForm()] = (),
) -> dict[str, Any]:
    """Search the parameters of an embedder of faces on Ray by validation, and train, test and register the best.

    Args:
        dataset: name of an ingested dataset (./convoy data list)
        space: what is searched, such as optim.lr=log:1e-4..1e-1 or model.name=A,B
        recipe: parameters by name, for what is not searched; auto: the recipe called like the dataset, else `default`
        changes: parameters that differ from the recipe; an empty field stays as the recipe says
        search: how it is searched, and for how long; an empty field stays as params.yaml says
        stop_after: the last step: search, train (the best), evaluate (no registration), or promote (everything)
        resume: key of a search that was cut off, to go on with it; its own parameters count then
        accept: checks of the dataset whose errors are waived (./convoy data check NAME)
    """
    return run_search(
        "faces",
        dataset,
        space,
        recipe,
        changes or {},
        {"metric": "val_loss", **(search or {})},
        stop_after=stop_after,
        resume=resume,
        accept=accept,
    )
