"""MLflow: the record of what happened, and the models that came of it.

Everything goes through a client bound to `tracking_uri()`: no active run, no global state, so that any thread may
log. All of it is called on the driver. A run is found by its key, so that a retry goes on with the same record; a
model version is created last, when all its files are in place.
"""

import json
import logging
import os
import posixpath
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource
from mlflow.entities import Dataset as DatasetRecord
from mlflow.entities import DatasetInput, InputTag, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from data.dataset import SPLITS, Dataset
from data.files import scratch
from data.parameters import did_you_mean
from tasks.modelfile import load_card, model_sha256
from tasks.modelstore import files_of, find_versions, registered_addresses, version_at
from tasks.packaging import save_package
from tasks.paths import home, runs
from tasks.recordstore import PROBE_TIMEOUT_S, connect, first_line, require_answer, shown_uri, tracking_uri

Status = Literal["FINISHED", "FAILED", "KILLED"]

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
SAMPLE_EVERY_S = 2.0
REFUSED = re.compile(r"[^/\w.\- :]")  # of a metric's name
LONGEST_NAME = 240  # MLflow takes 250
PER_BATCH = 100  # what MLflow takes of parameters or tags in one request

_logger = logging.getLogger(__name__)
_unsent: dict[str, list[Metric]] = {}  # run → metrics that a server did not take yet


def start_run(
    *,
    key: str,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    parameters: Mapping[str, Any],
    dataset: Dataset | None = None,
    digest: str = "",
) -> str:
    """Open the record of the run `key` and return MLflow's id of it; `dataset` None: it read none.

    A key that has a record goes on with it, status RUNNING again, whatever its status was. Raises ValueError if that
    record was made with other parameters, or for a key that is no file name.
    """
    if not KEY.fullmatch(key):
        raise ValueError(f"run key (={key!r}) must be letters, digits, '.', '_' or '-', at most 200 of them")
    client = connect()
    experiment_id = ensure_experiment(client, experiment)
    run = _find_run(client, key, [experiment_id])
    if run is None:
        own = {"mlflow.source.name": "convoy", "mlflow.source.git.commit": tags.get("git.commit", "")}
        run = client.create_run(experiment_id, tags={**own, **tags, "convoy.key": key}, run_name=name)
        for twin in _runs_of(
            client, key, [experiment_id]
        ):  # of a request that was sent again: its answer was lost
            if twin.info.run_id != run.info.run_id:
                client.delete_run(twin.info.run_id)
    else:
        client.update_run(run.info.run_id, status="RUNNING")
        set_tags(run.info.run_id, tags)
    _log_parameters(client, run, {name: str(value) for name, value in parameters.items()})
    if dataset is not None:
        client.log_inputs(run.info.run_id, [_dataset_input(dataset, digest)])
    return str(run.info.run_id)


def ensure_experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment of that name, which is made if there is none."""
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        raise ValueError(
            f"experiment {name!r} was deleted in MLflow; "
            f"restore it: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    if found is not None:
        return str(found.experiment_id)
    # A server has a place for artifacts of its own; without one they would land in the current folder.
    local = None if tracking_uri().startswith("http") else (home() / "mlflow" / name).as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=local))
    except MlflowException:
        found = client.get_experiment_by_name(name)  # another process made it meanwhile
        if found is None:
            raise
        return str(found.experiment_id)


def _find_run(client: MlflowClient, key: str, experiment_ids: list[str]) -> Run | None:
    return next(iter(_runs_of(client, key, experiment_ids)), None)


def _runs_of(client: MlflowClient, key: str, experiment_ids: list[str]) -> list[Run]:
    return list(client.search_runs(experiment_ids, f"tags.`convoy.key` = '{key}'"))


def _log_parameters(client: MlflowClient, run: Run, parameters: dict[str, str]) -> None:
    have = run.data.params
    changed = [
        f"{k} {have[k]} → {parameters[k]}" for k in parameters if k in have and have[k] != parameters[k]
    ]
    if changed:
        raise ValueError(
            f"run {run.data.tags['convoy.key']!r} was started with other parameters ({', '.join(changed)}); "
            "resume it with the same ones, or start a new run"
        )
    missing = [Param(k, v) for k, v in parameters.items() if k not in have]
    for start in range(0, len(missing), PER_BATCH):
        client.log_batch(run.info.run_id, params=missing[start : start + PER_BATCH])


def _dataset_input(dataset: Dataset, digest: str) -> DatasetInput:
    """The dataset as MLflow shows it, by DVC's digest; by the source's hash where DVC does not track it."""
    info = dataset.info
    record = MetaDataset(
        LocalArtifactDatasetSource(str(dataset.path)),
        name=info.name,
        digest=digest or f"untracked-{info.source_sha256[:24]}",
    ).to_dict()
    profile = {split: info.num_images(split) for split in SPLITS} | {
        "classes": len(info.classes), "source": info.source, "licence": info.licence,
    }  # fmt: skip
    return DatasetInput(
        DatasetRecord(**{**record, "profile": json.dumps(profile)}),
        [InputTag("mlflow.data.context", "training")],
    )


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run, over what they were."""
    connect().log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def get_tags(run_id: str, names: Sequence[str]) -> dict[str, str]:
    """Those of the named tags that a run has."""
    tags = connect().get_run(run_id).data.tags
    return {name: tags[name] for name in names if name in tags}


