"""What may be freed: what no alias, no record, no version of a dataset and no run that can go on needs.

    checkpoints     of runs that MLflow calls FINISHED: training there has its result, which is read instead
    cache           files of DVC's cache that no pointer, list of versions, commit or record of MLflow names
    partial         what a process left half-written, or held, and is no more
    sessions        logs and sockets of Ray's clusters that have ended
    processes       of a Ray whose driver has ended without them
    jobs            a model that is served on a cluster, whose driver has ended
    shared memory   of processes that have ended
    locks           of datasets that are no more; DVC's, of processes that have ended

Nothing is freed that a living process holds, nor what changed less than `keep_days` ago: but for processes, jobs and
DVC's locks, whose owner is known to have ended. Looking changes nothing.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from data.files import holding
from data.parameters import Parameters
from tasks import orphans, runrecords, versioning
from tasks.leftovers import (
    Item,
    ended_sessions,
    idle_locks,
    left_memory,
    newest,
    orphaned_processes,
    partial_files,
    size_of,
    stale_dvc_lock,
    why_stale,
)
from tasks.paths import home, runs
from tasks.train import CHECKPOINTS

DAY_S = 86400


class MaintainConfig(Parameters):
    """What is kept in any case: section `maintain` of params.yaml."""

    keep_days: float = Field(ge=0, description="what changed less than so many days ago is never freed")


def find(config: MaintainConfig) -> list[Item]:
    """All that may be freed, and nothing is touched. Raises as MLflow does where its records cannot be read."""
    before = time.time() - DAY_S * config.keep_days
    aged = [
        *old_checkpoints(), *partial_files(), *ended_sessions(), *left_memory(), *idle_locks(),
    ]  # fmt: skip
    ownerless = [*orphaned_processes(), *left_jobs(), *stale_dvc_lock()]
    old = [item for item in aged if newest(item.path) < before and is_free(item)]
    return [*ownerless, *old, *unnamed_cache(before, apply=False)]


def is_free(item: Item) -> bool:
    """Whether no living process holds it now."""
    with holding(item.lock) as mine:
        return mine


def free(config: MaintainConfig, note: Callable[[str], None]) -> list[Item]:
    """Free what `find` finds; what was freed. What cannot be removed is noted and passed over."""
    freed = []
    for item in find(config):
        if item.kind == "cache":
            freed += unnamed_cache(time.time() - DAY_S * config.keep_days, apply=True)
            continue
        try:
            with holding(item.lock) as mine:
                if not mine:
                    note(f"{item.path} stays: a process holds it")
                    continue
                remove(item)
        except OSError as error:
            note(f"{item.path} stays: {error.strerror}")
            continue
        freed.append(item)
    return freed


def remove(item: Item) -> None:
    """Free one thing, whose lock is ours."""
    if item.process is not None:
        orphans.end(item.process)
    elif item.kind == "jobs":
        end_left_jobs()
    elif item.path.is_dir():
        shutil.rmtree(item.path)
    elif item.path.name != "rwlock" or why_stale(item.path):  # somebody may have taken DVC's meanwhile
        item.path.unlink()


def left_jobs() -> list[Item]:
    """A model that is served on the cluster of RAY_ADDRESS although its driver has ended.

    Whatever else a driver started there, Ray ends with it. Raises ConnectionError where the cluster does not answer.
    """
    if "RAY_ADDRESS" not in os.environ:
        return []
    from tasks import cluster, serve  # here: without a cluster nobody needs Ray

    cluster.connect()
    try:
        left = serve.left_behind()
    finally:
        cluster.disconnect()
    place = Path(os.environ["RAY_ADDRESS"]) / "serve" / serve.NAME
    return [Item("jobs", place, 0, 0, "it serves a model, and its driver has ended")] if left else []


def end_left_jobs() -> None:
    """End what `left_jobs` found, if it is still so."""
    from tasks import cluster, serve

    cluster.connect()
    try:
        serve.end_left_behind()
    finally:
        cluster.disconnect()


def old_checkpoints() -> Iterator[Item]:
    """Checkpoints beside a result, of runs that MLflow knows as FINISHED; of ensembles and searches too."""
    finished = runrecords.finished_keys()
    for folder in sorted(runs().glob("*/")):
        if folder.name not in finished:
            continue
        for result in sorted(folder.rglob("result.json")):
            for name in CHECKPOINTS.values():
                if (place := result.parent / name).is_dir() and (size := size_of(place))[0]:
                    why = f"the run {folder.name} is finished, and has its model"
                    yield Item("checkpoints", place, *size, why, folder / "lock")


def unnamed_cache(before: float, *, apply: bool) -> list[Item]:
    """Files of DVC's cache that nothing names, older than `before`; with `apply`, they are gone."""
    if not (home() / ".dvc").is_dir():
        return []
    found: dict[str, Any] = versioning.prune(runrecords.recorded_digests(), before, apply=apply)
    if not found["files"]:
        return []
    why = f"no pointer, version, commit or record names them; {found['named']:,} digests are named"
    return [Item("cache", Path(found["cache"]), found["files"], found["bytes"], why)]


def document(items: Sequence[Item], dry_run: bool) -> dict[str, Any]:
    """What was freed, or would be, for a program."""
    rows = [
        {"kind": each.kind, "path": str(each.path), "num_files": each.num_files, "num_bytes": each.num_bytes,
         "why": each.why}
        for each in items
    ]  # fmt: skip
    return {"dry_run": dry_run, "num_bytes": sum(each.num_bytes for each in items), "items": rows}
