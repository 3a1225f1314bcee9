"""Models tested on a dataset: what `./convoy evaluate` and the deployment `evaluate` do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.dataset import Dataset, Split
from data.parameters import Parameters
from pipelines.families import PIPELINES, load
from pipelines.parameters import choose_recipe, recipes
from pipelines.reporting import Reporter, progress_of
from tasks import registry, versioning
from tasks.card import ModelCard
from tasks.ensemble import given_again
from tasks.families import FAMILIES
from tasks.modelfile import load_card
from tasks.paths import store
from tasks.settings import ViewName
from tasks.versions import open_stored


@dataclass(frozen=True)
class Tested:
    """What a test found."""

    folders: tuple[str, ...]  # of the models
    dataset: str
    split: Split
    notes: tuple[str, ...]  # what a reader of the figures must know
    report: Any  # of the family

    def document(self) -> dict[str, Any]:
        """For a program."""
        return {
            "models": list(self.folders), "dataset": self.dataset, "split": self.split,
            "metrics": self.report.metrics, "notes": list(self.notes),
        }  # fmt: skip


def score_models(
    called: Sequence[str], dataset: str | None, split: Split, views: Sequence[ViewName] | None, recipe: str,
    tile_overlap: float | None, reporter: Reporter,
) -> Tested:  # fmt: skip
    """Test a model, or several as an ensemble; `dataset` and `views` None: those of the model and of the recipe.

    Raises ValueError for models and options that do not go together, FileNotFoundError for a dataset that is not here.
    """
    folders, names = zip(*map(pinned, called), strict=True)
    card = load_card(folders[0])
    if tile_overlap is not None and card.family != "detection":
        raise ValueError(f"--tile is for detectors, and {called[0]} is for {card.family}: leave it out")
    tiles = {} if tile_overlap is None else {"tile_overlap": tile_overlap}
    data = open_stored(dataset or card.dataset)
    notes = [note for folder in folders if (note := trained_on_another_version(load_card(folder), data))]
    if len(folders) > 1:
        notes += given_again(called, folders)
    if split == "val":
        notes.append(
            "temperatures and least scores are fitted on the validation split: its figures flatter the model"
        )
    config = evaluate_configuration(card, data.info.name, recipe, views)
    for note in notes:
        reporter.note(f"note: {note}")
    report = load(PIPELINES[card.family].evaluate)(
        folders, data, split=split, config=config, on_progress=progress_of(reporter, "evaluate"), called=tuple(called),
        **tiles,
    )  # fmt: skip
    # errors and tables name what was typed; a report is read later, when an alias may be another version's
    report = replace(report, about={**report.about, "models": ", ".join(names)})
    return Tested(tuple(map(str, folders)), data.info.name, split, tuple(notes), report)


def pinned(called: str) -> tuple[Path, str]:
    """The folder of a model, and its name in a report: with the version beside an alias, which moves."""
    name, version = registry.pin(called)
    if not version:
        return Path(name), called
    folder = registry.resolve_model(f"models:/{name}/{version}")
    return folder, called if called.endswith(f"/{version}") else f"{called} (version {version})"


def trained_on_another_version(card: ModelCard, data: Dataset) -> str:
    """A warning if the model knows another version of this dataset: its training pictures may be among those tested."""
    now = versioning.digest(store() / data.info.name)
    if card.dataset != data.info.name or not card.dataset_digest or card.dataset_digest == now:
        return ""
    return (
        f"{card.members[0].architecture} was trained on another version of {data.info.name} ({card.dataset_digest}, "
        f"now {now or 'untracked'}): pictures that it was trained on may be among those tested"
    )


def evaluate_configuration(
    card: ModelCard, dataset: str, recipe: str, views: Sequence[ViewName] | None
) -> Any:
    """How to evaluate: the recipe's section, with the model's own view and the views asked for."""
    name = choose_recipe(card.family, dataset, recipe)
    values: dict[str, Any] = dict(recipes(card.family)[name]["evaluate"])
    values["registered_view"] = card.views
    if views is not None:
        values["views"] = list(dict.fromkeys(views))
    section = FAMILIES[card.family].config.model_fields["evaluate"].annotation
    assert isinstance(section, type) and issubclass(section, Parameters)
    return section.parse(values, f"{card.family}.{name}.evaluate")
