"""The flows that every family has, made for one of them: training, search, and training again with a gate.

`pipelines/<family>.py` names what comes of it, so that deployments have an entrypoint a family. In Prefect's UI the
parameters are a form: `recipe` is a drop-down of the recipes in params.yaml, `changes` has a field for each parameter
of a recipe, and what is left empty stays as the recipe says.
"""

from collections.abc import Callable
from typing import Annotated, Any

from prefect import Flow, flow

from pipelines.configuration import AcceptForm, ChangesForm, RecipeForm, SectionForm
from pipelines.families import AskedExecutor, SearchStop, StopAfter
from pipelines.parameters import AUTO
from pipelines.refresh import Refresh
from pipelines.retraining import Approval, Request, run_retrain
from pipelines.search import run_search
from pipelines.training import run_job
from tasks.gate import GateConfig
from tasks.space import SearchConfig

TRAIN_HELP = """Train {model} on an ingested dataset, test it, register it, and promote it if it is the first.

    Args:
        dataset: name of an ingested dataset (./convoy data list)
        recipe: parameters by name; auto: the recipe called like the dataset, else `default`
        changes: parameters that differ from the recipe; an empty field stays as the recipe says
        stop_after: the last step: train, evaluate (no registration), or promote (everything)
        resume: key of a run that was cut off, to go on with it; its own parameters count then
        executor: ray, or in_process to train inside the flow's process; auto: as the run was begun, a new one on Ray
        accept: checks of the dataset whose errors are waived (./convoy data check NAME)
    """
SEARCH_HELP = """Search the parameters of {model} on Ray by validation, and train, test and register the best.

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

RETRAIN_HELP = """Bring the data up to date, train {model} on it, and promote it if the gate finds it better.

    Ends as Skipped where the champion was trained on the same data by the same parameters, else as Promoted, Held,
    Inconclusive or Declined; its message says why.

    Args:
        dataset: name of an ingested dataset (./convoy data list)
        recipe: parameters by name; auto: the recipe called like the dataset, else `default`
        changes: parameters that differ from the recipe; an empty field stays as the recipe says
        refresh: none, the data as it lies there; dvc, from DVC's remote; source, from where it was added from
        approval: ask a person before the champion changes, none, or as_params: as params.yaml's gate says
        force: train even where the data and the parameters are those of the champion
        gate: what differs from the gate of params.yaml; an empty field stays as it says
        resume: key of a run that was cut off, to go on with it; its own parameters count then
        executor: ray, or in_process to train inside the flow's process; auto: as the run was begun, a new one on Ray
        accept: checks of the dataset whose errors are waived (./convoy data check NAME)
    """


def training_flow(family: str, noun: str, model: str) -> Flow[..., dict[str, Any]]:
    """The flow `train-<noun>` of a family; `model`, with its article, is what the help calls it."""

    def train(
        dataset: str,
        recipe: Annotated[str, RecipeForm(family)] = AUTO,
        changes: Annotated[dict[str, Any] | None, ChangesForm(family)] = None,
        stop_after: StopAfter = "promote",
        resume: str | None = None,
        executor: AskedExecutor = "auto",
        accept: Annotated[tuple[str, ...], AcceptForm()] = (),
    ) -> dict[str, Any]:
        return run_job(
            family,
            dataset,
            recipe,
            changes or {},
            stop_after=stop_after,
            resume=resume,
            executor=executor,
            accept=accept,
        )

    return named_flow(train, family, "train", noun, TRAIN_HELP.format(model=model))


def search_flow(family: str, noun: str, model: str) -> Flow[..., dict[str, Any]]:
    """The flow `search-<noun>` of a family."""

    def search_parameters(
        dataset: str,
        space: tuple[str, ...] = (),
        recipe: Annotated[str, RecipeForm(family)] = AUTO,
        changes: Annotated[dict[str, Any] | None, ChangesForm(family)] = None,
        search: Annotated[dict[str, Any] | None, SectionForm(SearchConfig)] = None,
        stop_after: SearchStop = "promote",
        resume: str | None = None,
        accept: Annotated[tuple[str, ...], AcceptForm()] = (),
    ) -> dict[str, Any]:
        return run_search(
            family,
            dataset,
            space,
            recipe,
            changes or {},
            search or {},
            stop_after=stop_after,
            resume=resume,
            accept=accept,
        )

    return named_flow(search_parameters, family, "search", noun, SEARCH_HELP.format(model=model))


def retraining_flow(family: str, noun: str, model: str) -> Flow[..., dict[str, Any]]:
    """The flow `retrain-<noun>` of a family."""

    def retrain(
        dataset: str,
        recipe: Annotated[str, RecipeForm(family)] = AUTO,
        changes: Annotated[dict[str, Any] | None, ChangesForm(family)] = None,
        refresh: Refresh = "none",
        approval: Approval = "as_params",
        force: bool = False,
        gate: Annotated[dict[str, Any] | None, SectionForm(GateConfig)] = None,
        resume: str | None = None,
        executor: AskedExecutor = "auto",
        accept: Annotated[tuple[str, ...], AcceptForm()] = (),
    ) -> Any:
        request = Request(refresh, approval, force, gate or {})
        return run_retrain(
            family, dataset, recipe, changes or {}, request, resume=resume, executor=executor, accept=accept
        )

    return named_flow(retrain, family, "retrain", noun, RETRAIN_HELP.format(model=model))


def named_flow(
    function: Callable[..., dict[str, Any]], family: str, verb: str, noun: str, text: str
) -> Flow[..., dict[str, Any]]:
    """`function` as the flow `<verb>-<noun>`, which stands in the family's module as `<verb>_<noun>`."""
    function.__module__ = f"pipelines.{family}"  # Prefect derives the entrypoint from these two
    function.__qualname__ = function.__name__ = f"{verb}_{noun}"
    function.__doc__ = text
    return flow(name=f"{verb}-{noun}", flow_run_name=f"{verb}-{noun}-{{dataset}}", persist_result=False)(
        function
    )
