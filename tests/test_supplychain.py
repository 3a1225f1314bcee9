"""A package comes in by a licence that is allowed and without a hole that is known; unknown is not allowed."""

import json
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
import requests

from pipelines.doctor import locked_versions
from tests import supplychain
from tests.supplychain import (
    LOCK,
    POLICY,
    expression,
    is_allowed,
    licence_of,
    licences,
    main,
    read_audit,
    read_policy,
    vulnerabilities,
)

SAYS = {
    "dependencies": [
        {"name": "sound", "version": "1", "vulns": []},
        {"name": "holey", "version": "2", "vulns": [
            {"id": "PYSEC-1", "aliases": ["GHSA-1", "CVE-1"], "fix_versions": ["2.1"], "description": "…"},
        ]},
    ],
    "fixes": [],
}  # fmt: skip


class Saying(Distribution):
    """An installed package that says this of itself."""

    def __init__(self, **fields: str | list[str]) -> None:
        self.fields = fields

    def read_text(self, filename: str) -> str | None:
        lines = ["Metadata-Version: 2.4", "Name: x", "Version: 1"]
        for name, value in self.fields.items():
            lines += [
                f"{name.replace('_', '-')}: {each}" for each in ([value] if isinstance(value, str) else value)
            ]
        return "\n".join([*lines, ""]) if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return path


def test_every_package_of_the_lock_has_a_licence_that_is_allowed() -> None:
    found, faults = licences(LOCK, read_policy())
    assert faults == []
    assert set(found) == set(locked_versions(LOCK))
    assert (found["mlflow"], found["torch"].partition(" ")[0]) == ("Apache-2.0", "Apache-2.0")


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License_Expression": "MIT AND (Apache-2.0 OR BSD-2-Clause)", "License": "x"},
         "MIT AND (Apache-2.0 OR BSD-2-Clause)"),
        ({"License": "New BSD"}, "BSD-3-Clause"),
        ({"License": "Copyright by whoever", "Classifier": ["License :: OSI Approved :: MIT License"]}, "MIT"),
        ({"Classifier": ["License :: OSI Approved :: MIT License", "License :: OSI Approved :: BSD License"]},
         "BSD-3-Clause AND MIT"),
        ({"Classifier": ["License :: OSI Approved :: MIT License", "License :: Other/Proprietary License"]}, ""),
        ({"License": "do what you like"}, ""),
        ({"License": "UNKNOWN"}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_a_licence_is_read_from_the_newest_field_that_says_one(fields: dict[str, Any], licence: str) -> None:
    assert licence_of(Saying(**fields), read_policy()) == licence


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True), ("GPL-3.0-only OR Apache-2.0", True), ("Apache-2.0 WITH LLVM-exception", True),
        ("MIT AND GPL-3.0-only", False), ("AGPL-3.0-only", False), ("AGPL-3.0-or-later", False),
        ("CC-BY-NC-4.0", False), ("MIT AND CC-BY-NC-SA-4.0", False), ("(MIT OR AGPL-3.0-only) AND ISC", True),
        ("GPL-2.0-only", False), ("Apache-2.0 WITH Classpath-exception-2.0", False), ("LicenseRef-Proprietary", False),
    ],
)  # fmt: skip
def test_all_parts_of_an_and_must_be_allowed_and_one_of_an_or(licence: str, allowed: bool) -> None:
    assert is_allowed(licence, read_policy()) is allowed


def test_what_is_no_licence_is_none() -> None:
    for text in ("", "see LICENSE", "Free for non-commercial use", "MIT AND", "(MIT"):
        assert expression(text, read_policy()) == ""


def test_a_forbidden_an_unknown_and_an_absent_package_are_each_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("agpl==1\nsilent==2\nnowhere-at-all==3\nrich==4\n")
    known = {"agpl": Saying(License_Expression="AGPL-3.0-only"), "silent": Saying()}
    monkeypatch.setattr(supplychain, "distribution", lambda name: known.get(name) or distribution(name))
    _, faults = licences(lock, read_policy())
    assert [fault.partition(":")[0] for fault in faults] == [
        "agpl 1", "silent 2", "nowhere-at-all 3 is not installed, so its licence is not known",
    ]  # fmt: skip
    assert "AGPL-3.0-only is not allowed" in faults[0] and POLICY.name in faults[0]


def test_who_is_let_in_by_name_is_so_for_a_reason_that_is_stated() -> None:
    import tomllib

    values = tomllib.loads(POLICY.read_text())
    assert set(values["packages"]) <= set(locked_versions(LOCK))
    assert all(entry["why"].strip() for entry in values["packages"].values())
    assert all(why.strip() for why in values["vulnerabilities"].values())


def test_without_a_way_to_the_service_nothing_is_checked_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise requests.ConnectTimeout

    monkeypatch.setattr(requests, "get", unreachable)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "nothing was checked, for pypi.org could not be reached (ConnectTimeout)" in out
    assert f"licences: {len(locked_versions(LOCK))} packages" in out


def test_a_known_vulnerability_fails_unless_it_is_named_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supplychain, "why_unreachable", lambda: "")
    monkeypatch.setattr(supplychain, "known_vulnerabilities", lambda _: list(read_audit(SAYS)))
    plain = read_policy()
    said, [fault] = vulnerabilities(LOCK, plain)
    assert "1 known" in said
    assert fault.startswith(
        "holey 2: PYSEC-1, CVE-1, GHSA-1, fixed in 2.1; take that, or say in supplychain.toml"
    )
    named = supplychain.Policy(plain.allowed, plain.names, plain.packages, {"CVE-1": "never called"})
    assert vulnerabilities(LOCK, named)[1] == []
    monkeypatch.setattr(supplychain, "known_vulnerabilities", lambda _: [])
    assert vulnerabilities(LOCK, named)[1] == [
        "supplychain.toml accepts CVE-1, which nothing here has any more: remove it"
    ]


@pytest.mark.parametrize(("code", "answer"), [(1, json.dumps(SAYS)), (1, "no JSON"), (2, "")])
def test_what_pip_audit_answers_is_read_whatever_its_exit_code(
    code: int, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = supplychain.subprocess.CompletedProcess([], code, answer, "Traceback\nsomething broke\n")
    monkeypatch.setattr(supplychain.subprocess, "run", lambda *_, **__: done)
    if answer.startswith("{"):
        [found] = supplychain.known_vulnerabilities(LOCK)
        assert found.package == "holey"
    else:
        with pytest.raises(RuntimeError, match="something broke"):
            supplychain.known_vulnerabilities(LOCK)
