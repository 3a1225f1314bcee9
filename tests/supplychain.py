"""What `make check` asks of every package in requirements.lock: a licence that is allowed, and no known vulnerability.

    python -m tests.supplychain            both, in a few lines
    python -m tests.supplychain --list     the licence of each package too

Licences come from the metadata of what is installed, so this needs no network; tests/supplychain.toml says which are
allowed. Vulnerabilities come from PyPI's advisories by pip-audit. Where PyPI cannot be reached nothing is looked up,
and that is said; it is no failure. The exit code is 1 for what is not allowed, or known and not named in the file.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import requests
from license_expression import BaseSymbol, ExpressionError, get_spdx_licensing

from pipelines.doctor import locked_versions
from tasks.paths import ROOT

LOCK = ROOT / "requirements.lock"
POLICY = ROOT / "tests" / "supplychain.toml"
PROBE = "https://pypi.org/pypi/pip/json"
CONNECT_S, ANSWER_S = 3.0, 10.0
TROVE = "License :: "

_SPDX = get_spdx_licensing()


@dataclass(frozen=True)
class Policy:
    """tests/supplychain.toml."""

    allowed: frozenset[str]  # SPDX identifiers, an exception included
    names: dict[str, str]  # what older metadata say, and the SPDX expression that it means
    packages: dict[str, str]  # the licence of packages that somebody has looked into and let in by name
    accepted: dict[str, str]  # a vulnerability's id, and why it does no harm here


@dataclass(frozen=True)
class Vulnerability:
    """What PyPI's advisories know of a package."""

    package: str
    version: str
    ids: tuple[str, ...]  # and its other names
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        remedy = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "not fixed yet"
        return f"{self.package} {self.version}: {', '.join(self.ids)}, {remedy}"


def read_policy(file: Path = POLICY) -> Policy:
    """The file of what is allowed."""
    values = tomllib.loads(file.read_text())
    packages = {name: entry["licence"] for name, entry in values["packages"].items()}
    return Policy(frozenset(values["allowed"]), values["names"], packages, values["vulnerabilities"])


def licence_of(found: Distribution, policy: Policy) -> str:
    """The SPDX expression of an installed package; "" if it does not say one that is understood.

    PEP 639's License-Expression goes before the older field License, and that before classifiers.
    """
    for field in ("License-Expression", "License"):
        if understood := expression(found.metadata.get(field) or "", policy):
            return understood
    classifiers = [
        text.rpartition(" :: ")[2] for text in found.metadata.get_all("Classifier", []) if TROVE in text
    ]
    known = [policy.names[text] for text in classifiers if text in policy.names]
    return " AND ".join(sorted(set(known))) if known and len(known) == len(classifiers) else ""


def expression(text: str, policy: Policy) -> str:
    """A licence as SPDX writes it, "" if the text is no such thing."""
    text = policy.names.get(text, text)
    try:
        parsed = _SPDX.parse(text, validate=True)
    except ExpressionError:
        return ""
    return "" if parsed is None else str(parsed)


def is_allowed(licence: str, policy: Policy) -> bool:
    """Whether a licence is: all parts of an AND, one of an OR."""

    def let_in(part: Any) -> bool:
        if isinstance(part, BaseSymbol):
            return part.render() in policy.allowed
        each = (let_in(argument) for argument in part.args)
        return all(each) if isinstance(part, _SPDX.AND) else any(each)

    return let_in(_SPDX.parse(licence))


def licences(lock: Path, policy: Policy) -> tuple[dict[str, str], list[str]]:
    """The licence of each package of the lock, and what is wrong, a line each."""
    found: dict[str, str] = {}
    faults = []
    for name, version in locked_versions(lock).items():
        try:
            licence = policy.packages.get(name) or licence_of(distribution(name), policy)
        except PackageNotFoundError:
            faults.append(f"{name} {version} is not installed, so its licence is not known: make setup")
            continue
        found[name] = licence or "not known"
        if not licence:
            faults.append(
                f"{name} {version}: its metadata name no licence; read it, and name it in {POLICY.name}"
            )
        elif name not in policy.packages and not is_allowed(licence, policy):
            faults.append(
                f"{name} {version}: {licence} is not allowed by {POLICY.name}; take another package"
            )
    return found, faults


def why_unreachable() -> str:
    """Why PyPI's advisories cannot be asked; "" where they can."""
    try:
        requests.get(PROBE, timeout=(CONNECT_S, ANSWER_S)).raise_for_status()
    except requests.RequestException as error:
        return type(error).__name__
    return ""


def known_vulnerabilities(lock: Path) -> list[Vulnerability]:
    """What pip-audit finds in the packages of the lock; raises RuntimeError where it does not end well."""
    command = [
        sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--no-deps", "--disable-pip",
        "--format", "json", "--progress-spinner", "off",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return list(read_audit(json.loads(done.stdout)))
    except (ValueError, KeyError):
        raise RuntimeError(f"pip-audit: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}") from None


def read_audit(document: Any) -> Iterator[Vulnerability]:
    """The vulnerabilities in pip-audit's JSON."""
    for package in document["dependencies"]:
        for each in package.get("vulns", []):
            ids = (each["id"], *sorted(each["aliases"]))
            yield Vulnerability(package["name"], package["version"], ids, tuple(each["fix_versions"]))


def vulnerabilities(lock: Path, policy: Policy) -> tuple[str, list[str]]:
    """What is to be said, and what is wrong, a line each."""
    if why := why_unreachable():
        return f"vulnerabilities: nothing was checked, for pypi.org could not be reached ({why})", []
    try:
        found = known_vulnerabilities(lock)
    except RuntimeError as error:
        if why := why_unreachable():
            return f"vulnerabilities: nothing was checked, for pypi.org went away ({why})", []
        return "vulnerabilities: they could not be looked up", [str(error)]
    faults = [f"{each}; take that, or say in {POLICY.name} why it does no harm here" for each in found
              if not set(each.ids) & set(policy.accepted)]  # fmt: skip
    gone = set(policy.accepted) - {id for each in found for id in each.ids}
    faults += [
        f"{POLICY.name} accepts {id}, which nothing here has any more: remove it" for id in sorted(gone)
    ]
    return f"vulnerabilities: {len(found)} known in {len(locked_versions(lock))} packages", faults


def main(arguments: list[str]) -> int:
    """Check, and say what was found; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the licence of each package")
    asked = parser.parse_args(arguments)
    policy = read_policy()
    found, faults = licences(LOCK, policy)
    if asked.list:
        print("\n".join(f"{name:<40} {licence}" for name, licence in found.items()))  # noqa: T201
    most = ", ".join(f"{number} {licence}" for licence, number in Counter(found.values()).most_common(5))
    said, more = vulnerabilities(LOCK, policy)
    print(f"licences: {len(found)} packages, {most}, …\n{said}")  # noqa: T201
    for fault in (*faults, *more):
        sys.stderr.write(f"{fault}\n")
    return int(bool(faults or more))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
