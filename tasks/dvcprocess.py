"""What DVC does for tasks.versioning, in a process of its own: `python -m tasks.dvcprocess VERB HOME PARENT`.

PARENT is the number of the process that starts it: should that end, so does this one, whatever it is at. Its arguments
come by standard input, as JSON. The last line of its output is the result as JSON; if it fails, its error output is one
line that says why.
"""

import contextlib
import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data.address import without_password
from data.files import locked, write_whole
from tasks.dvcnames import named_here, named_in_history
from tasks.versioning import missing, one_line

LOCK_WAIT_S = 600.0
LOCK_POLL_S = 0.5
PARENT_POLL_S = 0.5
# What the remote is called in DVC's configuration; one that git does not see must not inherit the other's options.
REMOTE, REMOTE_LOCAL = "storage", "storage-local"
NO_REMOTE = "no remote is set; set one: ./convoy data remote URL (a folder, ssh://, s3://, gs://)"
SECRETS = {  # options of a remote that must not reach git
    "access_key_id", "secret_access_key", "session_token", "password", "passphrase", "token", "sas_token",
    "account_key", "connection_string", "client_secret", "oss_key_id", "oss_key_secret", "gdrive_client_secret",
    "custom_auth_header", "sse_customer_key",
}  # fmt: skip


def _end_with_parent(parent: int) -> None:
    """End this process when `parent`, who started it, is no more: nobody would hear what came of hours of copying."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)


@contextlib.contextmanager
def _open(root: Path, make: bool = False) -> Iterator[Any]:
    """The DVC repository at `root`; where there is none it is made, or ends the process."""
    from dvc.repo import Repo
    from dvc.utils.serialize import _common, _yaml

    _common._dump_data = _yaml._dump_data = _dump_whole
    if not _is_repository(root):  # else DVC would take one in a folder above
        if not make:
            sys.exit(f"no DVC repository is in {root} yet, and {NO_REMOTE}")
        _init(root)
    # A checkout without its .git, from an archive say, is as good a place for data as any.
    no_scm = {} if (root / ".git").exists() else {"core": {"no_scm": True}}
    with Repo(str(root), config=no_scm) as repository:
        yield repository


def _dump_whole(path: str, data: Any, dumper: Callable[[Any, io.StringIO], Any], **_: Any) -> None:
    """In place of DVC's own, which writes over the pointer or dvc.lock that is there: a kill would leave nothing."""
    text = io.StringIO()
    dumper(data, text)
    write_whole(Path(path), text.getvalue())


def _is_repository(root: Path) -> bool:
    return (root / ".dvc").is_dir()


def _init(root: Path) -> None:
    from dvc.repo import Repo

    with Repo.init(str(root), no_scm=True) as repository, repository.config.edit() as config:
        config["core"].update(analytics=False, check_update=False)
        config["cache"]["type"] = "reflink,copy"  # through links, root could write into the cache


def _record(root: Path, path: str) -> dict[str, Any]:
    """Record `path`, again while DVC is locked."""
    from dvc.exceptions import OutputNotFoundError
    from dvc.lock import LockError
    from dvc.rwlock import RWLOCK_FILE, RWLockFileCorruptedError

    os.chdir(root)  # where DVC looks for the stage by its name
    end_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            with _open(root, make=True) as repository:
                try:
                    stage = repository.find_outs_by_path(path)[0].stage
                except OutputNotFoundError:
                    stage = None
                if stage is None or stage.is_data_source:
                    repository.add(path)
                else:
                    repository.commit(stage.addressing, force=True)
            return {}
        except LockError as error:
            if time.monotonic() > end_s:
                sys.exit(f"still locked after {LOCK_WAIT_S:.0f} s: {error}")
            time.sleep(LOCK_POLL_S)
        except RWLockFileCorruptedError:
            # DVC writes this list of paths in use in place: a kill or a full disk leaves half of it.
            (Path(repository.tmp_dir) / RWLOCK_FILE).unlink(missing_ok=True)


def _save(root: Path, path: str) -> dict[str, Any]:
    """Copy the files of a folder into the cache, as recording does, and record nothing."""
    from dvc.fs import localfs
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.transfer import transfer

    with _open(root, make=True) as repository, _heard() as reasons:
        cache = repository.cache.local
        staging, _, built = build(cache, path, localfs, "md5")
        if transfer(staging, cache, {built.hash_info}, shallow=False).failed:
            sys.exit((reasons or ["no reason given"])[0])
        return {"digest": built.hash_info.value}


