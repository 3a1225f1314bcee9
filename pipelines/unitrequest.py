"""What `explain units` is asked for: as a person gave it, kept in the run's folder, and as it is found to be."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import Field

from data.dataset import Dataset, Split, list_names
from data.files import write_whole
from data.parameters import Parameters
from models.receptive import LayerFields
from models.synthesis import SynthesisConfig
from models.units import named_layers
from pipelines.runfolders import BEGUN, begun
from tasks.paths import store
from tasks.subject import Subject, is_bare, open_subject
from tasks.unitstate import Seen
from tasks.unitviews import most_alike, synthesis_px
from tasks.versions import open_stored

JOB_FILE = BEGUN["look at units"]


class ExplainConfig(Parameters):
    """How much is shown, and how pictures are synthesised."""

    show: int = Field(ge=0, description="units of each layer that are shown, from the first on; 0: all")
    synthesis: SynthesisConfig


@dataclass(frozen=True)
class UnitsJob:
    """What a person asked for, with all parameters."""

    model: str
    layers: tuple[str, ...]
    dataset: str | None
    split: Split
    units: tuple[int, ...]
    against: str | None
    synthesis: bool
    network: str | None
    px: int | None
    class_names: tuple[str, ...]
    config: ExplainConfig

    @property
    def models(self) -> list[str]:
        return [model for model in (self.model, self.against) if model]


def keep_job(job: UnitsJob, folder: Path) -> None:
    """Put what was asked for into a run's folder."""
    values = {**asdict(job), "config": job.config.model_dump(mode="json")}
    write_whole(folder / JOB_FILE, json.dumps(values, indent=2) + "\n")


def read_job(folder: Path) -> UnitsJob:
    """What was asked of a run that was started before; raises ValueError if there is none in `folder`."""
    file = folder / JOB_FILE
    values = begun(folder, "look at units")
    lists = {name: tuple(values[name]) for name in ("layers", "units", "class_names")}
    return UnitsJob(**{**values, **lists, "config": ExplainConfig.parse(values["config"], str(file))})


@dataclass(frozen=True)
class Request:
    """What is looked at, complete: the networks, of each its layers, and the units of each layer that are shown."""

    subjects: tuple[Subject, ...]
    layers: tuple[dict[str, LayerFields], ...]
    called: dict[str, str]  # to each layer the name that a person gave it: a stage's, or its own
    units: dict[str, list[int]]
    dataset: Dataset | None
    split: Split
    config: ExplainConfig
    synthesis: bool

    @property
    def names(self) -> list[str]:
        return [subject.source for subject in self.subjects]

    @property
    def note(self) -> str:
        """Why no patches are shown; "" where they are."""
        if self.dataset is not None:
            return ""
        trained = self.subjects[0].dataset
        why = f"the dataset {trained!r} of its training is not here" if trained else "no dataset was named"
        return f"no patches, pictures are synthesised alone: {why}; give --dataset"


def open_subjects(
    sources: Sequence[str], network: str | None, px: int | None, class_names: Sequence[str]
) -> list[Subject]:
    """The networks; `network` and `px` are of those that are bare weights."""
    asked = [is_bare(source) or not any(map(is_bare, sources)) for source in sources]
    return [
        open_subject(source, *((network, px) if own else (None, None)), class_names)
        for source, own in zip(sources, asked, strict=True)
    ]


def request_of(job: UnitsJob) -> Request:
    """Find what was asked for; raises ValueError for a layer, unit or dataset that is not there."""
    if not job.model:
        raise ValueError("units of which model? Give a trained classifier, or bare weights")
    subjects = open_subjects(job.models, job.network, job.px, job.class_names)
    chosen: list[dict[str, LayerFields]] = []
    called: dict[str, str] = {}
    for subject in subjects:
        known = subject.fields()
        called = named_layers(subject.classifier.net, job.layers, list(known), subject.architecture)
        chosen.append({name: known[name] for name in called})
    if list(chosen[0]) != list(chosen[-1]):
        raise ValueError(
            f"{subjects[1].source} has other layers by these names ({', '.join(chosen[1])}) than {subjects[0].source} "
            f"({', '.join(chosen[0])}): name modules that both have"
        )
    shown = {
        name: units_of(called[name], len(each.fields), job.units, job.config.show)
        for name, each in chosen[0].items()
    }
    if job.synthesis:
        for subject, layers in zip(subjects, chosen, strict=True):
            require_side(subject, layers, called, job.config.synthesis)
    data = dataset_of(subjects[0], job.dataset)
    if data is None and not job.synthesis:
        raise ValueError(
            f"nothing to show of {subjects[0].source}: give --dataset, or let pictures be synthesised"
        )
    if data is not None:
        require_labels(data)
        data.require(job.split)
    return Request(tuple(subjects), tuple(chosen), called, shown, data, job.split, job.config, job.synthesis)


def require_labels(data: Dataset) -> None:
    """Raise ValueError for a dataset of another family: patches are shown with the labels of their pictures."""
    try:
        data.require_family("classification")
    except ValueError as error:
        raise ValueError(
            f"{error}: give --dataset one that is (./convoy data list), or leave it out; of bare weights pictures are "
            "then synthesised alone"
        ) from None


def require_side(
    subject: Subject, layers: dict[str, LayerFields], called: dict[str, str], config: SynthesisConfig
) -> None:
    """Raise ValueError where pictures of `side_px` are too small to be synthesised for a layer."""
    for name, layer in layers.items():
        side = synthesis_px(subject, layer, config)
        if side < subject.preprocessing.crop_px and not subject.takes(side, name):
            raise ValueError(
                f"synthesis.side_px (={side}) is too small for layer {called[name]} of {subject.architecture}: set it "
                f"higher, up to {subject.preprocessing.crop_px}"
            )


def units_of(layer: str, num: int, units: Sequence[int], show: int) -> list[int]:
    """The units of a layer that are shown: those asked for, else the first `show`, 0: all."""
    wrong = [unit for unit in units if not 0 <= unit < num]
    if wrong:
        raise ValueError(f"layer {layer} has units 0…{num - 1}, not {', '.join(map(str, wrong))}")
    return list(dict.fromkeys(units)) or list(range(num))[: show or None]


def dataset_of(subject: Subject, name: str | None) -> Dataset | None:
    """The dataset asked for, else the one that the model was trained on, if it is in the store."""
    if name is not None:
        return open_stored(name)
    return open_stored(subject.dataset) if subject.dataset in list_names(store()) else None


def partners_of(request: Request, seen: Seen | None) -> dict[str, dict[int, tuple[int, float | None]]]:
    """To each shown unit of each layer the unit of the other network beside it, and their correlation.

    The most alike one; without pictures to compare them by, the one of the same number. {} for one network alone.
    """
    if len(request.subjects) == 1:
        return {}
    if seen is None:
        for name, units in request.units.items():
            units_of(request.called[name], len(request.layers[1][name].fields), units, 0)
        return {name: {unit: (unit, None) for unit in units} for name, units in request.units.items()}
    return {name: dict(most_alike(seen.moments[name], units)) for name, units in request.units.items()}