def get_metrics(run_id: str) -> dict[str, float]:
    """The metrics of a run, each as it was logged last."""
    return dict(connect().get_run(run_id).data.metrics)


def latest(run_id: str) -> dict[str, tuple[int, float]]:
    """Of each metric of a run the last step that it was logged of, and its value there."""
    data = connect().get_run(run_id).data.to_proto()
    return {metric.key: (int(metric.step), float(metric.value)) for metric in data.metrics}


def logged_before(run_id: str) -> dict[str, tuple[int, float]]:
    """What an earlier attempt has logged, as `latest` has it; nothing where a server is away, which stops nobody."""
    try:
        require_answer(PROBE_TIMEOUT_S)  # once in an attempt; without an answer, steps are logged again
        if run_id in _unsent:  # of an attempt of this process
            _send(run_id)
        return latest(run_id)
    except (MlflowException, OSError) as error:
        _logger.warning(
            "MLflow did not say what run %s has; it may get some of it twice: %s", run_id, first_line(error)
        )
        return {}


def log_progress(run_id: str, step: int, metrics: Mapping[str, float]) -> None:
    """Log metrics of a step while training runs.

    A server that is away does not stop the training: what it did not take is kept and sent with the next metrics.
    """
    waiting = _unsent.setdefault(run_id, [])
    waiting.extend(_metrics(metrics, step))
    if trouble := _trouble_with(lambda: _send(run_id)):
        _logger.warning(
            "MLflow did not take %d metrics of run %s, they are kept: %s", len(waiting), run_id, trouble
        )


def _trouble_with(act: Callable[[], object]) -> str:
    """Do what a run must neither wait for nor end by; why MLflow did not take it, or "".

    A server is asked first whether it is there: MLflow's own client would try for minutes.
    """
    try:
        require_answer()
        act()
    except (MlflowException, OSError) as error:
        return first_line(error)
    return ""


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Log metrics, with all that `log_progress` still keeps; raises if MLflow does not take them.

    Those that the run has already, of an earlier attempt, are not logged again.
    """
    new = _metrics(metrics, step)
    told = {(metric.key, metric.step, metric.value) for metric in new}
    waiting = _unsent.setdefault(run_id, [])
    earlier = [metric for metric in waiting if (metric.key, metric.step, metric.value) not in told]
    waiting[:] = earlier + new  # if MLflow does not answer now, they wait with the others
    if not earlier:
        have = latest(run_id)
        waiting[:] = [metric for metric in new if have.get(metric.key) != (metric.step, metric.value)]
    _send(run_id)


def _metrics(metrics: Mapping[str, float], step: int) -> list[Metric]:
    now_ms = int(time.time() * 1000)
    values = zip(metric_names(list(metrics)), metrics.values(), strict=True)
    return [Metric(name, float(value), now_ms, step) for name, value in values]


def metric_names(names: Sequence[str]) -> list[str]:
    """Names as MLflow takes them, each of its own: what it refuses, as some classes are called, becomes `_`.

    Those that would then be the same have `.2`, `.3` … behind them, in their order.
    """
    taken: set[str] = set(names)
    safe = []
    for name in names:
        given = REFUSED.sub("_", name)[:LONGEST_NAME]
        if posixpath.normpath(given) != given:  # MLflow reads a slash as a folder's
            given = given.replace("/", "_")
        made, again = given, 2
        while made != name and made in taken:
            made, again = f"{given}.{again}", again + 1
        taken.add(made)
        safe.append(made)
    return safe


def _send(run_id: str) -> None:
    waiting = _unsent[run_id]
    while waiting:
        sent = waiting[:1000]
        connect().log_batch(run_id, metrics=sent, synchronous=True)
        del waiting[: len(sent)]


def log_folder(run_id: str, folder: Path, artifact_path: str) -> None:
    """Keep a folder's files, or one file, with the run, below `artifact_path`."""
    client = connect()
    if folder.is_dir():
        client.log_artifacts(run_id, str(folder), artifact_path)
    else:
        client.log_artifact(run_id, str(folder), artifact_path)


