"""`./convoy data versions|checkout|diff|remote|push|pull`: the versions of a dataset, and where they are kept."""

import sys
from contextlib import ExitStack
from getpass import getpass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from data.counting import counted
from data.dataset import SPLITS, Dataset, noun_of
from data.difference import KINDS, Difference, change_line, changes_csv, compare
from data.files import write_whole
from pipelines.options import Json, quiet_stdout
from pipelines.render import ConsoleReporter, emit, pairs, table
from tasks import placing, versioning
from tasks import versions as history
from tasks.paths import store
from tasks.versions import Version

MAX_LISTED = 3  # examples of a kind of change
MAX_CLASSES = 20  # of which a table shows changes; faces come in thousands
AllVersions = Annotated[bool, Parameter(name="--all-versions", negative=())]


def versions(name: str, /, *, as_json: Json = False) -> None:
    """List the versions of a dataset; a star marks the one that is checked out.

    Parameters
    ----------
    name
        Name of a dataset; ./convoy data list shows them.
    """
    listed = history.require_list(name)
    digest = history.current(name)
    rows = [
        [
            "*" if version.md5 == digest else "",
            version.number,
            version.md5[:8],
            version.added or None,
            *(version.images.get(split) for split in SPLITS),
            f"{version.size / 1e6:,.1f}",
            version.source or None,
            "; ".join(version.notes),
        ]
        for version in listed
    ]
    columns = ("", "version", "digest", "added", *SPLITS, "MB", "source", "to know")
    emit(
        {
            "name": name,
            "current": digest,
            "versions": [version_document(version, digest) for version in listed],
        },
        [table(f"Versions of {name}", columns, rows)],
        as_json,
    )


def version_document(version: Version, digest: str) -> dict[str, Any]:
    return {**version.model_dump(mode="json"), "current": version.md5 == digest}


def checkout(name: str, version: str, /, *, as_json: Json = False) -> None:
    """Put a version of a dataset into its folder; the one that is there stays in DVC's cache.

    A version whose bytes are not here is fetched from the remote. A folder that was changed by hand is left alone.
    Example: ./convoy data checkout products 2

    Parameters
    ----------
    name
        Name of a dataset; ./convoy data list shows them.
    version
        Its number, latest, or the first digits of its digest; ./convoy data versions NAME shows them.
    """
    found = placing.checkout(name, version, ConsoleReporter().note)
    said = f"{name}: version {found.number} ({found.md5}) is in {store() / name}"
    emit({"name": name, **version_document(found, found.md5)}, [said], as_json)