def _find(root: Path, digests: list[str]) -> dict[str, Any]:
    """Whether the cache, wherever it is, holds all of these."""
    if not _is_repository(root):
        return {"found": False}
    with _open(root) as repository:
        return {"found": not any(missing(Path(repository.cache.local.path), each) for each in digests)}


def _ask(root: Path, digests: list[str]) -> dict[str, Any]:
    """Whether the remote has all of these: DVC copies a folder's list there after all of its files."""
    with _open(root) as repository:
        storage, url = _storage(repository, "it is nowhere else")
        with _reaching(url):
            return {"found": all(storage.exists(each) for each in digests)}


def _fetch(root: Path, digests: list[str]) -> dict[str, Any]:
    with _open(root) as repository:
        cache = repository.cache.local
        lacking = [each for each in digests if missing(Path(cache.path), each)]
        if lacking:
            storage, url = _storage(repository, f"{lacking[0]} is not in DVC's cache")
            with _heard() as reasons, _reaching(url):
                _transfer(repository, storage, cache, lacking)
            for each in lacking:
                left = missing(Path(cache.path), each)
                if left:
                    why = reasons[0] if reasons else "or it is damaged there, or nothing answers"
                    sys.exit(
                        f"{url} has not all of {each}: {left[0]} is missing, {why}; push it from where it was made: "
                        "./convoy data push"
                    )
        return {"cache": cache.path}


def _prune(root: Path, keep: list[str], older_than: float, apply: bool) -> dict[str, Any]:
    """Files of the cache that nothing names, under DVC's lock: nothing is recorded meanwhile.

    A cache that lies elsewhere may be shared with repositories whose names are not known here: it is left alone.
    """
    with _open(root) as repository, repository.lock:
        cache = Path(repository.cache.local.path)
        found: dict[str, Any] = {"cache": str(cache), "files": 0, "bytes": 0, "named": 0}
        if not cache.is_relative_to(root / ".dvc"):
            return found
        named = named_here(root) | named_in_history(root) | {each.removesuffix(".dir") for each in keep}
        found["named"] = len(named)
        needed = {part for each in named for part in (each, f"{each}.dir", *_entries(cache, f"{each}.dir"))}
        for file in sorted(cache.glob("??/*")):
            about = file.stat()
            if (
                f"{file.parent.name}{file.name}" not in needed
                and max(about.st_mtime, about.st_ctime) < older_than
            ):
                found["files"] += 1
                found["bytes"] += about.st_size
                if apply:
                    file.unlink()
        return found


def _entries(cache: Path, recorded: str) -> list[str]:
    """The md5s that the cache's list of a folder names; none where it has no such list."""
    file = cache / recorded[:2] / recorded[2:]
    return [entry["md5"] for entry in json.loads(file.read_text())] if file.is_file() else []


def _push(root: Path, digests: list[str]) -> dict[str, Any]:
    with _open(root) as repository:
        cache = repository.cache.local
        storage, url = _storage(repository, "nowhere to push to")
        for each in digests:
            if left := missing(Path(cache.path), each):
                sys.exit(f"DVC's cache lacks {left[0]} of {each}; fetch it first: ./convoy data pull")
        with _heard() as reasons, _reaching(url):
            done, failed = _transfer(repository, cache, storage, digests)
        if failed:
            sys.exit(
                f"{url} did not take {failed} of {done + failed} files: {(reasons or ['no reason given'])[0]}"
            )
        return {"files": done}


def _storage(repository: Any, need: str) -> tuple[Any, str]:
    """The remote's store of objects, and its address; ends the process if there is none, or it cannot be used."""
    from dvc.config import ConfigError, NoRemoteError
    from dvc.fs import RemoteMissingDepsError

    plug_in = "needs a plug-in of DVC: .venv/bin/pip install"
    try:
        found = repository.cloud.get_remote()
        url = remote_of(repository)["url"]
    except NoRemoteError:
        sys.exit(f"{need}, and {NO_REMOTE}")
    except RemoteMissingDepsError as error:
        sys.exit(f"{error.url} {plug_in} dvc-{error.protocol}")
    except (ConfigError, ImportError) as error:
        package = re.search(r"requires '(dvc-\w+)'", str(error))
        sys.exit(
            f"{remote_of(repository)['url']} {plug_in} {package[1]}" if package else one_line(str(error))
        )
    if found.fs.protocol == "local" and not Path(found.path).parent.is_dir():
        sys.exit(f"remote {url} is not to be reached: no folder {Path(found.path).parent}; is it mounted?")
    return repository.cloud.get_remote_odb(), url


