"""The flow that brings a dataset in, or its next version: `./convoy data add` from a form, and the checks of training.

What was ingested stays, whatever the checks say: a run that fails by them says what training would stop at.
"""

from typing import Annotated, Any

from prefect import flow

from data.address import has_secret, public_url
from data.dataset import Dataset, FamilyName, noun_of
from data.ingest import IngestConfig
from pipelines import environment, steps
from pipelines.checks import run_checks
from pipelines.configuration import AcceptForm, SectionForm
from pipelines.parameters import section
from pipelines.refresh import bring
from pipelines.reporting import Reporter, progress_of
from tasks import versions
from tasks.paths import store
from tasks.versions import Added


@flow(name="ingest", flow_run_name="ingest-{name}", persist_result=False)
def ingest_dataset(
    source: str,
    name: str,
    family: FamilyName,
    licence: str = "not stated",
    subset: str = "",
    sha256: str | None = None,
    fresh_splits: bool = False,
    changes: Annotated[dict[str, Any] | None, SectionForm(IngestConfig)] = None,
    accept: Annotated[tuple[str, ...], AcceptForm()] = (),
) -> dict[str, Any]:
    """Ingest a source as a dataset, or as its next version, record it with DVC, and check it as training would.

    Args:
        source: a folder, archive or CSV on the worker's machine, a URL, or a built-in such as sklearn:digits
        name: what the dataset is called; under a name that is taken it is the next version
        family: what the dataset is for
        licence: under which terms the items may be used; kept with the dataset
        subset: of a source that holds several datasets, the folder that counts; empty: all of it
        sha256: checksum of the archive: another file is refused
        fresh_splits: draw the splits anew, whatever stood where in earlier versions
        changes: what differs from the section `ingest` of params.yaml; an empty field stays as it says
        accept: checks whose errors are waived
    """
    environment.prepare()
    if has_secret(source):
        raise ValueError(
            f"source (={public_url(source)}): Prefect keeps what a flow is given, so it may hold neither user and "
            "password nor a signature: put user and password into ~/.netrc of the worker, or run ./convoy data add; "
            "and delete this flow run"
        )
    config = section("ingest", IngestConfig, changes or {})
    reporter = steps.reporter_here()
    added = ingest(source, name, family, licence, subset, sha256, fresh_splits, config, reporter)
    for text in (*added.losses, *versions.moves(added.report)):
        reporter.note(f"ATTENTION: {text}")
    version = added.version and added.version.number
    what = f"version {version}" if version else added.digest
    counted = f"{added.report.num_images:,} {noun_of(family)}, {len(added.report.set_aside):,} set aside"
    reporter.note(f"{name}: {what}{'' if added.is_new else ', the bytes of before'}: {counted}")
    findings, _verdict = run_checks(Dataset.open(store() / name), accept, reporter)
    return {
        "name": name, "digest": added.digest, "version": version, "new_version": added.is_new,
        "num_images": added.report.num_images, "set_aside": len(added.report.set_aside),
        "findings": [finding.name for finding in findings.findings],
    }  # fmt: skip


@steps.step("ingest")
def ingest(
    source: str, name: str, family: FamilyName, licence: str, subset: str, sha256: str | None, fresh_splits: bool,
    config: IngestConfig, reporter: Reporter,
) -> Added:  # fmt: skip
    """Fetch the source where it is a URL, and make the next version of it; the same bytes are no new version."""
    return versions.add(
        bring(source, sha256, config, reporter), name=name, family=family, config=config, licence=licence,
        fresh_splits=fresh_splits, subset=subset, progress=progress_of(reporter, "ingest", noun_of(family)),
        note=reporter.note,
    )  # fmt: skip
