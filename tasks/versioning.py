"""DVC: which bytes a dataset is. The one module that knows it, with what it runs in a process of its own.

Reading a digest parses DVC's small YAML files and never imports DVC (1.5 s), nor does reading a version whose bytes are
in the cache. Recording and copying run DVC in a process of its own (tasks.dvcprocess), so that neither its output nor
its event loop reaches ours.

    data/store/digits.dvc     pointer, written by `add` and `point`
    dvc.lock                  the same for what a stage of dvc.yaml makes; DVC forbids a path to have both
    .dvc/cache/files/md5/     every file that was ever recorded, by its md5; `prune` alone removes any
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from data.address import without_password
from data.files import scratch, write_whole
from tasks.paths import ROOT, home

MD5 = r"[0-9a-f]{32}"
CLONE = 0x40049409  # FICLONE of linux/fs.h: both files share their blocks until one is written to


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
    _run("record", f"DVC could not record {path}: ", path=str(path))
    recorded = digest(path)
    assert recorded, f"DVC ended well but left no digest of {path}"
    return recorded


def save(path: Path) -> str:
    """Have the bytes of the folder at `path` in the cache and return their digest; what is recorded of it stays.

    Makes a DVC repository like `add`. Raises RuntimeError with DVC's own reason in one line.
    """
    return str(_run("save", f"DVC could not save {path}: ", path=str(path.resolve()))["digest"])


def fetch(recorded: Sequence[str]) -> Path:
    """Have the bytes of these folders in the cache, from the remote where they are not; returns the cache's root.

    Raises RuntimeError saying that there is no remote, that it is not to be reached, or that it lacks something.
    """
    if all(map(_is_cached, recorded)):
        return _default_cache()
    return Path(_run("fetch", digests=list(recorded))["cache"])


def push(recorded: Sequence[str]) -> int:
    """Copy what the remote lacks of these folders; returns the number of files. Raises RuntimeError like `fetch`."""
    return int(_run("push", digests=list(recorded))["files"])


def prune(keep: Collection[str], older_than: float, *, apply: bool) -> dict[str, Any]:
    """Find files of the cache, older than a time, that neither `keep` nor any pointer, list or commit names.

    With `apply` they are removed. How many `files` and `bytes`, how many digests are `named`, and the `cache`.
    """
    return _run("prune", keep=sorted(keep), older_than=older_than, apply=apply)


def remote() -> dict[str, str]:
    """Name, address and options of the remote that push and pull take; {} if there is none. Secrets are left out."""
    if not (home() / ".dvc").is_dir():
        return {}
    return dict(_run("remote", url="", options={}, local=True)["remote"])


def set_remote(url: str, options: dict[str, str], *, local: bool) -> dict[str, str]:
    """Make `url` the remote, "" for the one that is there, with these options; returns `remote()`.

    It goes to `.dvc/config`, which git tracks, or with `local` to `.dvc/config.local`, where secret options go anyway.
    """
    if not local and without_password(url) != url:
        raise ValueError(
            "the address has a password in it, and would go to git; give --local, or --option password=-"
        )
    return dict(_run("remote", url=url, options=options, local=local)["remote"])


@contextlib.contextmanager
def view(recorded: str) -> Iterator[Path]:
    """A recorded folder to read from: links into the cache, in a folder that goes at the end."""
    with scratch("version") as folder:
        for name, file in _objects(fetch([recorded]), recorded).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(file)
        yield folder


def restore(recorded: str, folder: Path) -> None:
    """Copy a recorded folder into the empty `folder`; raises RuntimeError if the cache's bytes are damaged."""
    for name, file in _objects(fetch([recorded]), recorded).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _clone(file, folder / name)
    if measure(folder) != recorded:
        raise RuntimeError(
            f"DVC's cache is damaged: its files are not those of {recorded}; remove them and fetch them again: "
            f"{_default_cache()}, ./convoy data pull"
        )


def _clone(source: Path, target: Path) -> None:
    """Copy a file, without a copy of its blocks where the file system can do that."""
    with source.open("rb") as read, target.open("wb") as written:
        try:
            fcntl.ioctl(written, CLONE, read.fileno())
        except OSError:
            shutil.copyfileobj(read, written, 1 << 20)


def point(path: Path, recorded: str, size: int, num_files: int) -> None:
    """Make the pointer of `path` name another recorded folder; what else stands in it stays."""
    file = path.with_name(path.name + ".dvc")
    values = _read_yaml(file)
    (out,) = values.setdefault("outs", [{}])
    out.update({"md5": recorded, "size": size, "nfiles": num_files, "hash": "md5", "path": path.name})
    write_whole(file, yaml.safe_dump(values, sort_keys=False))


def is_cached(recorded: str) -> bool:
    """Whether the cache holds every file of a recorded folder; no remote is asked, and nothing is written."""
    return _is_cached(recorded) or bool(_run("find", digests=[recorded])["found"])


