"""What the pipelines know of each family: its flow, and the name its models are registered under."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

FamilyName = Literal["classification", "detection", "faces", "landmarks", "signals", "style", "volumes"]
StopAfter = Literal["train", "evaluate", "promote"]
SearchStop = Literal["search", "train", "evaluate", "promote"]
Executor = Literal["ray", "in_process"]
AskedExecutor = Literal["auto", "ray", "in_process"]  # auto: where the run was begun, a new one on Ray


@dataclass(frozen=True)
class Pipeline:
    """One family's entry."""

    flow: str  # module:function of its training flow; imported when it is needed, since Prefect takes seconds
    search: str  # of the flow that searches its parameters
    model: str  # name in the model registry
    dataset: str  # the dataset that may use that name alone; models of others are called <model>-<dataset>
    fit: str  # module:function of what is fitted to validation after training, see tasks.calibrate; "": nothing
    evaluate: str  # module:function of its evaluation, see tasks.evaluate.evaluate
    retrain: str = ""  # of the flow that trains again and promotes by the gate; "": it has none
    pair: str = (
        ""  # module:function of the paired comparison of two models, see tasks.gateclassification.pair
    )
    weights: str = (
        "tasks.weights:of_transfer"  # module:function of what is read on the driver before training
    )


PIPELINES: dict[str, Pipeline] = {
    "classification": Pipeline(
        flow="pipelines.classification:train_classifier",
        search="pipelines.classification:search_classifier",
        model="classifier",
        dataset="cifar10",
        fit="tasks.calibrate:calibrate",
        evaluate="tasks.evaluate:evaluate",
        retrain="pipelines.classification:retrain_classifier",
        pair="tasks.gateclassification:pair",
    ),
    "detection": Pipeline(
        flow="pipelines.detection:train_detector",
        search="pipelines.detection:search_detector",
        model="detector",
        dataset="bccd",
        fit="tasks.detectionevaluate:fit_threshold",
        evaluate="tasks.detectionevaluate:evaluate",
        retrain="pipelines.detection:retrain_detector",
        pair="tasks.gatedetection:pair",
    ),
    "faces": Pipeline(
        flow="pipelines.faces:train_faces",
        search="pipelines.faces:search_faces",
        model="faces",
        dataset="lfw",
        fit="tasks.faceevaluate:fit_thresholds",
        evaluate="tasks.faceevaluate:evaluate",
        retrain="pipelines.faces:retrain_faces",
        pair="tasks.gatefaces:pair",
    ),
    "landmarks": Pipeline(
        flow="pipelines.landmarks:train_landmarks",
        search="pipelines.landmarks:search_landmarks",
        model="landmarks",
        dataset="faces",
        fit="",
        evaluate="tasks.landmarkevaluate:evaluate",
        retrain="pipelines.landmarks:retrain_landmarks",
        pair="tasks.gatelandmarks:pair",
    ),
    "signals": Pipeline(
        flow="pipelines.signals:train_signals",
        search="pipelines.signals:search_signals",
        model="signals",
        dataset="spoken",
        fit="tasks.calibrate:calibrate",
        evaluate="tasks.evaluate:evaluate",
        retrain="pipelines.signals:retrain_signals",
        pair="tasks.gateclassification:pair",
    ),
    "style": Pipeline(
        flow="pipelines.style:train_stylizer",
        search="pipelines.style:search_stylizer",
        model="stylizer",
        dataset="photos",
        fit="",
        evaluate="tasks.stylizerevaluate:evaluate",
        retrain="pipelines.style:retrain_stylizer",
        pair="tasks.gatestyle:pair",
        weights="tasks.stylesources:read_sources",
    ),
    "volumes": Pipeline(
        flow="pipelines.volumes:train_volumes",
        search="pipelines.volumes:search_volumes",
        model="volumes",
        dataset="modelnet",
        fit="tasks.calibrate:calibrate",
        evaluate="tasks.evaluate:evaluate",
        retrain="pipelines.volumes:retrain_volumes",
        pair="tasks.gateclassification:pair",
    ),
}


def load(name: str) -> Callable[..., Any]:
    """The function that an entry names as module:function."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def registered_name(family: str, dataset: str) -> str:
    """The name under which a model of `family` that was trained on `dataset` is registered."""
    pipeline = PIPELINES[family]
    return pipeline.model if dataset == pipeline.dataset else f"{pipeline.model}-{dataset}"
