"""DVC: which bytes a dataset is. The one module that knows it.

Reading a digest parses DVC's small YAML files and never imports DVC (1.5 s). Recording one runs DVC in a process of
its own, so that neither its output nor its event loop reaches ours.

    data/store/digits.dvc     pointer, written by `add`
    dvc.lock                  the same for what a stage of dvc.yaml makes; DVC forbids a path to have both
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tasks.paths import ROOT, home

LOCK_WAIT_S = 600.0
LOCK_POLL_S = 0.5


def add(path: Path) -> str:
    """Record the bytes at `path`, a file or folder below `home()`, and return their digest.

    `dvc add`, or `dvc commit` where a stage of dvc.yaml makes the path. Inside a running stage nothing is recorded,
    since DVC does that itself when the stage ends. The first call makes a DVC repository in `home()` if there is
    none, and a call for bytes that are recorded already costs only their md5. Waits up to ten minutes for another
    DVC to finish. Raises FileNotFoundError, ValueError for a path outside
    `home()`, RuntimeError with DVC's own reason in one line.
    """
    path = path.resolve()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: there is nothing for DVC to record")
    if not path.is_relative_to(home()):
        raise ValueError(f"{path} must lie below {home()} (CONVOY_HOME) to be recorded by DVC")
    found = measure(path)
    if os.environ.get("DVC_STAGE") or (found == digest(path) and _is_cached(found)):
        return found
    child = subprocess.run(
        [sys.executable, "-m", "tasks.versioning", str(home()), str(path)],
        env={**os.environ, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"DVC could not record {path}: {_one_line(child.stderr)}")
    recorded = digest(path)
    assert recorded, f"DVC ended well but left no digest of {path}"
    return recorded


def _is_cached(recorded: str) -> bool:
    """Whether DVC's cache in `home()` holds the bytes; a cache elsewhere counts as not, so that DVC is asked."""
    return (home() / ".dvc" / "cache" / "files" / "md5" / recorded[:2] / recorded[2:]).is_file()


def digest(path: Path) -> str:
    """DVC's recorded md5 of `path`, with `.dir` at its end for a folder; "" if DVC does not track it.

    This is what was recorded, whatever lies there now: compare with `measure`.
    """
    path = path.resolve()
    for out in _read_yaml(path.with_name(path.name + ".dvc")).get("outs", []):
        if out.get("path") == path.name:
            return str(out.get("md5", ""))
    for folder in path.parents:
        for stage in (_read_yaml(folder / "dvc.lock").get("stages") or {}).values():
            for out in stage.get("outs", []):
                if (folder / out["path"]).resolve() == path:
                    return str(out.get("md5", ""))
        if (folder / ".dvc").is_dir():  # the root of a DVC repository: nothing above speaks for this path
            break
    return ""


def is_tracked(path: Path) -> bool:
    """Whether DVC has recorded `path` at some time."""
    return bool(digest(path))


def advice(path: Path) -> str:
    """The command that records `path` as it is now: a stage's output is committed, anything else added."""
    path = path.resolve()
    verb = "add" if path.with_name(path.name + ".dvc").is_file() or not digest(path) else "commit"
    return f"record it: .venv/bin/dvc {verb} {path}"


def measure(path: Path) -> str:
    """The digest that DVC would record for the bytes that lie at `path` now; reads all of them.

    A folder's is the md5 of a JSON list of its files' md5s and relative paths
    (https://dvc.org/doc/user-guide/project-structure/internal-files). What .dvcignore names is counted too.
    """
    if path.is_file():
        return _md5(path)
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    entries = [{"md5": _md5(files[name]), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(file.read_text()) or {}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except yaml.YAMLError as error:
        raise ValueError(
            f"{file} is not readable YAML: {_one_line(str(error))}; mend it or restore it from git"
        ) from None


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "it gave no reason"


def _record(root: Path, path: Path) -> None:
    """Record `path` in the DVC repository at `root`, made if there is none; runs in the process that `add` starts."""
    # Imported only here: DVC takes longer to import than all else that this module does.
    from dvc.exceptions import OutputNotFoundError
    from dvc.repo import Repo

    if not (root / ".dvc").is_dir():
        _init(root)
    # A checkout without its .git, from an archive say, is as good a place for data as any.
    no_scm = {} if (root / ".git").exists() else {"core": {"no_scm": True}}
    with Repo(str(root), config=no_scm) as repository:
        try:
            stage = repository.find_outs_by_path(str(path))[0].stage
        except OutputNotFoundError:
            stage = None
        if stage is None or stage.is_data_source:
            repository.add(str(path))
        else:
            repository.commit(stage.addressing, force=True)


def _init(root: Path) -> None:
    from dvc.repo import Repo

    with Repo.init(str(root), no_scm=True) as repository, repository.config.edit() as config:
        config["core"].update(analytics=False, check_update=False)
        config["cache"]["type"] = "reflink,copy"  # through links, root could write into the cache


def _main(root: Path, path: Path) -> None:
    """`_record`, again while DVC is locked; ends the process with the reason in its error output if it cannot."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    end_s = time.monotonic() + LOCK_WAIT_S
    (root / ".cache").mkdir(parents=True, exist_ok=True)
    with (root / ".cache" / "dvc.lock").open("w") as first_come:
        # Two may find no repository at once, and DVC's own lock would be inside it.
        fcntl.flock(first_come, fcntl.LOCK_EX)
        while True:
            try:
                return _record(root, path)
            except LockError as error:
                if time.monotonic() > end_s:
                    sys.exit(f"still locked after {LOCK_WAIT_S:.0f} s: {error}")
                time.sleep(LOCK_POLL_S)
            except (DvcException, OSError) as error:
                sys.exit(str(error))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
