"""What a command that trains looks at before engines start and a run begins: the flow would refuse it later."""

from collections.abc import Sequence
from typing import Any

import torch

from data.dataset import Split
from data.findings import examine, obey
from pipelines.families import PIPELINES, Executor, load
from tasks import recordstore, registry
from tasks.cluster import require_room
from tasks.distil import require_teacher
from tasks.nodes import is_embedded, without_gpu
from tasks.versions import open_stored
from tasks.weights import teacher_of


def require_beginning(
    family: str,
    dataset: str,
    configs: Sequence[Any],
    accepted: Sequence[str],
    splits: Sequence[Split] = (),
    waived: Sequence[str] = (),
    executor: Executor = "ray",
) -> None:
    """Raise ValueError, FileNotFoundError or ConnectionError where trainings by `configs` could not begin.

    That is where the dataset is not there, is of another family, has faults that are neither `accepted` nor `waived`,
    or has nothing in one of `splits`; where engines are not there, or too small, as `require_engines` finds it; where
    GPUs are asked for, and this machine, with a Ray of its own, has none; and where pretrained weights or a teacher are
    not there, cannot be read, or are of another network or of other classes.
    """
    opened = open_stored(dataset)
    opened.require_family(family)
    for split in splits:
        opened.require(split)
    require_engines(configs, executor)
    obey(*examine(opened, accepted, waived))
    for config in configs:
        gpus = config.train.gpus_per_worker
        if gpus and is_embedded() and not torch.cuda.is_available():
            raise ValueError(f"train.gpus_per_worker (={gpus:g}): {without_gpu('train.gpus_per_worker')}")
        load(PIPELINES[family].weights)(config, opened.info, registry.resolve_model)
        if "distil" in type(config).model_fields:
            require_teacher(config, opened.info, teacher_of(config, registry.resolve_model))


def require_engines(configs: Sequence[Any], executor: Executor) -> None:
    """Raise ConnectionError where a server that is named does not answer, ValueError where workers do not fit on Ray.

    Of a cluster, what its nodes have is not known yet.
    """
    recordstore.require_answer(recordstore.PROBE_TIMEOUT_S)
    if executor == "ray":
        for config in configs:
            require_room(config.train)
