"""What the checks of `data.checklist` find in a stored dataset, and the gate that training obeys.

All of it comes from the columns and report.json: no picture is read. Whether the stored bytes are still those that
were written is another question, see `data.checks.check`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data import faults
from data.checklist import CHECKS, NAMES, SEVERITIES, Check, Severity
from data.counting import counted, singular
from data.dataset import Dataset, in_words_of
from data.evidence import gather
from data.parameters import Parameters


class Finding(Parameters):
    """One check that found something."""

    name: str
    severity: Severity
    count: int
    of: int  # what `count` is a part of; 0 where a share has no meaning
    unit: str
    detail: str
    meaning: str
    remedy: str
    examples: tuple[tuple[str, ...], ...]  # ids, or places in the source; what belongs together is one entry

    @property
    def amount(self) -> str:
        """`285 of 10,000 test pictures (2.9%)`, `1 entry`."""
        whole = counted(self.of or self.count, singular(self.unit), self.unit)
        return f"{self.count:,} of {whole} ({percent(self.count / self.of)})" if self.of else whole


class Findings(Parameters):
    """All that the checks found, the gravest first."""

    name: str
    num_images: int
    findings: tuple[Finding, ...]
    time_s: float

    def of_severity(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)


@dataclass(frozen=True)
class Verdict:
    """What the gate makes of findings."""

    stopped_by: tuple[Finding, ...]  # errors that nobody accepted
    accepted: tuple[Finding, ...]
    unused: tuple[str, ...]  # accepted, and not found


def percent(share: float) -> str:
    """0.0004 as `0.04%`, 0.0285 as `2.9%`: two digits that say something."""
    return f"{100 * share:.2g}%" if share < 0.1 else f"{share:.0%}"


def find(dataset: Dataset) -> Findings:
    """Run all checks that the dataset's family has; raises FileNotFoundError or ValueError if it cannot be read."""
    started = time.perf_counter()
    evidence = gather(dataset)
    found = []
    for check in CHECKS:
        if not check.of_family(dataset.info):
            continue
        fault = check.find(evidence)
        if fault.count:
            found.append(make_finding(check, fault, dataset.info.family))
    return Findings(
        name=dataset.info.name,
        num_images=len(evidence),
        findings=tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))),
        time_s=round(time.perf_counter() - started, 3),
    )


def make_finding(check: Check, fault: faults.Found, family: str) -> Finding:
    """A fault with its check's words, said of the family's items, and how grave it is."""
    limit = check.stops_above
    stops = limit is not None and fault.count >= faults.FEWEST_TO_STOP and fault.count / fault.of > limit
    return Finding(
        name=check.name,
        severity="error" if stops else check.severity,
        count=fault.count,
        of=fault.of,
        unit=fault.unit,
        detail=fault.detail,
        meaning=in_words_of(family, check.meaning),
        remedy=in_words_of(family, check.remedy),
        examples=fault.examples,
    )


def parse_accepted(texts: Sequence[str]) -> tuple[str, ...]:
    """Names of checks, as a person lists them (`["duplicates,cmyk", "alpha"]`): sorted, each once.

    Raises a ValueError for a name that no check has, listing those there are.
    """
    names = {name.strip() for text in texts for name in text.split(",") if name.strip()}
    unknown = sorted(names - set(NAMES))
    if unknown:
        raise ValueError(f"--accept {', '.join(unknown)}: no such check; known: {', '.join(sorted(NAMES))}")
    return tuple(sorted(names))


def judge(findings: Findings, accepted: Sequence[str], waived: Sequence[str] = ()) -> Verdict:
    """Which errors stop a run where a person accepts these names, and others are of what it does not use."""
    there = {finding.name for finding in findings.findings}
    return Verdict(
        stopped_by=tuple(f for f in findings.of_severity("error") if f.name not in {*accepted, *waived}),
        accepted=tuple(f for f in findings.findings if f.name in accepted),
        unused=tuple(name for name in accepted if name not in there),
    )


# of the dataset that was asked about last, by its path and info
_found: dict[tuple[Path, str], Findings] = {}


def examine(
    dataset: Dataset, accepted: Sequence[str], waived: Sequence[str] = ()
) -> tuple[Findings, Verdict]:
    """What the gate of training says of a dataset; raises FileNotFoundError or ValueError if it cannot be read.

    A command asks before it starts engines, and the flow that it runs asks again: the second answer costs nothing.
    """
    key = (dataset.path, dataset.info.model_dump_json())
    if key not in _found:
        _found.clear()
        _found[key] = find(dataset)
    return _found[key], judge(_found[key], accepted, waived)


def obey(findings: Findings, verdict: Verdict) -> None:
    """Raise ValueError for errors that are not accepted."""
    if verdict.stopped_by:
        raise ValueError(refusal(findings, verdict))


def refusal(findings: Findings, verdict: Verdict) -> str:
    """Why training does not start, how to look, and how to go on: one line."""
    errors = "; ".join(
        f"{f.name}: {f.amount}" + (f" ({f.detail})" if f.detail else "") for f in verdict.stopped_by
    )
    names = ",".join(f.name for f in verdict.stopped_by)
    return (
        f"dataset {findings.name!r} has faults that stop training: {errors}. Look at them: ./convoy data check "
        f"{findings.name} --html checks.html; then mend the source and add it again, or train with --accept {names}"
    )
