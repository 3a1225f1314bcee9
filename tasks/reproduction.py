"""A training done again: what is needed for it, and whether it gave the same. pipelines.reproduce runs it.

On a CPU the weights must be the same, bit for bit, where torch, processor and threads are those of the record. Where
they are not, and on a GPU, the metrics of the test are compared with the intervals that were recorded beside them.
"""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.address import is_url
from data.files import file_sha256, read_object
from data.storage import NAME
from tasks import registry, versioning
from tasks.lineage import git, has_commit
from tasks.machine import NAMES, differences
from tasks.modelfile import load_card, model_files
from tasks.paths import JOB_FILE
from tasks.result import read_result
from tasks.runrecords import MEMBERS_TAG, TESTED, fetched, find_run
from tasks.weights import PACKAGE, SUFFIXES

JOB_ARTIFACTS = "job"  # where in a run's artifacts
REPORTS, REPORT_TAG = "reproduced", "reproduced"
TIMED = ("_per_s", "_ms", "_mb", "_s")  # ends of the names of what the clock measures
TRAINED = "trained."
DIGEST = rf"({versioning.MD5}(\.dir)?)?"

Outcome = Literal["equal", "within intervals", "unequal", "unknown"]


@dataclass(frozen=True)
class Origin:
    """A model and all that it takes to train it again."""

    key: str
    run_id: str
    model: Path  # the folder of what was recorded
    job: dict[str, Any]  # job.json
    commit: str
    digest: str
    tags: dict[str, str]
    metrics: dict[str, float]  # of the test; {} where it was not tested

    @property
    def trained_on(self) -> dict[str, str]:
        """See tasks.machine; {} in records of before it was kept."""
        return {name: self.tags[TRAINED + name] for name in NAMES if TRAINED + name in self.tags}

    @property
    def executor(self) -> str:
        return self.tags[f"{TRAINED}executor"]


@dataclass(frozen=True)
class Compared:
    """A number or a hash, then and now."""

    name: str
    recorded: Any
    now: Any
    verdict: str


@dataclass(frozen=True)
class Reproduction:
    """What came of training again."""

    outcome: Outcome
    reason: str
    may_differ: list[str]  # why other bits would be no fault; [] where they would
    weights: list[Compared]  # by file
    metrics: list[Compared]
    made_of: list[Compared]  # what stands in the model's card beside its weights and is another


def find_origin(name: str, root: Path) -> Origin:
    """The origin of a model or run; `root` is the checkout whose repository must have the commit.

    Raises ValueError, saying what to do, for one that cannot be trained again: an ensemble, code or data that nobody
    recorded, a commit that is gone.
    """
    run = find_run(name)
    tags = dict(run.data.tags)
    key = tags.get("convoy.key", name)
    if members := tags.get(MEMBERS_TAG):
        raise ValueError(f"{name} is an ensemble: reproduce its members, {members}")
    if f"{TRAINED}executor" not in tags:
        raise ValueError(
            f"the record of {name} ({run.info.status}) does not say how it was trained: it is no training that ended, "
            "or one of before that was kept; train it anew by ./convoy train"
        )
    commit, digest = tags.get("git.commit", ""), tags.get("dvc.digest", "")
    with fetched(run.info.run_id, f"{JOB_ARTIFACTS}/{JOB_FILE}") as file:
        job = read_object(file, "the run's record is damaged: train it anew by ./convoy train")
    require_names(name, key, str(job.get("dataset")), digest)
    require_code(name, commit, tags.get("git.dirty") == "true", root)
    if not digest:
        path = f"data/store/{job['dataset']}"
        raise ValueError(
            f"nobody recorded which data {name} was trained on; record it (.venv/bin/dvc add {path}), and train again"
        )
    tested = {
        metric.removeprefix(TESTED): value
        for metric, value in run.data.metrics.items()
        if metric.startswith(TESTED)
    }
    model = registry.resolve_model(name if name.startswith("models:/") else f"runs:/{run.info.run_id}")
    return Origin(key, run.info.run_id, model, job, commit, digest, tags, tested)


def require_names(name: str, key: str, dataset: str, digest: str) -> None:
    """Raise ValueError for a record whose names would lead out of the folders that they are to name."""
    if registry.KEY.fullmatch(key) and NAME.fullmatch(dataset) and re.fullmatch(DIGEST, digest):
        return
    raise ValueError(
        f"the record of {name} was tampered with: its key (={key!r}), dataset (={dataset!r}) and dvc.digest "
        f"(={digest!r}) must be a run's key, a dataset's name, and DVC's digest or nothing"
    )


def require_code(name: str, commit: str, dirty: bool, root: Path) -> None:
    """Raise ValueError where the code of a run is in no commit that the repository has."""
    if not commit:
        raise ValueError(f"nobody recorded which code trained {name}: train again in a git repository")
    if dirty:
        raise ValueError(
            f"the code that trained {name} differed from its commit {commit[:8]}, and the difference was not kept: "
            "commit the code (git commit -a), and train again"
        )
    if not has_commit(root, commit):
        raise ValueError(
            f"the repository of {root} lacks the commit {commit} that trained {name}: fetch it (git fetch --all), or "
            "give this command in the repository that has it"
        )


