"""Datasets watched for new versions: what DVC records of them, against what was recorded when one last looked.

    data/store/.watched.json    by dataset: the digest that was last told of, and the family

A dataset is told of once it has been left alone for a while, so that several changes in a row are one. What is seen for
the first time is noted and not told of: nothing of it has changed. Who is told is asked first and noted after: killed
between, the same change is told of twice, never not at all.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from data.dataset import Dataset
from data.difference import compare
from data.files import locked, write_whole
from data.parameters import Parameters
from tasks import versioning, versions
from tasks.paths import store

SHORT = 8  # digits of a digest that a person is shown
LEFT_OUT = {"name", "before", "after", "examples", "move_examples", "group_examples"}


class WatchConfig(Parameters):
    """When a change of a dataset is told of: section `watch` of params.yaml."""

    settle_s: float = Field(
        ge=0,
        description="seconds for which a dataset must have been left alone, so that changes in a row are one",
    )


@dataclass(frozen=True)
class Change:
    """A dataset whose recorded digest is another than the last one."""

    name: str
    family: str
    before: str
    after: str


@dataclass(frozen=True)
class Look:
    """What one look at all datasets found."""

    changes: tuple[Change, ...]
    waiting: dict[str, str]  # by dataset: why its change is not told of yet
    new: tuple[str, ...]  # seen for the first time
    unchanged: tuple[str, ...]


def watch(config: WatchConfig, tell: Callable[[Change], None]) -> Look:
    """Look once: `tell` of each dataset that has changed and has settled."""
    changes, waiting, new, unchanged = [], {}, [], []
    with noted() as seen:
        for name in versioning.recorded_below(store()):
            digest, before = versions.current(name), seen.get(name)
            family = family_of(name) or (before or {}).get("family", "")
            if before is None:
                new.append(name)
            elif digest == before["digest"]:
                unchanged.append(name)
                continue
            elif why := unsettled(name, family, config.settle_s):
                waiting[name] = why
                continue
            else:
                changes.append(Change(name, family, before["digest"], digest))
                tell(changes[-1])
            seen[name] = {"digest": digest, "family": family}
            write_whole(notes_file(), json.dumps(seen, indent=2, sort_keys=True) + "\n")
    return Look(tuple(changes), waiting, tuple(new), tuple(unchanged))


def notes_file() -> Path:
    return store() / ".watched.json"


@contextmanager
def noted() -> Iterator[dict[str, dict[str, str]]]:
    """What was last told of each dataset; one at a time looks."""
    store().mkdir(parents=True, exist_ok=True)
    with locked(store() / ".watched.lock"):
        yield json.loads(notes_file().read_text()) if notes_file().is_file() else {}


def family_of(name: str) -> str:
    """What the dataset in the store is for; "" where its bytes are not here."""
    with suppress(FileNotFoundError):
        return Dataset.open(store() / name).info.family
    return ""


def unsettled(name: str, family: str, settle_s: float) -> str:
    """Why a change is not to be told of yet; "" if it is."""
    if versions.is_changing(name):
        return "it is being written to"
    age_s = time.time() - versioning.recorded_at(store() / name)
    if age_s < settle_s:
        return f"it changed {max(age_s, 0):.0f} s ago, and must be left alone for {settle_s:g} s (watch.settle_s)"
    if not family:
        return f"which family it is of is not known: {versions.way_here(name)}"
    return ""


def difference_of(change: Change) -> dict[str, Any]:
    """The change in numbers, as `./convoy data diff` counts it; {} where bytes of either are not in DVC's cache."""
    if not all(map(versioning.is_cached, (change.before, change.after))):
        return {}
    with ExitStack() as stack:
        before, after = (stack.enter_context(versions.opened(md5)) for md5 in (change.before, change.after))
        difference, _changes = compare(before, after, (change.before, change.after))
    return difference.model_dump(mode="json", exclude=LEFT_OUT)


def sentence(change: Change, difference: dict[str, Any]) -> str:
    """The change in one line."""
    what = f"{change.name} changed, {change.before[:SHORT]} → {change.after[:SHORT]}"
    if not difference:
        return f"{what}; what differs is not known: bytes of one are not in DVC's cache"
    counted = [f"{number:,} {kind}" for kind, number in difference["counts"].items() if number]
    return f"{what}: {', '.join(counted) or 'the same items'}, {difference['unchanged']:,} unchanged"