def diff(
    name: str,
    before: str | None = None,
    after: str = "current",
    /,
    *,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Compare two versions of a dataset: images added, removed, changed, relabelled, renamed, moved; groups.

    Nothing that is checked out changes.
    Example: ./convoy data diff products 1 2

    Parameters
    ----------
    name
        Name of a dataset; ./convoy data list shows them.
    before
        The earlier version: number, latest, current, or the first digits of a digest; otherwise the one before AFTER,
        past what an add found in the folder.
    after
        The later version; otherwise the one that is checked out.
    out
        A CSV to write, with every change.
    """
    listed = history.require_list(name)
    new = history.find(name, after, listed)
    if before is None and new.number == 1:
        raise ValueError(f"{name} has no version before version 1; name two: ./convoy data diff {name} A B")
    earlier_ones = listed[: new.number - 1]
    old = history.latest(earlier_ones) if before is None else history.find(name, before, listed)
    with ExitStack() as stack:
        earlier, later = (stack.enter_context(history.opened(version.md5)) for version in (old, new))
        difference, changes = compare(earlier, later, (f"version {old.number}", f"version {new.number}"))
        noun = noun_of(later.info.family)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, changes_csv(changes))
    views = difference_views(difference, noun)
    document = {**difference.model_dump(mode="json"), "out": out}
    emit(document, [*views, f"wrote {len(changes):,} {noun} to {out}"] if out else views, as_json)


def difference_views(difference: Difference, noun: str) -> list[Table | str]:
    """A difference for a person: what concerns the test split first; `noun`: what the items are called."""
    counts = difference.counts
    title = f"{difference.name}: {difference.before} → {difference.after}"
    sizes = ", ".join(
        f"{split} {difference.images_before[split]:,} → {difference.images_after[split]:,}"
        for split in SPLITS
    )
    if not any(counts.values()):
        return [f"{title}: the same {difference.unchanged:,} {noun}; {sizes}"]
    views: list[Table | str] = [f"{title}: {sizes}; {difference.unchanged:,} {noun} are the same"]
    views += [
        f"MOVED {way}: {number:,} {noun}, for instance {', '.join(difference.move_examples[way][:MAX_LISTED])}"
        + ("; models of before were tested on them" if way.startswith("test →") else "")
        for way, number in difference.moves.items()
    ]
    kinds = [kind for kind in KINDS if counts[kind]]
    by_split = difference.by_split
    rows = [[kind, counts[kind], *(by_split[kind][split] for split in SPLITS)] for kind in kinds]
    views.append(table(noun.capitalize(), ("", "all", *SPLITS), rows))
    views += class_views(difference)
    if difference.groups:
        groups = [
            (
                kind,
                number,
                ", ".join(group.group[:20] for group in difference.group_examples[kind][:MAX_LISTED]),
            )
            for kind, number in difference.groups.items()
        ]
        views.append(table("Groups", ("", "number", "for instance"), groups))
    lines = [
        (kind, change_line(change)) for kind in kinds for change in difference.examples[kind][:MAX_LISTED]
    ]
    views.append(table("For instance", ("", noun.removesuffix("s")), lines))
    return views


def class_views(difference: Difference) -> list[Table | str]:
    """Changes by class, the most changed first."""
    kinds = [kind for kind in KINDS if difference.counts[kind]]
    names = {name for kind in kinds for name in difference.by_class[kind]}
    counts = {name: [difference.by_class[kind].get(name, 0) for kind in kinds] for name in names}
    order = sorted(names, key=lambda name: (-sum(counts[name]), name))
    rows = [[name, *counts[name]] for name in order[:MAX_CLASSES]]
    views: list[Table | str] = [table("By class", ("class", *kinds), rows)]
    if len(order) > MAX_CLASSES:
        views.append(f"and {len(order) - MAX_CLASSES} more classes: --json")
    for what, classes in (("new", difference.classes_added), ("gone", difference.classes_removed)):
        if classes:
            views.append(f"{what} classes: {', '.join(classes[:MAX_CLASSES])}")
    return views


def remote(
    url: str = "",
    /,
    *,
    option: Annotated[
        list[str] | None, Parameter(metavar="KEY=VALUE", consume_multiple=False, negative=())
    ] = None,
    local: Annotated[bool, Parameter(name="--local", negative=())] = False,
    as_json: Json = False,
) -> None:
    """Show or set where versions are pushed to: a folder, ssh://, s3://, gs:// or what else DVC takes.

    It stands in .dvc/config, which goes to git; passwords and keys go to .dvc/config.local, which does not.
    Example: ./convoy data remote s3://bucket/convoy --option endpointurl=https://store.example.org

    Parameters
    ----------
    url
        The address; nothing shows the one that is set.
    option
        An option of DVC's for this remote, as KEY=VALUE; may be given often. A secret as KEY=-: it is read from a
        line of standard input, for a command's words are seen by others and kept by the shell.
    local
        Keep all of it out of git, in .dvc/config.local.
    """
    parted = (entry.partition("=")[::2] for entry in option or [])
    options = {key: value if value != "-" else secret(key) for key, value in parted}
    if bad := [key for key, value in options.items() if not key or not value]:
        raise ValueError(f"--option (={bad[0]}) must be KEY=VALUE")
    found = versioning.set_remote(url, options, local=local) if url or options else versioning.remote()
    empty = "no remote is set; set one: ./convoy data remote URL (a folder, ssh://, s3://, gs://)"
    emit({"remote": found}, [pairs("Remote", found) if found else empty], as_json)


def secret(key: str) -> str:
    """A line of standard input, which is not shown where a person types it."""
    return getpass(f"{key}: ") if sys.stdin.isatty() else sys.stdin.readline().strip()


def push(*names: str, all_versions: AllVersions = False, as_json: Json = False) -> None:
    """Copy to the remote what it lacks of the checked-out versions of datasets; no names: of all that are here.

    Parameters
    ----------
    names
        Names of datasets; ./convoy data list shows them.
    all_versions
        Their earlier versions too.
    """
    with quiet_stdout(as_json):
        if names:
            pushed, (files, absent) = list(names), placing.push(names, all_versions)
        else:
            pushed, files, absent = placing.push_all(all_versions)
    views = [f"pushed {counted(files, 'file')} of {', '.join(pushed) or 'no dataset'}"]
    views += [f"not here, so not pushed: {', '.join(absent)}"] if absent else []
    emit({"names": pushed, "files": files, "not_here": absent}, views, as_json)


def pull(*names: str, all_versions: AllVersions = False, as_json: Json = False) -> None:
    """Fetch the versions that the pointers name and put them into their folders; no names: of all datasets.

    Without names, a dataset that the remote lacks is told and passed over; a named one must be there.

    Parameters
    ----------
    names
        Names of datasets that are recorded in git, whether they are here or not.
    all_versions
        Fetch their other versions too, into DVC's cache.
    """
    note = ConsoleReporter().note
    absent: dict[str, str] = {}
    if names:
        changed = placing.pull(names, all_versions, note)
    else:
        changed, absent = placing.pull_all(all_versions, note)
    views = [f"{name}: {pulled(name, new)}" for name, new in changed.items()]
    views += [f"not fetched: {name}: {reason}" for name, reason in absent.items()]
    document = {"datasets": changed, "not_fetched": absent}
    emit(document, views or [f"no dataset is recorded in {store()}"], as_json)


def pulled(name: str, new: bool) -> str:
    info = Dataset.open(store() / name).info
    images = sum(info.num_images(split) for split in SPLITS)
    return f"{images:,} {noun_of(info.family)}, {history.current(name)}{'' if new else ', were here already'}"
