"""`./convoy data check`: what is wrong with a dataset, before a model exists."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from data.checks import check as check_bytes
from data.checks import shard_fault
from data.counting import counted
from data.dataset import Dataset, noun_of, way_back
from data.findings import Finding, Findings, Verdict, find, judge, parse_accepted
from pipelines.options import Accept, Json, quiet_stdout
from pipelines.render import ConsoleReporter, emit, table
from pipelines.reporting import Clock, progress_of
from tasks.paths import store
from tasks.versions import open_stored

STYLES = {"error": "bold red", "warning": "yellow", "info": ""}


def check(
    name: str,
    /,
    *,
    html: Path | None = None,
    accept: Accept = None,
    quick: Annotated[bool, Parameter(negative=())] = False,
    as_json: Json = False,
) -> int:
    """Say whether a dataset is what ingest wrote, and what is wrong with it; exit code 1 for errors.

    Every byte is read and every picture decoded again, then the checks run that training runs too.
    Example: ./convoy data check products --html checks.html

    Parameters
    ----------
    name
        Name of an ingested dataset; ./convoy data list shows them.
    html
        Write the report with pictures and charts to this file, too.
    quick
        Compare the files' hashes only, and decode nothing.
    """
    accepted = parse_accepted(accept or [])
    dataset = open_stored(name)
    with quiet_stdout(as_json):
        problems, num_images, time_s = damage(dataset, quick)
        findings = verdict = None
        if not problems:
            findings = find(dataset)
            verdict = judge(findings, accepted)
            if html is not None:
                # Only now: it brings Pillow and charts, which few calls need.
                from tasks.checkpage import write_check_page

                write_check_page(html, dataset, findings, verdict)
    document = {
        "name": name, "items": noun_of(dataset.info.family), "num_images": num_images, "problems": problems,
        "time_s": time_s,
    }  # fmt: skip
    emit(document | document_of(findings, verdict, html), views(document, findings, verdict, html), as_json)
    return int(bool(problems) or bool(verdict and verdict.stopped_by))


def damage(dataset: Dataset, quick: bool) -> tuple[tuple[str, ...], int, float]:
    """What is no longer as ingest wrote it, the number of images looked at, and the seconds that took."""
    if quick:
        clock = Clock()
        faults = [
            (shard.file, shard_fault(dataset.path / shard.file, shard, dataset.info))
            for shard in dataset.info.shards
        ]
        problems = tuple(f"{file}: {fault}" for file, fault in faults if fault)
        return problems, sum(shard.rows for shard in dataset.info.shards), clock.seconds()
    reporter = ConsoleReporter()
    hear = progress_of(reporter, "check") if reporter.console.is_terminal else None
    try:
        report = check_bytes(dataset, progress=hear)
    finally:
        reporter.close()
    return report.problems, report.num_images, report.time_s


def document_of(findings: Findings | None, verdict: Verdict | None, html: Path | None) -> dict[str, Any]:
    """The findings as plain values; null where the dataset is damaged and nothing was looked for."""
    if findings is None or verdict is None:
        return {"findings": None, "stopped_by": None, "accepted": None, "not_found": None, "html": None}
    return {
        "findings": [finding.model_dump(mode="json") for finding in findings.findings],
        "stopped_by": [finding.name for finding in verdict.stopped_by],
        "accepted": [finding.name for finding in verdict.accepted],
        "not_found": verdict.unused,
        "html": html,
    }


def views(
    document: dict[str, Any], findings: Findings | None, verdict: Verdict | None, html: Path | None
) -> list[Table | str]:
    """The report, for a person."""
    name, problems = document["name"], document["problems"]
    if findings is None or verdict is None:
        damaged = table(
            f"{name}: {counted(len(problems), 'problem')}", ("problem",), [[problem] for problem in problems]
        )
        mend = f"the checks were not run; {way_back(store() / name)}"
        return [damaged, mend]
    amount = f"{document['num_images']:,} {document['items']}"
    fine = f"{name}: {amount}, all as ingest wrote them ({document['time_s']:.1f} s)"
    shown: list[Table | str] = [fine]
    if findings.findings:
        shown.append(findings_table(findings, verdict, explained=True))
    else:
        shown.append("no check found anything")
    if verdict.unused:
        shown.append(f"accepted and not found: {', '.join(verdict.unused)}")
    if verdict.stopped_by:
        names = ",".join(finding.name for finding in verdict.stopped_by)
        shown.append(f"training does not start with these errors, unless they are accepted: --accept {names}")
    what = "them" if findings.findings else "what is in it"
    shown.append(f"wrote {html}" if html else f"see {what}: ./convoy data check {name} --html checks.html")
    return shown


def findings_table(findings: Findings, verdict: Verdict, explained: bool = False) -> Table:
    """A line a finding, coloured by how grave it is; if wished with what it means and what to do."""
    accepted = {finding.name for finding in verdict.accepted}
    columns = ["", "check", "found", *(["what it means → what to do"] if explained else [])]
    rows = [
        (
            "accepted" if finding.name in accepted else finding.severity,
            finding.name,
            found(finding),
            f"{finding.meaning} → {finding.remedy}",
        )[: len(columns)]
        for finding in findings.findings
    ]
    view = table("Checks", columns, rows)
    for row, finding in zip(view.rows, findings.findings, strict=True):
        row.style = "" if finding.name in accepted else STYLES[finding.severity]
    return view


def found(finding: Finding) -> str:
    """How much, and where for instance."""
    text = f"{finding.amount}: {finding.detail}" if finding.detail else finding.amount
    return f"{text}; for instance {' and '.join(finding.examples[0][:2])}" if finding.examples else text
