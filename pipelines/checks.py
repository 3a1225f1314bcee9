"""What training does with the checks of its dataset: it obeys them, and keeps what they found with the run."""

import json
from collections.abc import Sequence
from pathlib import Path

from data.dataset import Dataset
from data.findings import Findings, Verdict, examine, obey
from pipelines.artifacts import publish_findings
from pipelines.reporting import Reporter
from pipelines.steps import step
from tasks import registry

ACCEPTED_TAG, FOUND_TAG = "checks.accepted", "checks.found"


@step("run checks")
def run_checks(
    dataset: Dataset, accept: Sequence[str], reporter: Reporter, waived: Sequence[str] = ()
) -> tuple[Findings, Verdict]:
    """Look for faults in the dataset, and tell of them; raises ValueError for an error that is not accepted.

    `waived`: checks of what this run does not use.
    """
    findings, verdict = examine(dataset, accept, waived)
    publish_findings(findings, verdict)
    names = [finding.name for finding in findings.findings if finding.severity != "info"]
    if names:
        reporter.note(f"checks: {', '.join(names)}; see ./convoy data check {findings.name}")
    if verdict.unused:
        reporter.note(f"accepted and not found: {', '.join(verdict.unused)}")
    obey(findings, verdict)
    return findings, verdict


@step("keep findings")
def keep_findings(findings: Findings, verdict: Verdict, folder: Path, run_id: str) -> None:
    """Put what was found, and what of it was accepted, into the run's folder and its record."""
    accepted = [finding.name for finding in verdict.accepted]
    values = {"accepted": accepted, **findings.model_dump(mode="json", exclude={"time_s"})}
    file = folder / "checks" / "findings.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    registry.log_folder(run_id, file, "checks")
    counts = {finding.name: finding.count for finding in findings.findings if finding.severity != "info"}
    counts |= {finding.name: finding.count for finding in verdict.accepted}
    tags = {FOUND_TAG: counts, ACCEPTED_TAG: {name: counts[name] for name in accepted}}
    registry.set_tags(run_id, {tag: tally(numbers) for tag, numbers in tags.items() if numbers})


def tally(numbers: dict[str, int]) -> str:
    """`class-missing=2, truncated=7`."""
    return ", ".join(f"{name}={number}" for name, number in numbers.items())


class CheckPage:
    """The report with pictures of a run's dataset: left with the run once, when training is under way."""

    def __init__(
        self, dataset: Dataset, findings: Findings, verdict: Verdict, folder: Path, run_id: str
    ) -> None:
        self.dataset, self.findings, self.verdict = dataset, findings, verdict
        self.file, self.run_id, self.left = folder / "checks" / "checks.html", run_id, False

    def leave(self, reporter: Reporter) -> None:
        """Write and log it, if that is not done. Hours of training do not end for it: a fault is a note."""
        if self.left:
            return
        self.left = True
        from tasks.checkpage import write_check_page  # the first step need not wait for it

        try:
            write_check_page(self.file, self.dataset, self.findings, self.verdict)
            registry.log_folder(self.run_id, self.file, "checks")
        except Exception as error:
            reporter.note(f"the report of the checks was not kept ({type(error).__name__}: {error})")
