"""What a run was made of: which code, which bytes, which parameters, under which key.

Resolved once, on the driver, and handed down: a worker has no `.git` and no DVC pointers.
"""

import hashlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.parameters import Parameters
from tasks import versioning
from tasks.distil import Teacher
from tasks.paths import ROOT
from tasks.transfer import Weights

# What DVC writes says which data was used, and `dvc.digest` says it already: it does not make the code another one.
NOT_CODE = (
    ":(exclude,glob)**/*.dvc", ":(exclude,glob)**/dvc.lock", ":(exclude)data/store/.gitignore",
    ":(exclude,glob)data/store/*.versions.json",
)  # fmt: skip

COMMIT = re.compile(r"[0-9a-f]{7,64}")


@dataclass(frozen=True)
class Lineage:
    """Where a run comes from. An empty string is "not known", and `problems` says why."""

    key: str  # the run key: names the run's folder, its Ray Train run and its MLflow run
    git_commit: str
    git_dirty: bool  # the code differs from that commit, or there is no commit to compare with
    dvc_digest: str  # of the bytes trained on, as DVC names them; "" if DVC does not track the dataset
    params_sha256: str
    seed: int
    prefect_flow_run_id: str = ""
    weights_source: str = ""  # what training starts from, as a person named it; "" for chance
    weights_sha256: str = ""
    teacher_source: str = ""  # whom it learns from, as a person named it; "" for nobody
    teacher_sha256: str = ""
    problems: tuple[str, ...] = ()  # one sentence each, for people

    @property
    def beginning(self) -> tuple[str, str, str]:
        """Digests of the data, the weights and the teacher, as `tasks.result.require_same_beginning` takes them."""
        return self.dvc_digest, self.weights_sha256, self.teacher_sha256

    def tags(self) -> dict[str, str]:
        """For MLflow: all of it, by the names that stay."""
        return {
            "convoy.key": self.key,
            "git.commit": self.git_commit,
            "git.dirty": str(self.git_dirty).lower(),
            "dvc.digest": self.dvc_digest,
            "params.sha256": self.params_sha256,
            "prefect.flow_run_id": self.prefect_flow_run_id,
            "seed": str(self.seed),
            **(
                {"weights.source": self.weights_source, "weights.sha256": self.weights_sha256}
                if self.weights_sha256
                else {}
            ),
            **(
                {"teacher.source": self.teacher_source, "teacher.sha256": self.teacher_sha256}
                if self.teacher_sha256
                else {}
            ),
        }


def resolve(
    *,
    config: Any,
    dataset_path: Path,
    files: Path | None = None,
    key: str,
    flow_run_id: str = "",
    weights: Weights | None = None,
    teacher: Teacher | None = None,
    root: Path = ROOT,
) -> Lineage:
    """Find out what a run with the parameters `config`, which has `train.seed`, on a dataset is made of.

    Reads all bytes of the dataset, to name those that are there and not those that once were; in `files`, where it is
    read from there. `root` is the checkout.
    """
    commit, dirty, git_problem = git_state(root)
    digest, dvc_problem = data_state(dataset_path, files)
    return Lineage(
        key=key,
        git_commit=commit,
        git_dirty=dirty,
        dvc_digest=digest,
        params_sha256=params_sha256(config),
        seed=config.train.seed,
        prefect_flow_run_id=flow_run_id,
        weights_source=weights.source if weights else "",
        weights_sha256=weights.sha256 if weights else "",
        teacher_source=teacher.source if teacher else "",
        teacher_sha256=teacher.sha256 if teacher else "",
        problems=tuple(problem for problem in (git_problem, dvc_problem) if problem),
    )


def params_sha256(config: Parameters) -> str:
    """sha256 of the parameters as canonical JSON: keys sorted, no blanks, UTF-8; the order of fields is no matter."""
    text = json.dumps(
        config.model_dump(mode="json"),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def data_state(path: Path, files: Path | None = None) -> tuple[str, str]:
    """DVC's digest of the bytes at `path`, or in `files`, and what is wrong with its record, or ""."""
    recorded = versioning.digest(path)
    if not recorded:
        return (
            "",
            f"DVC does not track {path}: the data of this run cannot be fetched again; {versioning.advice(path)}",
        )
    found = versioning.measure(files or path)
    if found == recorded:
        return found, ""
    return (
        found,
        f"{path} changed since DVC recorded it ({recorded} then, {found} now); {versioning.advice(path)}",
    )


def has_commit(root: Path, commit: str) -> bool:
    """Whether the repository of the checkout at `root` has a commit; only a hash names one, no branch and no option."""
    if not COMMIT.fullmatch(commit):
        return False
    try:
        git(root, "cat-file", "-e", f"{commit}^{{commit}}")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return False
    return True


def git_state(root: Path) -> tuple[str, bool, str]:
    """Commit of the checkout at `root` ("" if unknown), whether its files differ from it, and what is wrong, or ""."""
    unknown = f"the commit of the code in {root} is unknown"
    try:
        # A folder inside somebody else's repository is not part of its history unless its files are.
        if not git(root, "ls-files", "--", "pyproject.toml"):
            return "", True, f"{unknown}: git does not track it"
        commit = git(root, "rev-parse", "--verify", "HEAD")
        return commit, bool(git(root, "status", "--porcelain", "--", ".", *NOT_CODE)), ""
    except FileNotFoundError:
        return "", True, f"{unknown}: git is not installed"
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[0].removeprefix("fatal: ")
        return "", True, f"{unknown}: {reason}"


def git(root: Path, *arguments: str) -> str:
    """What git says in the checkout at `root`; raises FileNotFoundError without git, CalledProcessError otherwise."""
    # Inside a git hook, GIT_DIR and its like name another repository; and a mere question takes no lock.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()
