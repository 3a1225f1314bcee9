"""Where a model comes from: alias, record of the ledger, evidence, run, Ray job, data, code, parameters; link by link.

A link says what is known, whether it can still be found from here, and the command to see it. Prefect's link is that of
pipelines.commands_lineage, since Prefect is known there alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import ledger, versioning
from tasks.cost import cost_of, told
from tasks.lineage import has_commit
from tasks.machine import NAMES
from tasks.modelstore import files_of, find_aliases, find_versions, version_at
from tasks.paths import ROOT, runs
from tasks.recordstore import connect
from tasks.registry import run_url
from tasks.reproduction import JOB_ARTIFACTS, REPORT_TAG, TRAINED
from tasks.restoring import data_place
from tasks.retrainings import MODEL_TAG, OUTCOME_TAG, REASON_TAG, WHY_TAG
from tasks.runrecords import find_run, kept_files, recorded_cost

PAGE = "gate/gate.html"


@dataclass(frozen=True)
class Link:
    """One step back from a model."""

    what: str
    value: str
    # whether it is still to be found from here; None: nobody can tell, or it is no thing
    found: bool | None = None
    see: str = ""  # the command to see it


@dataclass(frozen=True)
class Subject:
    """What is explained: a registered version, or a run that registered none."""

    name: str  # of the registered model, "" for none
    version: int | None
    run_id: str
    tags: dict[str, str]  # of the version and of its run
    run: Any | None  # MLflow's; None where it was deleted


def find_subject(text: str) -> Subject:
    """What models:/NAME…, a run key or runs:/ID names; raises ValueError for what is not there."""
    client = connect()
    if text.startswith("models:/"):
        version = version_at(client, text)
    else:
        run = find_run(text)
        made = find_versions(client, f"run_id = '{run.info.run_id}'")
        if not made:
            return Subject("", None, run.info.run_id, dict(run.data.tags), run)
        version = made[0]
    kept = client.search_runs(
        [each.experiment_id for each in client.search_experiments()],
        f"attributes.run_id = '{version.run_id}'",
    )
    run = kept[0] if kept else None
    tags = {**version.tags, **(run.data.tags if run else {})}
    return Subject(str(version.name), int(version.version), str(version.run_id), tags, run)


def chain(subject: Subject) -> list[Link]:
    """All links but Prefect's, from the alias to the parameters."""
    registered = model_links(subject) if subject.version is not None else []
    return [
        *registered,
        *retraining_links(subject),
        run_link(subject),
        *job_links(subject),
        *made_of(subject),
    ]


def model_links(subject: Subject) -> list[Link]:
    """Aliases, the record that put the version there, its evidence, and its files."""
    client, name, version = connect(), subject.name, subject.version
    assert version is not None
    uri = f"models:/{name}/{version}"
    aliases = find_aliases(client).get(name, {}).get(version, [])
    moves = [move for move in ledger.history(name) if version in move.after.values()]
    crowned = [move for move in moves if move.champions[1] == version != move.champions[0]]
    history = f"./convoy history {name}"
    links = [
        Link("alias", ", ".join(aliases) or f"none: version {version} of {name}", bool(aliases), history)
    ]
    if moves:
        move = (crowned or moves)[-1]
        told = f"{move.action} {move.number} ({move.what}) by {move.who}, {move.when}: {move.because}"
        links.append(Link("moved there", told, True, history))
        links += evidence_links(move)
    else:
        links.append(Link("moved there", "past the ledger, in MLflow itself", False, history))
    sha256 = subject.tags.get("convoy.model_sha256", "")
    return [*links, files_link(uri, sha256)]


def evidence_links(move: ledger.Move) -> list[Link]:
    """The page of the gate that a promotion rests on."""
    if "run" not in move.evidence:
        return [Link("evidence", "none: no gate was asked")]
    kept = kept_files(move.evidence["run"], "gate")
    local = runs() / move.evidence["key"] / PAGE
    fetch = f".venv/bin/mlflow artifacts download -r {move.evidence['run']} -a {PAGE}"
    value = f"the gate's verdict: {move.evidence['decision']}; {PAGE} of the run {move.evidence['key']}"
    return [Link("evidence", value, PAGE in kept, str(local) if local.is_file() else fetch)]


def files_link(uri: str, sha256: str) -> Link:
    """The version's files, compared with their hash."""
    client, show = connect(), f"./convoy models show {uri}"
    try:
        files_of(client, version_at(client, uri))
    except (ValueError, OSError) as error:
        return Link("model", str(error), False, show)
    return Link("model", f"sha256 {sha256}, and its files are those", True, show)


def retraining_links(subject: Subject) -> list[Link]:
    """Why it was trained, or was not, and what came of it; a training that a person asked for has neither."""
    tags = subject.tags
    if MODEL_TAG not in tags:
        return []
    see = f"./convoy explain models:/{tags[MODEL_TAG]}@champion --retrains"
    why = [Link("trained because", tags[WHY_TAG], None, see)] if tags.get(WHY_TAG) else []
    outcome = tags.get(OUTCOME_TAG, "")
    if outcome == "promoted":  # the ledger's record says why
        return why
    label = f"{outcome} because" if outcome else "outcome"
    return [*why, Link(label, tags.get(REASON_TAG, "not decided: it was cut off, or goes on"), None, see)]


