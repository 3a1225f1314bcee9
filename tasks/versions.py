"""The versions of a dataset: recorded one after the other, and listed; tasks.placing puts them back and fetches them.

    data/store/digits.dvc              which version lies in data/store/digits; git tracks both
    data/store/digits.versions.json    all versions, oldest first: what a pointer needs, when, and from where

A version is a folder that DVC has recorded (tasks.versioning); its bytes are in DVC's cache, and in a remote once
pushed. Nothing here removes bytes: what lies in the folder is in the cache before anything else takes its place. What
a stage of dvc.yaml makes has no list, since dvc.lock says which bytes it is, and git has the earlier ones.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from data.address import Fetched
from data.dataset import SPLITS, Dataset, Split, noun_of
from data.files import holding, locked, read_object, write_whole
from data.ingest import IngestConfig, ingest
from data.parameters import Parameters
from data.report import IngestReport
from data.sides import Earlier, join_earlier, losses, read_earlier
from data.storage import NAME, check_name, link_files
from tasks import versioning
from tasks.paths import store

MIN_PREFIX = 4  # digits of a digest that name a version
MEND = "mend it (a merge?) or restore it from git"
UNRECORDED = "found in the folder: no add had recorded it"


class Version(Parameters):
    """One version. Fields with a default are left out of the list where they have it."""

    number: int = Field(ge=1)
    md5: str = Field(pattern=r"^[0-9a-f]{32}\.dir$")
    size: int  # bytes
    nfiles: int
    added: str = ""  # UTC; "" if it was recorded by something else than `add`
    source: str = ""  # as given
    subset: str = ""  # of the source, as given
    images: dict[Split, int] = Field(default={})
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Added:
    """What `add` did; `version` is None where a stage of dvc.yaml makes the dataset."""

    report: IngestReport
    digest: str
    version: Version | None
    is_new: bool
    kept: Version | None = None  # what lay in the folder unrecorded, and was recorded before it was replaced
    losses: tuple[str, ...] = ()  # what the latest version had and this one lacks, see data.sides


def list_file(name: str) -> Path:
    return store() / f"{name}.versions.json"


def history(name: str) -> list[Version]:
    """The versions of a dataset, oldest first; what its pointer names is one, even where no list does.

    Raises a ValueError, of one line for each fault, if the list cannot be read.
    """
    file = list_file(name)
    versions = read_list(file) if file.is_file() else []
    out = versioning.recorded_out(store() / name)
    if out and out.get("md5") not in [version.md5 for version in versions]:
        versions.append(_adopt(len(versions) + 1, str(out["md5"]), int(out["size"]), int(out["nfiles"])))
    return versions


def read_list(file: Path) -> list[Version]:
    """The versions in a list; raises a ValueError, of one line for each fault, where it is damaged."""
    entries = read_object(file, MEND).get("versions")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{file} is damaged: versions (={str(entries)[:80]}) must be a list of objects; {MEND}"
        )
    versions = [Version.parse(entry, str(file)) for entry in entries]
    if [version.number for version in versions] != list(range(1, len(versions) + 1)):
        raise ValueError(f"{file}: versions must be numbered from 1, each once; {MEND}")
    return versions


def _adopt(number: int, md5: str, size: int, num_files: int, notes: tuple[str, ...] = ()) -> Version:
    """A version that no `add` listed, described as far as its bytes are here and whole."""
    source, images = "", {}
    if versioning.is_cached(md5):
        with suppress(ValueError, OSError), opened(md5) as dataset:
            source, images = dataset.info.source, _images(dataset)
    return Version(
        number=number, md5=md5, size=size, nfiles=num_files, source=source, images=images, notes=notes
    )


def _images(dataset: Dataset) -> dict[Split, int]:
    return {split: dataset.info.num_images(split) for split in SPLITS}


def write_list(name: str, versions: Sequence[Version]) -> None:
    entries = [version.model_dump(mode="json", exclude_defaults=True) for version in versions]
    write_whole(list_file(name), json.dumps({"name": name, "versions": entries}, indent=2) + "\n")


def current(name: str) -> str:
    """The digest of the version that is checked out, "" if there is none."""
    return versioning.digest(store() / name)


def stands(name: str, digest: str) -> bool:
    """Whether a version is still what the name has here: others may replace or remove it at any time."""
    return (store() / name / "dataset.json").is_file() and current(name) == digest


def find(name: str, which: str, versions: Sequence[Version]) -> Version:
    """The version called `which`: its number, `latest`, `current`, or the first digits of its digest."""
    if not versions:
        raise ValueError(
            f"no version of {name!r} is known; record one: ./convoy data add SOURCE --name {name}"
        )
    if which == "latest":
        return latest(versions)
    digest = current(name) if which == "current" else which
    if re.fullmatch(r"[0-9]+", which) and 1 <= int(which) <= len(versions):
        return versions[int(which) - 1]
    fitting = [version for version in versions if version.md5.startswith(digest)]
    if len(digest) < MIN_PREFIX or len(fitting) != 1:
        known = f"1 to {len(versions)}" if len(versions) > 1 else "1"
        several = (
            f"fits {len(fitting)} digests"
            if len(fitting) > 1 and len(digest) >= MIN_PREFIX
            else "is not known"
        )
        raise ValueError(
            f"version (={which}) of {name} {several}; give a number ({known}), latest, or {MIN_PREFIX} or more "
            f"digits of a digest: ./convoy data versions {name}"
        )
    return fitting[0]


def latest(versions: Sequence[Version]) -> Version:
    """The last that was recorded on purpose; what was found in the folder may be damaged."""
    return next((version for version in reversed(versions) if UNRECORDED not in version.notes), versions[-1])


def folder_of(name: str) -> Path:
    """Where a dataset of that name lies, if there is one; raises ValueError for a path in place of a name."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"dataset (={name!r}) must be a name, as ./convoy data list shows them, of lower-case letters, digits, '-' "
            "and '_'"
        )
    return store() / name