@contextmanager
def code_at(root: Path, commit: str, folder: Path) -> Iterator[Path]:
    """The checkout at `root` as it was at a commit, in a git worktree at `folder` that goes at the end."""
    inside = git(root, "rev-parse", "--show-prefix")  # where in its repository the checkout lies
    try:
        git(
            root,
            "-c",
            "core.hooksPath=/dev/null",
            "worktree",
            "add",
            "--detach",
            "--quiet",
            str(folder),
            commit,
        )
    except subprocess.CalledProcessError as error:
        raise ValueError(f"git could not check out {commit}: {error.stderr.strip()}") from None
    try:
        yield folder / inside
    finally:
        git(root, "worktree", "remove", "--force", str(folder))


def place_data(origin: Origin, home: Path) -> None:
    """Put the version of the data into another home, recorded there; raises RuntimeError where it is gone."""
    path = home / "data" / "store" / origin.job["dataset"]
    path.mkdir(parents=True)
    try:
        versioning.restore(origin.digest, path)
    except RuntimeError as error:
        raise ValueError(f"the data of {origin.key} is gone: {error}") from None
    sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    versioning.point(path, origin.digest, sum(sizes), len(sizes))


def place_job(origin: Origin, home: Path) -> Path:
    """Put the run's parameters into another home, as a run that has not begun; returns its folder.

    Threads are those that it was trained with, where it took its share of the machine's; a trained model that it began
    with is named by its folder, since the other home has no registry.
    """
    job = deepcopy(origin.job)
    config, threads = job["config"], origin.trained_on.get("threads", "")
    if threads.isdigit():  # else not known, or not the same in all attempts
        config["train"]["cpus_per_worker"] = int(threads)
    for section, field in (("transfer", "weights"), ("distil", "teacher")):
        source = config.get(section, {}).get(field, "")
        if source and not (is_url(source) or source.startswith(PACKAGE) or source.endswith(SUFFIXES)):
            config[section][field] = str(registry.resolve_model(source))
    folder = home / "runs" / origin.key
    folder.mkdir(parents=True)
    (folder / JOB_FILE).write_text(json.dumps(job, indent=2) + "\n")
    return folder


def compare(origin: Origin, folder: Path) -> Reproduction:
    """What a run's record and the same training's folder have in common."""
    now = folder / "model"
    weights = [
        compared(
            name,
            file_sha256(origin.model / name),
            file_sha256(now / name) if (now / name).is_file() else "none",
        )
        for name in model_files(load_card(origin.model))
        if name != "model.json"
    ]
    metrics = compare_metrics(origin.metrics, folder / "evaluation" / "metrics.json")
    may_differ = differences(origin.trained_on, read_result(folder).trained_on)
    if budget := origin.job["config"]["train"]["time_budget_s"]:
        may_differ.append(f"the clock decided how many steps it took (train.time_budget_s {budget:g})")
    outcome, reason = judge(weights, metrics, may_differ)
    return Reproduction(outcome, reason, may_differ, weights, metrics, compare_cards(origin.model, now))


def compared(name: str, recorded: Any, now: Any) -> Compared:
    return Compared(name, recorded, now, "equal" if recorded == now else "unequal")


def compare_metrics(recorded: Mapping[str, float], file: Path) -> list[Compared]:
    """Each metric of the test that no clock measured; with an interval beside it, whether it lies within that."""
    values: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    names = registry.metric_names([f"{TESTED}{name}" for name in values])
    now = dict(zip((name.removeprefix(TESTED) for name in names), values.values(), strict=True))
    found = []
    for name, value in recorded.items():
        if name.endswith((*TIMED, "_low", "_high")) or name not in now:
            continue
        each = compared(name, value, now[name])
        low, high = recorded.get(f"{name}_low"), recorded.get(f"{name}_high")
        if each.verdict == "unequal" and low is not None and high is not None:
            inside = low <= now[name] <= high
            where = f"{'within' if inside else 'outside'} {low:.4g} to {high:.4g}"
            each = Compared(name, value, now[name], where)
        found.append(each)
    return found


def compare_cards(recorded: Path, now: Path) -> list[Compared]:
    """What else the models say of themselves and is not the same, but where their first weights were found."""
    cards = [load_card(folder).model_dump(mode="json") for folder in (recorded, now)]
    for card in cards:
        for begun in ("initial_weights", "taught_by"):
            if card[begun]:
                del card[begun]["source"]
    return [
        compared(name, cards[0][name], cards[1][name])
        for name in cards[0]
        if cards[0][name] != cards[1][name]
    ]


def judge(weights: list[Compared], metrics: list[Compared], may_differ: list[str]) -> tuple[Outcome, str]:
    """The outcome, and why."""
    if all(each.verdict == "equal" for each in weights):
        return "equal", "the weights are the same, bit for bit"
    if not may_differ:
        return "unequal", "the weights are others, and torch, processor and threads are those of the record"
    because = "; ".join(may_differ)
    ranged = [each for each in metrics if each.verdict.startswith(("within", "outside"))]
    outside = [each.name for each in ranged if each.verdict.startswith("outside")]
    if outside:
        return (
            "unequal",
            f"outside its interval: {', '.join(outside)}; other bits were to be expected: {because}",
        )
    if ranged:
        names = ", ".join(each.name for each in ranged)
        return "within intervals", f"the weights are others ({because}); within its interval: {names}"
    if metrics and all(each.verdict == "equal" for each in metrics):
        return "within intervals", f"the weights are others ({because}), and all metrics are the same"
    return (
        "unknown",
        f"the weights are others ({because}), and no interval was recorded to judge the metrics by",
    )
