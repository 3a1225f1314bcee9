"""Which digests of DVC's are named somewhere: by pointers, dvc.lock and lists of versions, here and in any commit.

Whatever looks like an md5 counts, so that a file that is written otherwise than we know keeps what it names. Runs in
the process that has DVC's lock (tasks.dvcprocess), so that nothing is recorded meanwhile.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
NAMES = ("*.dvc", "*dvc.lock", "*.versions.json")  # files that name digests, as git matches paths
OURS = (".watched.json", "begun-with.json", "job.json")  # of watching and of runs that may go on
SKIPPED = {"__pycache__", "mlflow"}


def named_here(root: Path) -> set[str]:
    """Digests, without `.dir`, that files below `root` name now."""
    return {digest for file in naming_files(root) for digest in DIGEST.findall(file.read_text())}


def naming_files(root: Path) -> Iterator[Path]:
    """Files below `root` that name digests; hidden folders are passed over."""
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".") and name not in SKIPPED]
        for name in names:
            if name.endswith((".dvc", ".versions.json")) or name in ("dvc.lock", *OURS):
                yield Path(folder) / name


def named_in_history(root: Path) -> set[str]:
    """Digests that any commit of the git repository around `root` names: branches, tags, stashes, the reflog.

    Nothing where there is no repository. Raises RuntimeError where git cannot be asked.
    """
    if not git(root, "rev-parse", "--is-inside-work-tree", may_fail=True):
        return set()
    log = git(root, "log", "--all", "--reflog", "-m", "--no-abbrev", "--raw", "--format=", "--", *pathspecs())
    blobs = sorted({blob for line in log.splitlines() for blob in line.split()[2:4] if set(blob) != {"0"}})
    text = git(root, "cat-file", "--batch", stdin="\n".join(blobs)) if blobs else ""
    return set(DIGEST.findall(text))


def pathspecs() -> list[str]:
    """From the repository's top, wherever `root` lies in it."""
    return [f":(top){name}" for name in NAMES]


def git(root: Path, *arguments: str, stdin: str = "", may_fail: bool = False) -> str:
    """What git prints; "" for a failure that may be."""
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], input=stdin, capture_output=True, text=True, check=False,
        errors="replace",
    )  # fmt: skip
    if done.returncode and not may_fail:
        raise RuntimeError(f"git {arguments[0]} failed in {root}: {' '.join(done.stderr.split())}")
    return "" if done.returncode else done.stdout