def require_list(name: str) -> list[Version]:
    """The versions of a dataset; raises a ValueError where it has none, or a stage of dvc.yaml makes it."""
    stage = versioning.stage_of(folder_of(name))
    if stage:
        if not (store() / name).exists():
            open_stored(name)  # says what brings it
        raise ValueError(
            f"{name!r} is made by the stage {stage} of dvc.yaml, and dvc.lock is its version; go back with: "
            "git checkout COMMIT -- dvc.lock, then .venv/bin/dvc checkout"
        )
    versions = history(name)
    if not versions:
        Dataset.open(store() / name)  # says which there are
        raise ValueError(
            f"{name!r} has no version yet: {versioning.advice(store() / name)}, or data add it again"
        )
    return versions


def open_stored(name: str) -> Dataset:
    """The dataset of that name in the store; where it is recorded and not here, the error says what brings it."""
    path = folder_of(name)
    if not (path / "dataset.json").is_file() and current(name):
        raise FileNotFoundError(f"dataset {name!r} is recorded and not here; {way_here(name)}")
    return Dataset.open(path)


def held(name: str, folder: Path, note: Callable[[str], None]) -> Dataset:
    """As `open_stored`, to be read for hours: links in `folder` keep its files when others take their place.

    Who calls this removes `folder` at the end. Where there are no links, the dataset is read where it lies, and `note`
    says so.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
    found = open_stored(name)
    try:
        link_files(store(), name, folder)
    except FileNotFoundError:
        return open_stored(name)  # it was removed meanwhile, and this says so
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        note(
            f"note: leave dataset {name!r} as it is while this run reads it: it cannot be held ({error.strerror})"
        )
        return found
    return replace(Dataset.open(folder), path=found.path, held=folder)


def way_here(name: str) -> str:
    """What brings a recorded dataset that is not here."""
    pull = f"fetch it: ./convoy data pull {name}"
    stage = versioning.stage_of(store() / name)
    return f"{pull}, or make it: .venv/bin/dvc repro {stage}" if stage else pull


@contextmanager
def opened(digest: str) -> Iterator[Dataset]:
    """A recorded version to read from, fetched if it is not here; whatever is checked out stays."""
    with versioning.view(digest) as folder:
        yield Dataset.open(folder)


def lock_file(name: str) -> Path:
    return store() / f".{name}.versions.lock"


def is_changing(name: str) -> bool:
    """Whether a living process is changing a dataset's versions."""
    with holding(lock_file(name)) as free:
        return not free


@contextmanager
def exclusive(name: str, note: Callable[[str], None] | None = None) -> Iterator[None]:
    """Held while a dataset's versions change, so that each add builds on the one before. Ends with its process."""

    def waits(who: str) -> None:
        if note:
            note(f"waits for {who}, which is changing {name}")

    store().mkdir(parents=True, exist_ok=True)
    with locked(lock_file(name), waits):
        yield


