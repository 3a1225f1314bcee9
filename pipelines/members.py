"""Which members an ensemble has: a complete job for each, of a network and a seed of its own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data.parameters import did_you_mean
from models.classification import ARCHITECTURES
from pipelines.configuration import configuration
from pipelines.parameters import choose_recipe, merge, recipes
from pipelines.training import Job

NUM_MEMBERS = 5  # where neither their number nor their networks are given


def plan_members(
    family: str,
    dataset: str,
    members: int,
    models: Sequence[str],
    recipe: str,
    changes: dict[str, Any],
    accept: tuple[str, ...],
) -> list[Job]:
    """The members' jobs, whose seeds follow each other from the recipe's on; `models` are taken in turn.

    Each of `models` is a recipe, or a network that takes the place of the recipe's. Raises ValueError for members that
    could not be one model.
    """
    number = members or len(models) or NUM_MEMBERS
    if number < max(2, len(models)):
        raise ValueError(
            f"an ensemble of {number} members is too small: give --members of at least {max(2, len(models))}"
        )
    first = [member_job(family, dataset, name, recipe, changes, accept) for name in models or ("",)]
    turns = [first[place % len(first)] for place in range(number)]
    jobs = [with_train(job, seed=job.config.train.seed + place) for place, job in enumerate(turns)]
    require_one_input(jobs)
    return jobs


def member_job(
    family: str, dataset: str, model: str, recipe: str, changes: dict[str, Any], accept: tuple[str, ...]
) -> Job:
    """The job of a recipe, or of the recipe with another network; raises ValueError for a name that is neither."""
    if model in recipes(family):
        recipe = model
    elif model in ARCHITECTURES:
        changes = merge(changes, {"model": {"name": model}})
    elif model:
        raise ValueError(
            f"--model {model} is neither a recipe ({', '.join(recipes(family))}) nor a network of the catalogue "
            f"({', '.join(ARCHITECTURES)}){did_you_mean(model, [*recipes(family), *ARCHITECTURES])}"
        )
    config = configuration(family, dataset, recipe, changes)
    return Job(family, dataset, choose_recipe(family, dataset, recipe), config, accept)


def with_train(job: Job, **changes: Any) -> Job:
    """The job with other values in its section `train`."""
    train = job.config.train.model_copy(update=changes)
    return replace(job, config=job.config.model_copy(update={"train": train}))


def require_one_input(jobs: Sequence[Job]) -> None:
    """Raise a ValueError unless all members see the same pictures, in the same view: else they are not one model."""
    first = jobs[0].config
    for job in jobs:
        other = job.config
        if other.input != first.input:
            raise ValueError(
                f"members of an ensemble must have the same input: {first.model.name} has {first.input.model_dump()}, "
                f"{other.model.name} {other.input.model_dump()}; change it for all: --set input.stored_px=…, "
                "--set input.crop_px=…"
            )
        if other.evaluate.registered_view != first.evaluate.registered_view:
            raise ValueError(
                f"members of an ensemble must have the same evaluate.registered_view: {first.model.name} has "
                f"{first.evaluate.registered_view}, {other.model.name} {other.evaluate.registered_view}; "
                "change it for all by --set"
            )
