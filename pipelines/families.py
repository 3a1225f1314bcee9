"""What the pipelines know of each family: its flow, and the name its models are registered under."""

from dataclasses import dataclass
from typing import Literal

FamilyName = Literal["classification", "signals", "volumes"]
StopAfter = Literal["train", "evaluate", "promote"]
SearchStop = Literal["search", "train", "evaluate", "promote"]
Executor = Literal["ray", "in_process"]


@dataclass(frozen=True)
class Pipeline:
    """One family's entry."""

    flow: str  # module:function of its training flow; imported when it is needed, since Prefect takes seconds
    search: str  # of the flow that searches its parameters
    model: str  # name in the model registry
    dataset: str  # the dataset that may use that name alone; models of others are called <model>-<dataset>


PIPELINES: dict[str, Pipeline] = {
    "classification": Pipeline(
        flow="pipelines.classification:train_classifier",
        search="pipelines.classification:search_classifier",
        model="classifier",
        dataset="cifar10",
    ),
    "signals": Pipeline(
        flow="pipelines.signals:train_signals",
        search="pipelines.signals:search_signals",
        model="signals",
        dataset="spoken",
    ),
    "volumes": Pipeline(
        flow="pipelines.volumes:train_volumes",
        search="pipelines.volumes:search_volumes",
        model="volumes",
        dataset="modelnet",
    ),
}


def registered_name(family: str, dataset: str) -> str:
    """The name under which a model of `family` that was trained on `dataset` is registered."""
    pipeline = PIPELINES[family]
    return pipeline.model if dataset == pipeline.dataset else f"{pipeline.model}-{dataset}"
