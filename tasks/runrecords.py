"""What MLflow keeps of finished training runs: parameters, the metrics of their tests, and their predictions."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from data.files import holding, scratch
from data.storage import NAME
from tasks.cost import WAITED, Cost, cost_of, summed
from tasks.modelstore import find_versions, version_at
from tasks.paths import runs
from tasks.predict import CLASSIFYING
from tasks.recordstore import connect, tracking_uri
from tasks.registry import end_run, run_with_key
from tasks.versions import open_stored

SEARCHES = "convoy/searches"  # the experiment of searches, and of their trials
FAMILY_TAG = "convoy.family"  # of a search: its experiment is that of all families
TESTED = "test."  # before the names of the metrics of a run's test
TRIAL_TAG = "search.trial"  # the number, of a trial and of the run that trains it in full
EARLY_TAG = "trained.ended_early"  # see tasks.result
PREDICTIONS = "evaluation/predictions.parquet"
# of an ensemble's record the keys of its members, and of a member's the record of its ensemble
MEMBERS_TAG, PARENT_TAG = "ensemble.members", "mlflow.parentRunId"
JOINED = " | "  # between the values of its members in an ensemble's record, where they differ
PER_PAGE = 1000


@dataclass(frozen=True)
class RunRecord:
    """A run that was trained and tested."""

    key: str
    run_id: str
    experiment: str  # id: one for each family
    start_ms: int
    parameters: dict[str, str]  # of an ensemble also `members`, how many it has
    metrics: dict[str, float]  # of the test
    cost: Cost | None
    input_wait: float | None  # share of its training in which it waited for pictures
    digest: str  # DVC's, of the dataset
    commit: str  # of the code; "" if not known, with a "+" where files differed from it
    ended_early: str  # why its training ended before its epochs were over; "" where it did not

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its network, or those of an ensemble's members; one, where theirs are the same."""
        return tuple(map(int, self.parameters["train.seed"].split(JOINED)))

    @property
    def seed(self) -> int | str:
        """The seed; of an ensemble those of its members in one text, `0 | 1 | 2`."""
        return self.seeds[0] if len(self.seeds) == 1 else JOINED.join(map(str, self.seeds))


@dataclass(frozen=True)
class Predictions:
    """What a run's test gave for each image."""

    ids: list[str]
    labels: np.ndarray  # (N,) int64
    probabilities: np.ndarray  # (N, K) float32
    groups: list[str]  # (N,); where a test of before they were kept has none, each image is one of its own


def named_records(names: Sequence[str]) -> list[RunRecord]:
    """The runs of these keys, runs:/ID or models:/NAME…; raises ValueError for one that is not there or not tested.

    And for one of a family whose tests give no probabilities of classes.
    """
    records = []
    for name in dict.fromkeys(names):
        run = find_run(name)
        family = connect().get_experiment(run.info.experiment_id).name.removeprefix("convoy/")
        if any(metric.startswith(TESTED) for metric in run.data.metrics):
            require_compared(f"run {name}", family)
        if not _is_tested(run):
            key = run.data.tags.get("convoy.key", name)
            raise ValueError(
                f"run {name} ({run.info.status}) was not tested; do so with: ./convoy train --resume {key} "
                "--stop-after evaluate"
            )
        records.append(_record(run))
    return records


def records_on(dataset: str) -> list[RunRecord]:
    """All finished and tested runs on a dataset, those of a family together, the earliest first.

    Without the members of ensembles, which were tested together. Where there are none, raises FileNotFoundError for a
    dataset that is not here, and ValueError for one of a family whose tests give no probabilities of classes.
    """
    tested = [
        _record(run)
        for family in CLASSIFYING
        for run in _runs_on(family, dataset)
        if run.info.status == "FINISHED" and _is_tested(run) and PARENT_TAG not in run.data.tags
    ]
    if not tested:
        family = open_stored(dataset).info.family
        require_compared(repr(dataset), family)
        raise ValueError(
            f"no finished and tested run on {dataset!r}; begin one with: ./convoy train {family} --dataset {dataset}"
        )
    return tested


def require_compared(what: str, family: str) -> None:
    """Raise ValueError for a run or dataset of a family whose tests give no probabilities of classes."""
    if family not in CLASSIFYING:
        raise ValueError(
            f"{what} is for {family}, whose tests give no probabilities of classes; compare is for "
            f"{', '.join(CLASSIFYING)}. Test a model by: ./convoy evaluate MODEL; detectors beside "
            "each other by: ./convoy evaluate A B"
        )


def _runs_on(family: str, dataset: str) -> list[Run]:
    """All runs of a family on a dataset, however they ended, the earliest first."""
    return _runs_in(f"convoy/{family}", dataset)


def _runs_in(name: str, dataset: str, condition: str = "") -> list[Run]:
    """All runs of an experiment on a dataset, however they ended, the earliest first."""
    client = connect()
    experiment = client.get_experiment_by_name(name)
    found: list[Run] = []
    token: str | None = ""
    # a name that no dataset can have is in no record, and might be no text of MLflow's filters
    while token is not None and experiment is not None and NAME.fullmatch(dataset):
        page = client.search_runs(
            [experiment.experiment_id],
            f"params.dataset = '{dataset}'{condition}",
            max_results=PER_PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token or None,
        )
        found += page
        token = page.token or None
    return found


def costs_until(family: str, dataset: str, ends: Sequence[datetime]) -> list[Cost]:
    """What the runs of a family on a dataset cost together, that began after the end before and up to each of `ends`.

    `ends` are in their order. Runs that failed or were stopped count too, and so do searches, with all their trials.
    """
    searches = _runs_in(SEARCHES, dataset, f" and tags.`{FAMILY_TAG}` = '{family}'")
    began = [
        (datetime.fromtimestamp(run.info.start_time / 1000, UTC), cost_of(run.data.metrics, run.data.tags))
        for run in [*_runs_on(family, dataset), *searches]
    ]
    starts = [datetime.min.replace(tzinfo=UTC), *ends]
    return [
        summed(cost for when, cost in began if cost is not None and start < when <= end)
        for start, end in zip(starts, ends, strict=False)
    ]