def _transfer(repository: Any, source: Any, target: Any, digests: list[str]) -> tuple[int, int]:
    """Copy what `target` lacks of these folders, the list of a folder last: (files copied, files that failed).

    Each file is looked for: DVC's own index of a remote would believe that what once was there still is.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.transfer import find_tree_by_obj_id

    wanted = set()
    for each in digests:
        top = HashInfo("md5", each)
        tree = find_tree_by_obj_id([source, target], top)
        if tree is not None:
            wanted |= {top, *(entry for _, _, entry in tree)}
    cache = repository.cache.local
    result = repository.cloud.transfer(source, target, wanted, cache_odb=cache, verify=target is cache)
    return len(result.transferred), len(result.failed)


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    """End the process with the remote's address and the reason where it does not answer, or not to us."""
    try:
        yield
    except EOFError:  # it asked for a password, and nobody is there to type one
        sys.exit(
            f"remote {url} refuses the password or key; set it: ./convoy data remote --option password=-, or use a key"
        )
    except Exception as error:  # each store's library has errors of its own
        sys.exit(f"remote {url} is not to be reached: {one_line(str(error) or type(error).__name__)}")


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """What DVC logs about single files that it could not copy: the list of reasons."""
    reasons: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reasons.append(str(record.exc_info[1] if record.exc_info else record.getMessage()))

    listener = Listener(logging.ERROR)
    loggers = [logging.getLogger(name) for name in ("dvc_data", "dvc_objects")]
    for each in loggers:
        each.addHandler(listener)
    try:
        yield reasons
    finally:
        for each in loggers:
            each.removeHandler(listener)


def _remote(root: Path, url: str, options: dict[str, str], local: bool) -> dict[str, Any]:
    """Change the remote if there is anything to change, and tell what it is."""
    with _open(root, make=True) as repository:
        config = repository.config
        name = (REMOTE_LOCAL if local else REMOTE) if url else remote_of(repository).get("name", "")
        if options and not name:
            sys.exit("no remote is set that an option could belong to; set one: ./convoy data remote URL")
        if url:
            was = urlsplit(str(config["remote"].get(name, {}).get("url", ""))).scheme
            with config.edit("local", validate=False) as private:
                if was != urlsplit(url).scheme:  # the old one's secrets mean nothing here
                    private["remote"].pop(name, None)
                private["core"].pop("remote", None)
        secret = {key: value for key, value in options.items() if key in SECRETS}
        level = "local" if local or name == REMOTE_LOCAL else "repo"
        with config.edit(level) as changed:
            section = {"url": url} if url else changed["remote"].get(name, {})
            section |= {key: value for key, value in options.items() if key not in SECRETS}
            if section:
                changed["remote"][name] = section
            if url:
                changed["core"]["remote"] = name
        if secret:
            with config.edit("local") as private:
                private["remote"].setdefault(name, {}).update(secret)
        return {"remote": remote_of(repository)}


def remote_of(repository: Any) -> dict[str, str]:
    """Name, address and options of the default remote as they are written, less what is secret; {} if none is set."""
    written = repository.config.load_config_to_level()
    name = written.get("core", {}).get("remote", "")
    options = written.get("remote", {}).get(name, {})
    shown = {key: str(value) for key, value in sorted(options.items()) if key not in SECRETS | {"url"}}
    url = without_password(str(options.get("url", "")))
    return {"name": name, "url": url, **shown} if name else {}


_VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "record": _record,
    "save": _save,
    "find": _find,
    "ask": _ask,
    "fetch": _fetch,
    "prune": _prune,
    "push": _push,
    "remote": _remote,
}


def _main(verb: str, root: Path, parent: int, arguments: dict[str, Any]) -> None:
    """Run a verb and print what it returns; ends the process with the reason in its error output if it cannot."""
    # not os.getppid(): the parent may have ended while Python started, and this be its heir's by now
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    with contextlib.ExitStack() as stack:
        if verb in ("record", "save", "remote", "prune"):  # the others record nothing, and may take hours
            (root / ".cache").mkdir(parents=True, exist_ok=True)
            # Two may find no repository at once, and DVC's own lock would be inside it.
            stack.enter_context(locked(root / ".cache" / "dvc.lock"))
        try:
            print(json.dumps(_VERBS[verb](root, **arguments)))  # noqa: T201
        except Exception as error:  # of DVC, of the network, of a store's own library: one line either way
            sys.exit(one_line(str(error) or type(error).__name__))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), json.load(sys.stdin))
