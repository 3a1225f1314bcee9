"""Data brought up to date before a training: fetched from DVC's remote, or ingested again from where it came from."""

from typing import Literal

from data.address import Fetched, is_url
from data.dataset import Dataset, noun_of
from data.ingest import IngestConfig
from pipelines.parameters import section
from pipelines.reporting import Clock, Reporter, Status, progress_of
from tasks import placing, versioning, versions
from tasks.paths import downloads, store

Refresh = Literal["none", "dvc", "source"]


def refresh_dataset(name: str, how: Refresh, reporter: Reporter) -> str:
    """Bring a dataset up to date, and say what that did.

    none: as it lies there. dvc: the version that the pointer names, which git brings, from the remote. source: the
    folder, URL or built-in that its latest version came from, ingested again: the same bytes are no new version.
    Raises ValueError, FileNotFoundError or RuntimeError, as `data pull` and `data add` do.
    """
    if how == "none":
        return "the data was taken as it lay there"
    before = versions.current(name)
    if how == "dvc":
        placing.pull([name], False, reporter.note)
        where = "DVC's remote"
    else:
        where = ingest_again(name, reporter)
    now = versions.current(name)
    if now == before:
        return f"{where} had nothing new: {now}"
    return f"{where} brought {now} in place of {before or 'nothing'}"


def ingest_again(name: str, reporter: Reporter) -> str:
    """Ingest the source of a dataset's latest version again; returns the source."""
    info = versions.open_stored(name).info
    source, subset = source_of(name)
    config = section("ingest", IngestConfig, {})
    found = bring(source, None, config, reporter)
    added = versions.add(
        found, name=name, family=info.family, config=config, licence=info.licence, subset=subset,
        progress=progress_of(reporter, "ingest", noun_of(info.family)), note=reporter.note,
    )  # fmt: skip
    for text in (*added.losses, *versions.moves(added.report)):
        reporter.note(f"ATTENTION: {text}")
    return source


def source_of(name: str) -> tuple[str, str]:
    """Where a dataset's latest version came from, without a checksum, and which subset of it.

    Raises ValueError where that is not known, or what is there is another's business.
    """
    path = store() / name
    stage = versioning.stage_of(path)
    latest = None if stage else versions.latest(versions.require_list(name))
    source = Dataset.open(path).info.source if latest is None else latest.source
    if not source:
        raise ValueError(
            f"where {name} came from is not recorded: add it again, ./convoy data add SOURCE --name {name}, or "
            "retrain with --refresh none"
        )
    return source.partition("#sha256=")[0], latest.subset if latest else ""


def bring(source: str, sha256: str | None, config: IngestConfig, reporter: Reporter) -> str | Fetched:
    """A source that ingest can open: a URL's file is fetched, and a checksum is compared."""
    if sha256 is None and not is_url(source):
        return source
    from data.download import fetch  # only now: it takes a while to import, and most sources are local

    clock = Clock()

    def hear(done: int, total: int | None) -> None:
        rate = clock.own_rate(done) or 0.0
        size = (done // 10**6, total and total // 10**6)
        reporter.show(Status("download", *size, rate / 1e6, unit="MB"))

    return fetch(source, downloads(), sha256=sha256, max_bytes=int(config.max_source_gb * 1e9), hear=hear)