def recorded_cost(run_id: str) -> Cost | None:
    """What a run cost, by its record; None where that was not measured, or the record is gone."""
    try:
        data = connect().get_run(run_id).data
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return cost_of(data.metrics, data.tags)


def find_run(name: str) -> Run:
    """The run of a key, runs:/ID or models:/NAME…; raises ValueError for one that is not there."""
    client = connect()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    run = _run_named(client, name, experiments)
    if run is None:
        raise ValueError(
            f"no run {name!r}: give a run key, runs:/ID, models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    return run


def finished_keys() -> set[str]:
    """The keys of all runs that ended as they should."""
    return {
        run.data.tags["convoy.key"]
        for run in _all_runs("attributes.status = 'FINISHED'")
        if "convoy.key" in run.data.tags
    }


def close_lost() -> None:
    """Mark the runs KILLED that MLflow believes to run, and whose process on this machine was killed."""
    for run in _all_runs("attributes.status = 'RUNNING'"):
        tags = run.data.tags
        # a trial, KEY.NUMBER, has a record of its own, and its search's folder
        key = tags.get("convoy.key", "").removesuffix(f".{tags.get(TRIAL_TAG, '')}")
        lock = runs() / key / "lock"
        with holding(lock) as is_over:
            if lock.is_file() and is_over:
                end_run(run.info.run_id, "KILLED")


def recorded_digests() -> set[str]:
    """DVC's digests that any run or version of a model names, deleted runs too."""
    tagged = [
        *(run.data.tags for run in _all_runs("")),
        *(each.tags for each in find_versions(connect(), "")),
    ]
    return {tags["dvc.digest"] for tags in tagged if tags.get("dvc.digest")}


def _all_runs(condition: str) -> Iterator[Run]:
    """All runs of all experiments that meet the condition, deleted ones too."""
    client = connect()
    kinds = ViewType.ALL
    experiments = [each.experiment_id for each in client.search_experiments(view_type=kinds)]
    token: str | None = ""
    while token is not None:
        page = client.search_runs(
            experiments, condition, kinds, max_results=PER_PAGE, page_token=token or None
        )
        yield from page
        token = page.token or None


def _run_named(client: MlflowClient, name: str, experiments: list[str]) -> Run | None:
    if name.startswith("models:/"):
        return client.get_run(version_at(client, name).run_id)
    if not name.startswith("runs:/"):
        return run_with_key(name)
    run_id = name.removeprefix("runs:/")
    found = client.search_runs(experiments, f"attributes.run_id = '{run_id}'") if run_id.isalnum() else []
    return found[0] if found else None


def _is_tested(run: Run) -> bool:
    return f"{TESTED}accuracy" in run.data.metrics and "train.seed" in run.data.params


def _record(run: Run) -> RunRecord:
    metrics = {
        name.removeprefix(TESTED): value
        for name, value in run.data.metrics.items()
        if name.startswith(TESTED)
    }
    tags = run.data.tags
    commit = tags.get("git.commit", "") + ("+" if tags.get("git.dirty") == "true" else "")
    members = tags[MEMBERS_TAG].split(", ") if MEMBERS_TAG in tags else []
    return RunRecord(
        key=tags.get("convoy.key", run.info.run_id),
        run_id=run.info.run_id,
        experiment=run.info.experiment_id,
        start_ms=run.info.start_time,
        parameters=dict(run.data.params) | ({"members": str(len(members))} if members else {}),
        metrics=metrics,
        cost=cost_of(run.data.metrics, tags),
        input_wait=run.data.metrics.get(WAITED),
        digest=tags.get("dvc.digest", ""),
        commit=commit,
        ended_early=tags.get(EARLY_TAG, ""),
    )


def read_predictions(record: RunRecord) -> Predictions | None:
    """The predictions of a run's test, from MLflow; None where it has none, as a member of an ensemble."""
    if PREDICTIONS not in kept_files(record.run_id, "evaluation"):
        return None
    with fetched(record.run_id, PREDICTIONS) as path:
        table = pq.read_table(path)
    with fetched(record.run_id, "evaluation/per_class.csv") as path, path.open(newline="") as file:
        classes = [row["class"] for row in csv.DictReader(file)]
    places = {name: place for place, name in enumerate(classes)}
    labels = np.array([places[name] for name in table["label"].to_pylist()], np.int64)
    flat = table["probabilities"].combine_chunks().flatten().to_numpy()
    groups = table["group" if "group" in table.column_names else "id"].to_pylist()
    return Predictions(table["id"].to_pylist(), labels, flat.reshape(len(labels), len(classes)), groups)


def kept_files(run_id: str, folder: str) -> set[str]:
    """The paths of the files in a folder of a run's artifacts."""
    return {file.path for file in connect().list_artifacts(run_id, folder)}


@contextmanager
def fetched(run_id: str, path: str) -> Iterator[Path]:
    """A file that is kept with a run, here, for as long as it is looked at; raises MLflow's error where it is gone."""
    with scratch("artifact") as folder:  # MLflow's own would stay
        uri = f"runs:/{run_id}/{path}"
        yield Path(download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking_uri()))


def read_artifact(run_id: str, path: str) -> bytes | None:
    """A file that was kept with a run; None where there is none of that name."""
    if path not in kept_files(run_id, path.rpartition("/")[0]):
        return None
    with fetched(run_id, path) as file:
        return file.read_bytes()
