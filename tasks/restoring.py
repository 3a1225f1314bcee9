"""Going back: which version was champion before, and what belongs to a version, its data too."""

from dataclasses import dataclass
from typing import Any

from tasks import ledger, versioning, versions
from tasks.lineage import COMMIT
from tasks.modelfile import load_card
from tasks.modelstore import files_of, version_at
from tasks.paths import store
from tasks.recordstore import connect


@dataclass(frozen=True)
class Belongings:
    """What a registered version is made of, all of which comes back with it."""

    version: int
    family: str
    model_sha256: str  # over the card and the weights
    networks: tuple[str, ...]
    preprocessing: dict[str, Any]
    thresholds: dict[str, float]
    temperature: float
    dataset: str
    digest: str  # DVC's, of the data it was trained on
    data: str  # which version of the data that is, and how to check it out
    commit: str  # of the code


def earlier_champion(name: str) -> int:
    """The version to go back to: the one that `previous` names; raises ValueError where there is none.

    Also where that was left by a rollback: who asks so soon has not seen it, and would bring back what it was made for.
    """
    version = ledger.aliases(name).get("previous")
    last = ledger.last_decision(name)
    if last is not None and last.action == "rollback" and last.champions[0] == version:
        raise ValueError(
            f"{name} was rolled back already ({last.what}) by {last.who} at {last.when} because: {last.because}. "
            f"Nothing was moved: to bring version {version} back give --to {version}"
        )
    if version is None:
        were = sorted({move.after["champion"] for move in ledger.history(name) if "champion" in move.after})
        raise ValueError(
            f"no version was champion of {name} before the one that is (the ledger knows {were or 'no champion'}); "
            "name one with --to VERSION: ./convoy models list"
        )
    return version


def belongings(name: str, version: int) -> Belongings:
    """What belongs to a version; raises ValueError where it is not there, or its files are not those registered."""
    client = connect()
    found = version_at(client, f"models:/{name}/{version}")
    card = load_card(files_of(client, found))
    digest, commit = found.tags.get("dvc.digest", ""), found.tags.get("git.commit", "")
    return Belongings(
        version=version, family=card.family, model_sha256=found.tags["convoy.model_sha256"],
        networks=tuple(member.architecture for member in card.members),
        preprocessing=card.preprocessing.model_dump(mode="json"), thresholds=dict(card.thresholds),
        temperature=card.temperature, dataset=card.dataset, digest=digest,
        data=data_of(card.dataset, digest, commit), commit=commit,
    )  # fmt: skip


def data_of(dataset: str, digest: str, commit: str) -> str:
    """Which version of a dataset a digest is, and how it is checked out, in a sentence."""
    which, command = data_place(dataset, digest, commit)
    return f"{which}: {command}" if command else which


def data_place(dataset: str, digest: str, commit: str) -> tuple[str, str]:
    """Which version of a dataset a digest is, and the command that checks it out: "" where it lies there."""
    if not digest:
        return f"{dataset}, of which no version was recorded", ""
    if versions.current(dataset) == digest:
        return f"{dataset} as it is checked out now ({digest})", ""
    if versioning.stage_of(store() / dataset):
        shown = commit if COMMIT.fullmatch(commit) else "COMMIT"  # it is to be pasted into a shell
        command = f"git checkout {shown} -- dvc.lock && .venv/bin/dvc checkout"
        return f"{dataset} ({digest}), made by a stage", command
    number = next((each.number for each in versions.history(dataset) if each.md5 == digest), None)
    if number is None:
        known = f"git has the pointer of commit {commit or '?'}"
        return f"{dataset} ({digest}), which is no version known here: {known}", ""
    return f"version {number} of {dataset} ({digest})", f"./convoy data checkout {dataset} {number}"
