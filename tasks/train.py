"""One training run: in this process, or as one Ray Train run of one to many workers.

The run's folder holds everything it needs to go on: `checkpoints/` (in this process) or `ray/` (Ray Train), the
course of its metrics in `history.csv`, and at the end `model/` and `result.json`. Called again for a folder that
has a result, `train` returns it; for a folder with checkpoints, it resumes.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from data.dataset import Dataset, Split, read_rows
from data.files import whole
from data.stream import Layout
from tasks.batches import BatchPlan, join_arrays
from tasks.card import InitialWeights, TaughtBy
from tasks.distil import Teacher, require_teacher, taught
from tasks.families import FAMILIES, Family
from tasks.features import cached_features, caches, compute_here, started
from tasks.feed import Feed, Feeds, choose_mode, fit_from, resident, streamed_here
from tasks.loop import Progress, result_weights
from tasks.modelfile import save_model
from tasks.result import Listener, TrainResult, read_result, require_same_beginning, write_result
from tasks.stopping import Interrupted
from tasks.transfer import Weights

NUM_KEPT_CHECKPOINTS = 2
Executor = Literal["ray", "in_process"]
CHECKPOINTS: dict[Executor, str] = {"ray": "ray", "in_process": "checkpoints"}  # where in a run's folder

_logger = logging.getLogger(__name__)


def train(
    family_name: str,
    config: Any,
    dataset: Dataset,
    *,
    folder: Path,
    key: str,
    digest: str,
    executor: Executor = "ray",
    on_progress: Callable[[Progress], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_features: Callable[[int, int], None] | None = None,
    stopping: Callable[[], bool] = lambda: False,
    weights: Weights | None = None,
    teacher: Teacher | None = None,
) -> TrainResult:
    """Train a model of `family_name` on the dataset's train split, and write it to `folder`/model.

    `key` names the run, `digest` the dataset's version; `on_start` hears how many steps an earlier attempt has done,
    `on_features` of how many of how many pictures there are cached features, where they are computed. `weights` are
    those that `config.transfer.weights` names, if it names any, and `teacher` the model of `config.distil.teacher`
    (tasks.weights). Once `stopping()` is true, a checkpoint is kept at the next step, and Interrupted raised. It may be
    called from any thread, and often. Raises ValueError for parameters that do not fit the dataset or the cluster, and
    where `folder` was begun with other data, weights or teacher; FloatingPointError for a loss that is not finite.
    """
    if (folder / "result.json").is_file():
        return read_result(folder)
    layout = begin_run(family_name, config, dataset, folder, digest, weights, teacher)
    require_same_executor(folder, executor)
    listener = Listener(folder, on_progress, on_start, stopping, on_features)
    fit_somewhere = on_ray() if executor == "ray" else fit_in_process
    threads = torch.get_num_threads()
    try:
        state = fit_somewhere(family_name, config, dataset, layout, folder, listener, weights, teacher)
    finally:
        torch.set_num_threads(threads)
    if not state["ended"]:
        listener.close()
        raise Interrupted(state["step"])
    return keep(family_name, config, dataset, folder, key, digest, state, listener, weights, teacher)


def require_same_executor(folder: Path, executor: Executor) -> None:
    """Raise ValueError if a run is to go on whose checkpoints are of the other executor."""
    other: Executor = "in_process" if executor == "ray" else "ray"
    if not (folder / "result.json").is_file() and any((folder / CHECKPOINTS[other]).glob("*")):
        raise ValueError(
            f"run {folder.name} was begun with executor {other}; go on with it: --executor {other}"
        )


def begin_run(
    family_name: str, config: Any, dataset: Dataset, folder: Path, digest: str, weights: Weights | None,
    teacher: Teacher | None,
) -> Layout:  # fmt: skip
    """Begin a run's folder, or go on in it; raises what `checked_layout` and `require_same_beginning` do."""
    layout = checked_layout(family_name, config, dataset, weights, teacher)
    folder.mkdir(parents=True, exist_ok=True)
    require_same_beginning(
        folder, digest, weights.sha256 if weights else "", teacher.sha256 if teacher else ""
    )
    return layout


def checked_layout(
    family_name: str, config: Any, dataset: Dataset, weights: Weights | None, teacher: Teacher | None
) -> Layout:
    """The layout of the train split; raises ValueError, before anything starts, for what training could not use."""
    dataset.require("train")
    if weights is None and "transfer" in type(config).model_fields and config.transfer.weights:
        raise ValueError(f"transfer.weights (={config.transfer.weights}) were not read: see tasks.weights")
    require_teacher(config, dataset.info, teacher)
    layout = FAMILIES[family_name].layout(config, dataset)
    settings = config.train
    sizes = {BatchPlan.of(settings, layout, 0, number).batch_size for number in settings.world_sizes}
    if len(sizes) > 1:
        raise ValueError(
            f"train.batch_size (={settings.batch_size}) must stay the same for every number of workers from "
            f"train.min_workers (={settings.min_workers}) on, and {layout.num_rows} training images would give a step "
            f"{' or '.join(map(str, sorted(sizes)))}: lower it"
        )
    if layout.people and settings.min_workers and settings.accumulate_batches > 1:
        raise ValueError(
            f"train.min_workers (={settings.min_workers}) must be 0 with sampling.pictures_per_person and "
            f"train.accumulate_batches (={settings.accumulate_batches}) above 1: which people meet in a part of a "
            "batch depends on the number of workers"
        )
    return layout


