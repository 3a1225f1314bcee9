"""The folders of runs, and what each was begun with. It needs none of the heavy imports: engines need not have started.

Every kind of run has a file of its own in its folder, written before anything else.
"""

from pathlib import Path
from typing import Any, Literal

from data.files import read_object
from tasks.paths import JOB_FILE, runs

Kind = Literal["run", "ensemble", "search", "learning curve", "look at units", "style transfer"]
BEGUN: dict[Kind, str] = {
    "run": JOB_FILE,
    "ensemble": "ensemble.json",
    "search": "search-job.json",
    "learning curve": "learning-curve-job.json",
    "look at units": "units-job.json",
    "style transfer": "stylize-job.json",
}


def run_folder(key: str) -> Path:
    """The folder of a run key; raises ValueError for a text that is not a plain name."""
    if Path(key).name != key or key in ("", ".", ".."):
        raise ValueError(f"run key {key!r} must be the name of a folder in {runs()}")
    return runs() / key


def begun(folder: Path, what: Kind) -> dict[str, Any]:
    """What a run was begun with, of its folder; raises ValueError naming the runs that there are, where it has none."""
    file = folder / BEGUN[what]
    if not file.is_file():
        known = sorted(path.parent.name for path in folder.parent.glob(f"*/{file.name}"))
        raise ValueError(f"no {what} {folder.name!r} in {folder.parent}; known: {', '.join(known) or 'none'}")
    return read_object(file, "start it anew")
