"""Versions of a dataset put into its folder and taken out of it, and their way to the remote and back.

What lies in a folder is in DVC's cache before anything else takes its place, see tasks.versions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.checks import first_damage
from data.dataset import Dataset, list_names
from data.storage import move_into_place, partial_folder, take_away
from tasks import versioning, versions
from tasks.paths import store


class Lacking(RuntimeError):
    """The remote was asked, and brought nothing of a version: DVC copies a folder's list after all of its files."""


def checkout(name: str, which: str, note: Callable[[str], None] | None = None) -> versions.Version:
    """Put a version into the dataset's folder, and make it the current one; fetched if it is not here.

    Raises a ValueError, and changes nothing, if what is in the folder is no recorded version.
    """
    versions.require_list(name)
    with versions.exclusive(name, note):
        known = versions.require_list(name)
        version = versions.find(name, which, known)
        place(name, version.md5)
        if versions.current(name) != version.md5:
            versioning.point(store() / name, version.md5, version.size, version.nfiles)
        versions.write_list(name, known)
    return version


def place(name: str, digest: str) -> bool:
    """Have a recorded version in the dataset's folder, replaced in one step; whether it was not there yet.

    What is recorded stays as it is: to point at the version is the caller's.
    """
    path = store() / name
    if path.exists():
        found = versioning.measure(path)
        if found == digest:
            return False
        if not versioning.is_cached(found):
            if found not in [version.md5 for version in versions.history(name)]:
                raise ValueError(_unrecorded(path))
            versioning.save(path)
    _fetch(name, digest)
    with partial_folder(store(), name) as partial:
        versioning.restore(digest, partial)
        move_into_place(store(), name, Dataset.open(partial).info.family, partial)
    return True


def _unrecorded(path: Path) -> str:
    """Why a folder whose bytes no version has is not replaced, and what to do."""
    if damage := first_damage(path):
        return (
            f"{path} is damaged ({damage}; ./convoy data check {path.name} tells more): move it away, and give this "
            "command again, which brings back what was recorded"
        )
    return (
        f"{path} was changed since it was recorded, and would be lost; keep it as a version: .venv/bin/dvc add {path}, "
        "or move it away"
    )


def recorded_names() -> list[str]:
    """Names of the datasets that a pointer or dvc.lock names, whether their bytes are here or not."""
    return versioning.recorded_below(store())


def require_removable(name: str) -> None:
    """Raise a ValueError unless there is a dataset of that name, and no stage of dvc.yaml makes it."""
    known = sorted({*list_names(store()), *recorded_names()})
    if name not in known:
        raise ValueError(f"there is no dataset {name!r}; there are: {', '.join(known) or 'none'}")
    if stage := versioning.stage_of(store() / name):
        raise ValueError(
            f"{name!r} is made by the stage {stage} of dvc.yaml, and `dvc repro` would make it again: take the "
            "stage and what reads it out of dvc.yaml first"
        )


@dataclass(frozen=True)
class Removed:
    """What `remove` took away."""

    digest: str  # what was recorded
    is_cached: bool  # whether DVC's cache has all of it
    files: tuple[Path, Path]  # pointer and list, which git may have
    unrecorded: str = ""  # digest of what lay in the folder, where that is no version
    damage: str = ""  # what shows that to be damaged


def remove(name: str, note: Callable[[str], None] | None = None) -> Removed:
    """Take a dataset's folder, pointer and list away.

    What lies in the folder is in DVC's cache before it goes.
    """
    require_removable(name)
    path = store() / name
    files = (path.with_name(f"{name}.dvc"), versions.list_file(name))
    with versions.exclusive(name, note):
        known = versions.history(name)
        recorded = versions.current(name)
        kept = versions.keep(name)
        found, damage = "", ""
        if known and len(kept) > len(known):
            found, damage = kept[-1].md5, first_damage(path)
        digest = recorded or versions.current(name)
        removed = Removed(digest, versioning.is_cached(digest), files, found, damage)
        if path.exists():
            take_away(store(), name)
        for file in files:
            file.unlink(missing_ok=True)
    return removed


def pull(
    names: Sequence[str], all_versions: bool, note: Callable[[str], None] | None = None
) -> dict[str, bool]:
    """Have the current version of each dataset in its folder, from the remote if need be; whether that changed it."""
    changed = {}
    for name in names:
        _require_digest(name)
        with versions.exclusive(name, note):
            for version in versions.history(name) if all_versions else []:
                _fetch(f"version {version.number} of {name}", version.md5)
            changed[name] = place(name, _require_digest(name))  # who held it may have moved the pointer
    return changed


def pull_all(
    all_versions: bool, note: Callable[[str], None] | None = None
) -> tuple[dict[str, bool], dict[str, str]]:
    """`pull` of all recorded datasets, and why others are absent by name: git may name what nobody has pushed.

    One that cannot be had does not keep the others away: its error is raised at the end, as is that of a remote that
    lacks every dataset.
    """
    changed: dict[str, bool] = {}
    absent: dict[str, str] = {}
    errors: list[Exception] = []
    lacking: list[Lacking] = []
    for name in recorded_names():
        try:
            changed |= pull([name], False, note)
        except Lacking as error:
            absent[name] = str(error)
            lacking.append(error)
        except (RuntimeError, ValueError) as error:
            errors.append(error)
        for version in versions.history(name) if all_versions else []:
            if version.md5 == versions.current(name):
                continue
            try:
                _fetch(f"version {version.number} of {name}", version.md5)
            except Lacking as error:
                absent[f"{name} version {version.number}"] = str(error)
            except RuntimeError as error:
                errors.append(error)
    if errors or (lacking and not changed):
        raise (errors or lacking)[0]
    return changed, absent


def _fetch(what: str, digest: str) -> None:
    """Have a version in the cache; what the remote says of a digest is told of `what`."""
    try:
        versioning.fetch([digest])
    except RuntimeError as error:
        text = str(error).replace(digest, f"{what} ({digest})", 1)
        if stage := versioning.stage_of(store() / what):
            text += f"; or make it: .venv/bin/dvc repro {stage}"
        if f": {digest} is missing" in text:
            raise Lacking(text.replace(f": {digest} is missing", ": it is missing")) from error
        raise RuntimeError(text) from error


def push(names: Sequence[str], all_versions: bool) -> tuple[int, list[str]]:
    """Copy to the remote what it lacks of the current, or all, versions: (files, versions absent from this cache)."""
    digests, absent = [], []
    for name in names:
        digest = _require_digest(name)
        if not versioning.is_cached(digest):
            raise RuntimeError(
                f"DVC's cache lacks {name} ({digest}), or some of it; fetch it first: ./convoy data pull {name}"
            )
        digests.append(digest)
        for version in versions.history(name) if all_versions else []:
            if version.md5 in digests:
                continue
            if versioning.is_cached(version.md5):
                digests.append(version.md5)
            else:
                absent.append(f"{name} version {version.number}")
    return (versioning.push(digests) if digests else 0), absent


def push_all(all_versions: bool) -> tuple[list[str], int, list[str]]:
    """`push` of all recorded datasets but those that were never made here: (names, files, versions not here)."""
    names = recorded_names()
    here = [
        name for name in names if (store() / name).exists() or versioning.is_cached(versions.current(name))
    ]
    files, absent = push(here, all_versions)
    return here, files, [name for name in names if name not in here] + absent


def _require_digest(name: str) -> str:
    digest = versions.current(name)
    if not digest:
        known = ", ".join(recorded_names()) or "none"
        raise ValueError(
            f"DVC has recorded no dataset {name!r} (recorded: {known}); git pull brings pointers"
        )
    return digest