def keep(
    family_name: str, config: Any, dataset: Dataset, folder: Path, key: str, digest: str, state: dict[str, Any],
    listener: Listener, weights: Weights | None, teacher: Teacher | None,
) -> TrainResult:  # fmt: skip
    """Write what a run that has ended leaves: history, model, and the result, last."""
    listener.close()
    family = FAMILIES[family_name]
    card = family.card(config, dataset.info, digest, key)
    if weights is not None:
        trained = config.transfer.mode if "transfer" in type(config).model_fields else "none"
        begun = InitialWeights(
            source=weights.source, sha256=weights.sha256, trained=trained, about=weights.about
        )
        card = card.model_copy(update={"initial_weights": begun})
    if teacher is not None:
        by = TaughtBy(source=teacher.source, sha256=teacher.sha256)
        card = card.model_copy(update={"taught_by": by})
    model = family.rebuild(card, card.members[0])
    model.load_state_dict(family.kept(result_weights(state)))
    save_model(folder / "model", card, [model])
    images = state["step"] * min(config.train.batch_size, dataset.info.num_images("train"))
    result = TrainResult(
        model_folder=folder / "model",
        num_steps=state["step"],
        train_time_s=state["time_s"],
        first_step_s=listener.first_step_s,
        images_per_s=images / max(state["time_s"], 1e-9),
        input_wait=state["waited_s"] / max(state["time_s"], 1e-9),
        resumed_from_step=listener.resumed_from_step,
        metrics=state["metrics"],
        cpu_s=state["cpu_s"],
        trained_on=state["trained_on"],
        ended_early=state.get("early", ""),  # not in checkpoints of before it was kept
    )
    write_result(folder, result)
    return result


def on_ray() -> Callable[..., dict[str, Any]]:
    from tasks.raytrain import fit_on_ray  # here: a run in this process needs no Ray

    return fit_on_ray


# --- in this process -------------------------------------------------------------------------------------------


def decode_here(family: Family, dataset: Dataset, split: Split, config: Any) -> Any:
    """The records of a split, decoded by this process."""
    shards = dataset.shards(split)
    pieces = [family.decode(read_rows(shard, family.columns), dataset.info, config) for shard in shards]
    arrays = join_arrays(pieces, family.empty(dataset.info, config))
    return family.records({name: torch.from_numpy(array) for name, array in arrays.items()})


def fit_in_process(
    family_name: str, config: Any, dataset: Dataset, layout: Layout, folder: Path, listener: Listener,
    weights: Weights | None, teacher: Teacher | None,
) -> dict[str, Any]:  # fmt: skip
    family, info = started(family_name, weights, caches(config)), dataset.info
    torch.set_num_threads(config.train.cpus_per_worker or torch.get_num_threads())
    if config.train.gpus_per_worker and not torch.cuda.is_available():
        raise ValueError(
            f"train.gpus_per_worker (={config.train.gpus_per_worker:g}) needs a GPU, and torch finds none here; "
            "set it to 0"
        )
    device = torch.device("cuda" if config.train.gpus_per_worker else "cpu")
    family = taught(family, teacher, config, device)

    features = None
    if weights and caches(config):
        features = cached_features(dataset, config, weights, compute_here, on_progress=listener.features)

    def feed(split: Split) -> Feed:
        if features is not None:
            samples = family.records(
                {name: torch.from_numpy(array) for name, array in features[split].items()}
            )
            return resident(family, samples.to(device), info, config)
        if mode == "streaming":
            return streamed_here(family, dataset, split, config)
        return resident(family, decode_here(family, dataset, split, config).to(device), info, config)

    mode = "resident" if features is not None else choose_mode(family, dataset, config)
    feeds = Feeds(feed("train"), feed("val"), info.num_images("val"))
    session = LocalSession(folder / CHECKPOINTS["in_process"], device, listener.hear, listener.stopping)
    return fit_from(feeds, family, config, info, layout, session, listener.start)


class LocalSession:
    """The only rank of a run in one process; checkpoints are files that appear whole, and on the disk.

    `files` is the disk that they lie on: the driver's, wherever this process is.
    """

    rank, world_size = 0, 1

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        hear: Callable[[Progress], None],
        stopping: Callable[[], bool] = lambda: False,
        files: AbstractFileSystem | None = None,
    ) -> None:
        self.folder, self.device, self.hear, self.stopping = folder, device, hear, stopping
        self.files = files or LocalFileSystem()
        self.files.makedirs(str(folder), exist_ok=True)

    def _checkpoints(self) -> list[str]:
        names = self.files.ls(str(self.folder), detail=False)
        return sorted(name for name in names if Path(name).match("step-*.pt"))

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read: of one that a disk has damaged the older one takes the place.

        Raises what the newest one raises where none can be read, and where the fault is not the file's.
        """
        fault: Exception | None = None
        for name in reversed(self._checkpoints()):
            try:
                with self.files.open(name) as stream:
                    return torch.load(stream, map_location="cpu", weights_only=True)
            except (MemoryError, OSError):
                raise
            except Exception as error:  # damaged files make the reader raise nearly anything
                _logger.warning("%s cannot be read (%s): the checkpoint before it is looked for", name, error)
                fault = fault or error
        if fault is not None:
            raise fault
        return None

    def save(self, state: dict[str, Any], step: int) -> None:
        file = self.folder / f"step-{step:09d}.pt"
        here = isinstance(self.files, LocalFileSystem)
        with whole(file) if here else self.files.open(str(file), "wb") as stream:
            torch.save(state, stream)
        for old in self._checkpoints()[:-NUM_KEPT_CHECKPOINTS]:
            self.files.rm(old)

    def report(self, progress: Progress) -> None:
        self.hear(progress)
