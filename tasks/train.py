"""One training run: in this process, or as one Ray Train run of one to many workers.

The run's folder holds everything it needs to go on: `checkpoints/` (in this process) or `ray/` (Ray Train), the
course of its metrics in `history.csv`, and at the end `model/` and `result.json`. Called again for a folder that
has a result, `train` returns it; for a folder with checkpoints, it resumes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import torch

from data.dataset import Dataset, Split, read_rows
from data.stream import Layout, layout_of
from models.classification import without_sides
from tasks.batches import BatchPlan
from tasks.calls import compute_features
from tasks.card import InitialWeights, TaughtBy
from tasks.cluster import (
    Crew,
    cluster_info,
    connect,
    decode_split,
    join_arrays,
    open_reader,
    readonly_tensors,
    require_resources,
)
from tasks.distil import Teacher, keep_teacher, require_teacher, taught
from tasks.families import FAMILIES, Family
from tasks.features import cached_features, caches, compute_here, started
from tasks.feed import (
    PREFETCH_BATCHES,
    Feed,
    Feeds,
    cache_bytes,
    choose_mode,
    fit_from,
    resident,
    stream_depth,
    streamed_here,
)
from tasks.loop import Progress, Session, result_weights
from tasks.mailbox import open_mailbox
from tasks.modelfile import save_model
from tasks.raytrain import Follower, RaySession, Trainer, process_group
from tasks.result import Listener, TrainResult, read_result, write_result
from tasks.stopping import Interrupted
from tasks.transfer import Weights

NUM_KEPT_CHECKPOINTS = 2
MAX_WORKER_FAILURES = 3
Executor = Literal["ray", "in_process"]
CHECKPOINTS: dict[Executor, str] = {"ray": "ray", "in_process": "checkpoints"}  # where in a run's folder


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
    stopping: Callable[[], bool] = lambda: False,
    weights: Weights | None = None,
    teacher: Teacher | None = None,
) -> TrainResult:
    """Train a model of `family_name` on the dataset's train split, and write it to `folder`/model.

    `key` names the run, `digest` the dataset's version; `on_start` hears how many steps an earlier attempt has done.
    `weights` are those that `config.transfer.weights` names, if it names any, and `teacher` the model of
    `config.distil.teacher` (tasks.weights). Once `stopping()` is true, a checkpoint is kept at the next step, and
    Interrupted raised. It may be called from any thread, and often. Raises ValueError for parameters that do not fit
    the dataset or the cluster, FloatingPointError for a loss that is not finite.
    """
    if (folder / "result.json").is_file():
        return read_result(folder)
    layout = checked_layout(config, dataset, weights, teacher)
    folder.mkdir(parents=True, exist_ok=True)
    keep_teacher(folder, teacher)
    other: Executor = "in_process" if executor == "ray" else "ray"
    if any((folder / CHECKPOINTS[other]).glob("*")):
        raise ValueError(
            f"run {folder.name} was begun with executor {other}; go on with it: --executor {other}"
        )
    listener = Listener(folder, on_progress, on_start, stopping)
    fit_somewhere = fit_on_ray if executor == "ray" else fit_in_process
    threads = torch.get_num_threads()
    try:
        state = fit_somewhere(family_name, config, dataset, layout, folder, listener, weights, teacher)
    finally:
        torch.set_num_threads(threads)
    if not state["ended"]:
        listener.close()
        raise Interrupted(state["step"])
    return keep(family_name, config, dataset, folder, key, digest, state, listener, weights, teacher)


def checked_layout(config: Any, dataset: Dataset, weights: Weights | None, teacher: Teacher | None) -> Layout:
    """The layout of the train split; raises ValueError, before anything starts, for what training could not use."""
    dataset.require("train")
    if weights is None and "transfer" in type(config).model_fields and config.transfer.weights:
        raise ValueError(f"transfer.weights (={config.transfer.weights}) were not read: see tasks.weights")
    require_teacher(config, dataset.info, teacher)
    layout = layout_of(dataset, "train")
    BatchPlan.of(config.train, layout, 0, config.train.num_workers)
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
        begun = InitialWeights(source=weights.source, sha256=weights.sha256, trained=config.transfer.mode)
        card = card.model_copy(update={"initial_weights": begun})
    if teacher is not None:
        by = TaughtBy(source=teacher.source, sha256=teacher.sha256)
        card = card.model_copy(update={"taught_by": by})
    model = family.rebuild(card, card.members[0])
    model.load_state_dict(without_sides(result_weights(state)))
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
    )
    write_result(folder, result)
    return result


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

    features = cached_features(dataset, config, weights, compute_here) if weights and caches(config) else None

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
    """The only rank of a run in this process; checkpoints are folders, renamed into place when whole."""

    rank, world_size = 0, 1

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        hear: Callable[[Progress], None],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder, self.device, self.hear, self.stopping = folder, device, hear, stopping
        folder.mkdir(parents=True, exist_ok=True)

    def _checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def load(self) -> dict[str, Any] | None:
        found = self._checkpoints()
        return torch.load(found[-1], map_location="cpu", weights_only=True) if found else None

    def save(self, state: dict[str, Any], step: int) -> None:
        partial = self.folder / "partial"
        torch.save(state, partial)
        partial.replace(self.folder / f"step-{step:09d}.pt")
        for old in self._checkpoints()[:-NUM_KEPT_CHECKPOINTS]:
            old.unlink()

    def report(self, progress: Progress) -> None:
        self.hear(progress)


# --- on Ray ----------------------------------------------------------------------------------------------------


def fit_on_ray(
    family_name: str, config: Any, dataset: Dataset, layout: Layout, folder: Path, listener: Listener,
    weights: Weights | None, teacher: Teacher | None,
) -> dict[str, Any]:  # fmt: skip
    connect()
    settings = config.train
    cpus = require_resources(settings.num_workers, settings.cpus_per_worker, settings.gpus_per_worker)
    mailbox = open_mailbox()
    payload = {
        "family": family_name,
        "config": config,
        "info": dataset.info,
        "layout": layout,
        "weights": [ray.put(weights)],  # in a list, so that it is the worker who fetches them
        "teacher": [ray.put(teacher)],
        **source_of(family_name, config, dataset, layout, weights),
        "mailbox": mailbox,
        "threads": cpus,
    }
    resources = {"CPU": float(cpus)} | ({"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {})
    trainer = Trainer(
        # Not as `train_loop_config`: the controller would unpickle it, and import torch for that before all else.
        partial(train_on_worker, payload),
        backend_config=process_group(settings),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=bool(settings.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS["ray"],
            storage_path=str(folder.resolve()),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=NUM_KEPT_CHECKPOINTS),
            failure_config=ray.train.FailureConfig(
                max_failures=MAX_WORKER_FAILURES, controller_failure_limit=2
            ),
        ),
    )
    follower = Follower(mailbox, listener)
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        follower.stop()
        raise follower.error or RuntimeError(f"training failed: {last_line(error)}") from error
    finally:
        follower.stop()
        for actor in (mailbox, *payload.get("readers", {}).values()):
            ray.kill(actor)
    if follower.error is not None:
        raise follower.error
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as path:
        return torch.load(Path(path) / "state.pt", map_location="cpu", weights_only=True)


def source_of(
    family_name: str, config: Any, dataset: Dataset, layout: Layout, weights: Weights | None
) -> dict[str, Any]:
    """What workers get their pictures from: references to decoded splits, or actors that hand out rows.

    In place of pictures, references to their features where a run trains on those.
    """
    if weights and caches(config):
        found = cached_features(dataset, config, weights, compute_features, cluster_info().num_cpus)
        return {"resident": {split: [ray.put(arrays)] for split, arrays in found.items()}}
    family = FAMILIES[family_name]
    splits: tuple[Split, ...] = ("train", "val")
    if choose_mode(family, dataset, config) == "resident":
        references = {split: decode_split(family_name, dataset, split, config) for split in splits}
        # in lists: Ray would fetch bare references before the worker starts
        return {"resident": {split: [reference] for split, reference in references.items()}}
    depth = stream_depth(family, dataset, config, layout)
    readers = {
        split: open_reader(family_name, dataset, split, cache_bytes(config, split)) for split in splits
    }
    return {"readers": readers, "depth": depth}


def last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]


def train_on_worker(payload: dict[str, Any]) -> None:
    """What each Ray Train worker runs.

    An exception of ours (a parameter that does not fit, a loss that is not finite) would only come again: the first
    worker to meet one leaves it in the mailbox, and after Ray's restart all workers return at once. A lone worker does
    so with every exception; among several, a RuntimeError may tell of another one's death, which a restart mends.
    """
    mailbox = payload["mailbox"]
    if ray.get(mailbox.failed.remote()):
        return
    lone = payload["config"].train.num_workers == 1
    try:
        session = RaySession(mailbox)
        run_rank(payload, session, session.start)
    except Exception as error:
        if lone or isinstance(error, (ValueError, FloatingPointError)):
            # of a helper's error the error itself, without the helper's traceback in its text
            own = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            ray.get(mailbox.put.remote(("error", own)))
        raise


def run_rank(payload: dict[str, Any], session: Session, on_start: Callable[[int], None]) -> None:
    torch.set_num_threads(payload["threads"])
    config, info, layout = payload["config"], payload["info"], payload["layout"]
    feeds = streamed_feeds(payload) if "readers" in payload else resident_feeds(payload, session.device)
    [weights] = ray.get(payload["weights"])
    [teacher] = ray.get(payload["teacher"])
    family = taught(started(payload["family"], weights, caches(config)), teacher, config, session.device)
    fit_from(feeds, family, config, info, layout, session, on_start)


def resident_feeds(payload: dict[str, Any], device: torch.device) -> Feeds:
    """Batches of splits that lie decoded in the object store, or on this rank's GPU."""
    name, config, info = payload["family"], payload["config"], payload["info"]
    cached = caches(config)  # features are not augmented
    [weights] = ray.get(payload["weights"])
    family, num_workers = started(name, weights, cached), 0 if cached else config.train.augment_workers
    references = {split: reference for split, [reference] in payload["resident"].items()}
    samples = {split: family.records(readonly_tensors(ray.get(references[split]))) for split in references}
    val = resident(family, samples["val"].to(device), info, config)
    if num_workers:
        depth = PREFETCH_BATCHES * num_workers
        crew = Crew(name, info, config, num_workers=num_workers, depth=depth, arrays=references["train"])
        return Feeds(crew.batches, val, len(samples["val"]))
    train = resident(family, samples["train"].to(device), info, config)
    return Feeds(train, val, len(samples["val"]))


def streamed_feeds(payload: dict[str, Any]) -> Feeds:
    """Batches of rows that the readers hand out, made by helpers ahead of training."""
    config, depth, readers = payload["config"], payload["depth"], payload["readers"]
    num_workers = min(config.train.augment_workers, depth)
    crew = Crew(payload["family"], payload["info"], config, num_workers=num_workers, depth=depth)
    return Feeds(
        lambda jobs: crew.batches(jobs, readers["train"]),
        lambda jobs: crew.batches(jobs, readers["val"]),
        payload["info"].num_images("val"),
    )