def is_remote(recorded: str) -> bool:
    """Whether the remote has a recorded folder.

    Raises RuntimeError saying that there is no remote, or that it is not to be reached.
    """
    return bool(_run("ask", digests=[recorded])["found"])


def _default_cache() -> Path:
    return home() / ".dvc" / "cache" / "files" / "md5"


def _is_cached(recorded: str) -> bool:
    """Whether DVC's cache in `home()` holds all files; a cache elsewhere counts as not, so that DVC is asked."""
    return not missing(_default_cache(), recorded)


def missing(cache: Path, recorded: str) -> list[str]:
    """The md5s of what the cache lacks of a recorded folder or file."""
    top = cache / recorded[:2] / recorded[2:]
    if not top.is_file():
        return [recorded]
    if not recorded.endswith(".dir"):
        return []
    return [
        f"{file.parent.name}{file.name}" for file in _objects(cache, recorded).values() if not file.is_file()
    ]


def _objects(cache: Path, recorded: str) -> dict[str, Path]:
    """The files of a recorded folder by their names in it, where they lie in the cache.

    The list may come from a remote: RuntimeError if it would have us write outside the folder, or read outside the
    cache.
    """
    file = cache / recorded[:2] / recorded[2:]
    objects = {}
    for entry in json.loads(file.read_text()):
        name, md5 = PurePosixPath(entry["relpath"]), entry["md5"]
        if not name.parts or name.is_absolute() or ".." in name.parts or not re.fullmatch(MD5, md5):
            raise RuntimeError(
                f"DVC's list {file} names a file outside its folder or cache: relpath (={entry['relpath']}), md5 "
                f"(={md5}); a relpath must be relative and without .., an md5 32 hex digits; remove the list, and "
                "fetch it from a remote that you trust: ./convoy data pull"
            )
        objects[entry["relpath"]] = cache / md5[:2] / md5[2:]
    return objects


def _run(verb: str, before: str = "", **arguments: Any) -> dict[str, Any]:
    """Run a verb of tasks.dvcprocess, in a process of its own and this folder, and return what it found.

    The arguments go through its input: a remote's password may be among them, and everybody may list processes.
    """
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    child = subprocess.run(
        [sys.executable, "-m", "tasks.dvcprocess", verb, str(home()), str(os.getpid())],
        env={**os.environ, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": path},
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        said = child.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(before + without_password(one_line(said)))
    return dict(json.loads((child.stdout.splitlines() or ["{}"])[-1]))


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


def recorded_at(path: Path) -> float:
    """When what records `path` was last written, in seconds since 1970: its pointer, else dvc.lock."""
    pointer = path.with_name(path.name + ".dvc")
    return (pointer if recorded_out(path) else home() / "dvc.lock").stat().st_mtime


def recorded_out(path: Path) -> dict[str, Any]:
    """What the pointer of `path` says: md5, size, nfiles; {} if there is none."""
    outs = _read_yaml(path.with_name(path.name + ".dvc")).get("outs", [])
    return next((out for out in outs if out.get("path") == path.name), {})


def stage_of(path: Path) -> str:
    """The stage of dvc.yaml that makes `path`, "" if none does; one with a template counts once it has run."""
    path = path.resolve()
    if recorded_out(path):
        return ""
    for file in ("dvc.lock", "dvc.yaml"):
        for name, stage in (_read_yaml(home() / file).get("stages") or {}).items():
            for out in stage.get("outs") or []:
                named = out.get("path") or next(iter(out)) if isinstance(out, dict) else out
                if (home() / str(named)).resolve() == path:
                    return str(name)
    return ""


def recorded_below(folder: Path) -> list[str]:
    """Names in `folder` that a pointer, or dvc.lock in `home()`, records."""
    folder = folder.resolve()
    names = {file.name.removesuffix(".dvc") for file in folder.glob("[!.]*.dvc")}
    for stage in (_read_yaml(home() / "dvc.lock").get("stages") or {}).values():
        outs = [(home() / out["path"]).resolve() for out in stage.get("outs", [])]
        names |= {out.name for out in outs if out.parent == folder}
    return sorted(names)


def in_stage() -> bool:
    """Whether this process is what a stage of dvc.yaml runs."""
    return bool(os.environ.get("DVC_STAGE"))


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
        values = yaml.safe_load(file.read_bytes()) or {}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is not readable YAML: {one_line(str(error))}; mend it or restore it from git"
        ) from None
    outs = values.get("outs", []) if isinstance(values, dict) else None
    if not isinstance(outs, list) or not all(isinstance(out, dict) for out in outs):
        raise ValueError(
            f"{file} is no file of DVC's: its outs must be a list; mend it or restore it from git"
        )
    return dict(values)


def one_line(text: str) -> str:
    return " ".join(text.split()) or "it gave no reason"