def run_link(subject: Subject) -> Link:
    """MLflow's record of the training."""
    if subject.run is None:
        return Link("MLflow run", f"{subject.run_id}, which was deleted", False)
    info = subject.run.info
    return Link("MLflow run", f"{info.run_id} {info.run_name}, {info.status}", True, run_url(info.run_id))


def job_links(subject: Subject) -> list[Link]:
    """Where it was trained, and on what: Ray forgets jobs with its cluster, the run's folder has the checkpoints."""
    tags = subject.tags
    executor = tags.get(f"{TRAINED}executor", "")
    if not executor:
        return []  # nothing was trained
    folder = runs() / tags["convoy.key"]
    job = f"job {tags['ray.job_id']}, " if tags.get("ray.job_id") else ""
    place = "Ray" if executor == "ray" else "in the process of the command"
    computed = ", ".join(f"{name} {tags[TRAINED + name]}" for name in NAMES if TRAINED + name in tags)
    here = folder.is_dir()
    value = f"{job}key {tags['convoy.key']}" + ("" if here else f"; its folder {folder} is gone")
    return [Link(place, value, here, f"ls {folder}"), Link("computed on", computed), *cost_links(subject)]


def cost_links(subject: Subject) -> list[Link]:
    """What the training took, and the search that chose its parameters; nothing where that was not measured."""
    own = cost_of(subject.run.data.metrics, subject.tags) if subject.run else None
    if own is None:
        return []
    search = recorded_cost(subject.tags["search.run_id"]) if "search.run_id" in subject.tags else None
    text = told(own) + (f"; the trials of its search, {told(search)}" if search else "")
    return [Link("cost", text, None, f"./convoy history {subject.name}" if subject.name else "")]


def made_of(subject: Subject) -> list[Link]:
    """Data, code, parameters, and whether training again has given the same."""
    tags = subject.tags
    links = [data_link(subject), code_link(tags.get("git.commit", ""), tags.get("git.dirty") == "true")]
    for what, name in (("began with", "weights"), ("taught by", "teacher")):
        if f"{name}.sha256" in tags:
            links.append(Link(what, f"{tags[f'{name}.source']}, sha256 {tags[f'{name}.sha256']}"))
    params = f"sha256 {tags.get('params.sha256', '')}, seed {tags.get('seed', '')}"
    kept = subject.run is not None and bool(kept_files(subject.run_id, JOB_ARTIFACTS))
    trained = f"{TRAINED}executor" in tags
    links.append(
        Link("parameters", params, kept if trained else None, parameters_command(subject) if kept else "")
    )
    again = f"./convoy reproduce {name_of(subject)}"
    if trained:
        links.append(Link("trained again", tags.get(REPORT_TAG, "never"), None, again))
    return links


def name_of(subject: Subject) -> str:
    """The address that a command takes."""
    return (
        f"models:/{subject.name}/{subject.version}"
        if subject.name
        else subject.tags.get("convoy.key", subject.run_id)
    )


def parameters_command(subject: Subject) -> str:
    local = runs() / subject.tags.get("convoy.key", "") / "job.json"
    fetch = f".venv/bin/mlflow artifacts download -r {subject.run_id} -a {JOB_ARTIFACTS}/job.json"
    return f"cat {local}" if local.is_file() else fetch


def dataset_of(subject: Subject) -> str:
    """The dataset's name: a version has it, a run its parameter, a skipped retraining the name of its run."""
    named = subject.tags.get("convoy.dataset", "")
    if named or subject.run is None:
        return named or "a dataset that nobody recorded"
    return str(subject.run.data.params.get("dataset", subject.run.info.run_name.rpartition("-skipped-")[0]))


def data_link(subject: Subject) -> Link:
    """The version of the data: in DVC's cache, else in the remote, else nowhere."""
    digest = subject.tags.get("dvc.digest", "")
    which, command = data_place(dataset_of(subject), digest, subject.tags.get("git.commit", ""))
    if not digest:
        return Link("data", which, False)
    place, found = "in DVC's cache", True
    if not versioning.is_cached(digest):
        try:
            found = versioning.is_remote(digest)
            place = "in the remote" if found else "neither in DVC's cache nor in the remote"
        except RuntimeError as error:
            place, found = f"not in DVC's cache; {error}", False
    return Link(
        "data", f"{which}, {place}", found, command or f"./convoy data versions {dataset_of(subject)}"
    )


def code_link(commit: str, dirty: bool, root: Path = ROOT) -> Link:
    """The commit, and whether the code was that."""
    if not commit:
        return Link("code", "no commit was recorded", False)
    here = has_commit(root, commit)
    state = "its files differed from that, and how was not kept" if dirty else "clean"
    missing = "" if here else f"; the repository of {root} lacks it: git fetch --all"
    return Link("code", f"{commit}, {state}{missing}", here and not dirty, f"git show {commit}")