def add(
    source: str | Path | Fetched,
    *,
    name: str,
    family: str,
    config: IngestConfig,
    licence: str = "not stated",
    fresh_splits: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    note: Callable[[str], None] | None = None,
    workers: int | None = None,
    subset: str = "",
) -> Added:
    """Ingest `source` as the next version of a dataset, see data.ingest; the same bytes are no new version.

    Groups keep the sides that the latest version gave them, except with `fresh_splits`.
    """
    path = store() / name
    check_name(name, family, store())

    def bring(earlier: Earlier | None) -> tuple[IngestReport, str]:
        report = ingest(
            source, name=name, family=family, store=store(), config=config, licence=licence, progress=progress,
            workers=workers, earlier=earlier, fresh_splits=fresh_splits, subset=subset,
        )  # fmt: skip
        return report, versioning.add(path)

    if versioning.in_stage() or versioning.stage_of(path):
        # A stage's output follows from what dvc.yaml names, and an earlier version is not among that.
        if path.exists() and not versioning.in_stage() and not versioning.is_cached(versioning.measure(path)):
            versioning.add(path)
        return Added(*bring(None), None, False)
    with exclusive(name, note):
        listed = len(history(name))
        versions = keep(name)
        kept = versions[-1] if len(versions) > listed else None
        with earlier_sides(name, versions, fresh_splits) as earlier:
            report, digest = bring(earlier)
        out = versioning.recorded_out(path)
        if not out:  # a stage with a template in dvc.yaml
            return Added(report, digest, None, False)
        if versions and versions[-1].md5 == digest and not versions[-1].added:
            versions.pop()  # what this add brings lay there already: an add of it was cut off before it was listed
            kept = None
        before = latest(versions) if versions else None
        lost = _losses(before, path) if before and before.md5 != digest else ()
        known = [version for version in versions if version.md5 == digest]
        same = _same_but_source(before, path) if before and not known else ()
        if not known:
            versions.append(
                Version(
                    number=len(versions) + 1, md5=digest, size=out["size"], nfiles=out["nfiles"], subset=subset,
                    added=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), source=str(source),
                    images=_images(Dataset.open(path)), notes=moves(report) + lost + same,
                )
            )  # fmt: skip
        write_list(name, versions)
        return Added(report, digest, (known or versions)[-1], not known, kept, lost)


def _losses(before: Version, path: Path) -> tuple[str, ...]:
    """What a version had that the dataset at `path` lacks; nothing where its bytes are nowhere, see `fresh_splits`."""
    with suppress(RuntimeError, ValueError, OSError), opened(before.md5) as dataset:
        return losses(dataset, Dataset.open(path), f"version {before.number}")
    return ()


def _same_but_source(before: Version, path: Path) -> tuple[str, ...]:
    """A note where the dataset at `path` differs from a version in nothing but where it came from."""
    with suppress(RuntimeError, ValueError, OSError), opened(before.md5) as dataset:
        source = {"source": Dataset.open(path).info.source}
        if dataset.info.model_copy(update=source) == Dataset.open(path).info:
            return (f"source only: otherwise the same as version {before.number}",)
    return ()


def moves(report: IngestReport) -> tuple[str, ...]:
    """What an ingest did to the sides of earlier images, one sentence each."""
    notes = ["splits drawn afresh, earlier versions left out of account"] if report.fresh_splits else []
    for moved in report.moved:
        why = "by the source's own splits" if moved.by_source else "to stay with their group"
        if report.fresh_splits and not moved.by_source:
            why = "drawn afresh"
        notes.append(
            f"{moved.images:,} {noun_of(report.family)} moved from {moved.before} to {moved.after}, {why}"
        )
    return tuple(notes)


def keep(name: str) -> list[Version]:
    """Record what lies in the folder, if nothing did, so that it can be replaced; returns the versions."""
    path = store() / name
    versions = history(name)
    if not path.exists():
        return versions
    found = versioning.measure(path)
    listed = found in [version.md5 for version in versions]
    if listed:
        if not versioning.is_cached(found):
            versioning.save(path)
        return versions
    versioning.add(path)
    out = versioning.recorded_out(path)
    if out:
        notes = (UNRECORDED,) if versions else ()
        versions.append(_adopt(len(versions) + 1, found, out["size"], out["nfiles"], notes))
        write_list(name, versions)
    return versions


@contextmanager
def earlier_sides(name: str, versions: Sequence[Version], fresh_splits: bool) -> Iterator[Earlier | None]:
    """The sides of all images of the latest version and before; None where there is none.

    An add remembers what stood where before it, so the latest that an add made tells all; what was recorded since by
    other means, a `dvc add` say, counts too. Raises RuntimeError if its bytes are nowhere, except with `fresh_splits`.
    """
    parts: list[Earlier] = []
    with ExitStack() as stack:
        for version in reversed(versions):
            try:
                parts.append(read_earlier(stack.enter_context(opened(version.md5))))
            except (RuntimeError, ValueError, OSError) as error:
                if UNRECORDED in version.notes and len(versions) > 1:
                    continue  # damaged, say; what an add made before it tells all
                if fresh_splits:
                    parts.clear()
                    break
                raise RuntimeError(
                    f"version {version.number} of {name} says which images are for testing, and cannot be read: "
                    f"{error}; or start over with --fresh-splits"
                ) from error
            if version.added:
                break
        yield join_earlier(parts) if parts else None