def log_missing(run_id: str, folder: Path, artifact_path: str) -> None:
    """Keep those of a folder's files with the run, below `artifact_path`, that it does not have, or not all of.

    The folder has no folders in it.
    """
    client = connect()
    have = {
        posixpath.basename(each.path): each.file_size for each in client.list_artifacts(run_id, artifact_path)
    }
    for file in sorted(folder.iterdir()):
        if have.get(file.name) != file.stat().st_size:
            client.log_artifact(run_id, str(file), artifact_path)


def show_folder(run_id: str, folder: Path, artifact_path: str) -> None:
    """As `log_missing`, while a run goes on: a server that is away does not stop it, and gets the files later."""
    if trouble := _trouble_with(lambda: log_missing(run_id, folder, artifact_path)):
        _logger.warning("MLflow did not take all of %s of run %s: %s", artifact_path, run_id, trouble)


@contextmanager
def system_metrics(run_id: str) -> Iterator[None]:
    """Sample processor, memory, disk, network and GPUs of this machine into the run's metrics `system/…`.

    Every 2 s, or as MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says; NVIDIA GPUs where pynvml is installed.
    """
    connect()
    monitor = SystemMetricsMonitor(
        run_id, sampling_interval=SAMPLE_EVERY_S, resume_logging=True, tracking_uri=tracking_uri()
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def finish_run(run_id: str, status: Status) -> str:
    """End a run; one that has ended already keeps its status. Returns the status that stands."""
    client = connect()
    if _unsent.pop(run_id, None):
        _logger.warning("run %s ends without its last metrics, which MLflow did not take", run_id)
    standing = str(client.get_run(run_id).info.status)
    if standing in ("RUNNING", "SCHEDULED"):
        client.set_terminated(run_id, status)
        return status
    return standing


def end_run(run_id: str, status: Status) -> None:
    """End a run that failed or was stopped: what ended it must be heard, so MLflow's own trouble is only a warning."""
    if trouble := _trouble_with(lambda: finish_run(run_id, status)):
        _logger.warning("MLflow was not told that run %s is %s: %s", run_id, status, trouble)


def run_url(run_id: str) -> str:
    """The run's page in MLflow's UI; where no server runs, the command that opens the UI."""
    uri = shown_uri()
    if not uri.startswith("http"):
        return shlex.join([str(Path(sys.executable).parent / "mlflow"), "ui", "--backend-store-uri", uri])
    return f"{uri.rstrip('/')}/#/experiments/{connect().get_run(run_id).info.experiment_id}/runs/{run_id}"


def register(
    run_id: str, model_folder: Path, *, name: str, example: Sequence[bytes], tags: Mapping[str, str]
) -> int:
    """Put the model in `model_folder` (see tasks.modelfile) into the registry under `name`; returns its version.

    `example`: encoded images kept as the model's input example. The same model of the same run is registered once.
    """
    client = connect()
    card = load_card(model_folder)
    sha256 = model_sha256(model_folder)
    if known := _versions_of(client, name, run_id, sha256):
        return known[0]
    own = {"convoy.model_sha256": sha256, "convoy.dataset": card.dataset, "convoy.family": card.family}
    run = client.get_run(run_id)
    experiment_id = run.info.experiment_id
    begun = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    cut_off = [each for each in begun if (each.name, each.tags.get("convoy.model_sha256")) == (name, sha256)]
    logged = (cut_off and cut_off[0]) or client.create_logged_model(
        experiment_id, name, run_id, tags={**tags, **own}, model_type=card.family
    )
    with scratch("model") as folder:
        package = folder / "package"
        save_package(package, model_folder, example, run_id, logged.model_id)
        client.log_model_artifacts(logged.model_id, str(package))
    client.finalize_logged_model(logged.model_id, "READY")
    if logged.model_id not in [output.model_id for output in run.outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    _ensure_registered(client, name, card.family)
    with _as_default():
        client.create_model_version(
            name, f"models:/{logged.model_id}", run_id, tags={**tags, **own}, model_id=logged.model_id
        )
    version, *twins = _versions_of(client, name, run_id, sha256)
    for twin in twins:  # MLflow's client asked again, whose first answer was lost
        client.delete_model_version(name, str(twin))
    return version


def _versions_of(client: MlflowClient, name: str, run_id: str, sha256: str) -> list[int]:
    """The versions of a registered model that are this model of this run, the first first."""
    found = find_versions(client, f"name = '{name}' and run_id = '{run_id}'")
    return sorted(int(each.version) for each in found if each.tags.get("convoy.model_sha256") == sha256)


def _ensure_registered(client: MlflowClient, name: str, family: str) -> None:
    try:
        client.create_registered_model(name, tags={"convoy.family": family})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def _as_default() -> Iterator[None]:
    """MLflow's SQL store looks a model's files up in the default store, whatever store the client is bound to."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri()
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def resolve_model(uri: str | Path) -> Path:
    """The local folder, with model.json, of a model.

    `uri`: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID, a run key, or a folder (of a model or of a run). A
    model of a local registry is used where it lies; one of a server is fetched once into `home()/.cache/models`.
    Registered files are checked against the hash that was taken when they were registered. Raises ValueError or
    FileNotFoundError saying what there is.
    """
    text = str(uri)
    if not text:
        raise ValueError(
            "the model's name is empty: give a folder, a run key, runs:/ID, models:/NAME@ALIAS or "
            "models:/NAME/VERSION; see: ./convoy models list"
        )
    if text.startswith("models:/"):
        client = connect()
        return files_of(client, version_at(client, text))
    if text.startswith("runs:/"):
        return _model_of_run(connect(), text.removeprefix("runs:/"))
    for folder in (Path(text), Path(text) / "model", runs() / text / "model"):
        if (folder / "model.json").is_file():
            return folder.resolve()
    if Path(text).exists():
        raise FileNotFoundError(f"no model in {text}: neither it nor its folder `model` has a model.json")
    run = run_with_key(text)
    if run is None:
        raise FileNotFoundError(
            f"no model {text!r}: it is neither a folder nor the key of a run. Give a folder, a run key, "
            "runs:/ID, models:/NAME@ALIAS or models:/NAME/VERSION; see: ./convoy models list"
            + did_you_mean(text, registered_addresses(connect()))
        )
    return _model_of_run(connect(), run.info.run_id)


def pin(uri: str) -> tuple[str, str]:
    """The name and the version that models:/NAME@ALIAS or models:/NAME/VERSION names now; the folder and "" of others.

    Raises as `resolve_model`.
    """
    if not uri.startswith("models:/"):
        return str(resolve_model(uri)), ""
    version = version_at(connect(), uri)
    return str(version.name), str(version.version)


def run_id_of(key: str) -> str:
    """MLflow's id of the run with this key; raises ValueError if it has no record."""
    run = run_with_key(key)
    if run is None:
        raise ValueError(f"MLflow at {shown_uri()} has no record of the run {key!r}")
    return str(run.info.run_id)


def run_with_key(key: str) -> Run | None:
    """The run that has this key, in whichever experiment."""
    if not KEY.fullmatch(key):
        return None
    client = connect()
    return _find_run(client, key, [experiment.experiment_id for experiment in client.search_experiments()])


def _model_of_run(client: MlflowClient, run_id: str) -> Path:
    """What the run registered last; else what it left on this machine."""
    versions = find_versions(client, f"run_id = '{run_id}'") if run_id.isalnum() else []
    if versions:
        return files_of(client, max(versions, key=lambda version: int(version.creation_timestamp)))
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise ValueError(f"no run with the id {run_id!r} in MLflow at {shown_uri()}") from None
    folder = runs() / run.data.tags.get("convoy.key", "") / "model"
    if not (folder / "model.json").is_file():
        raise FileNotFoundError(
            f"run {run_id} ({run.info.status}) has neither a registered model nor one in {folder}"
        )
    return folder
