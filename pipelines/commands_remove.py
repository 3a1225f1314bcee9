"""`./convoy data remove`: a dataset leaves the store; DVC's cache keeps its bytes."""

import shutil
import sys
from typing import Annotated

from cyclopts import Parameter

from data.dataset import list_names
from pipelines.options import Json
from pipelines.render import ConsoleReporter, emit
from tasks import versioning
from tasks import versions as history
from tasks.paths import store


def remove(
    name: str, /, *, yes: Annotated[bool, Parameter(name="--yes", negative=())] = False, as_json: Json = False
) -> None:
    """Remove a dataset's folder, pointer and list of versions; DVC's cache keeps the bytes.

    Parameters
    ----------
    name
        Name of a dataset; ./convoy data list shows them.
    yes
        Do not ask.
    """
    path = store() / name
    known = sorted({*list_names(store()), *history.recorded_names()})
    if name not in known:
        raise ValueError(f"there is no dataset {name!r}; there are: {', '.join(known) or 'none'}")
    if stage := versioning.stage_of(path):
        raise ValueError(
            f"{name!r} is made by the stage {stage} of dvc.yaml, and `dvc repro` would make it again: take the "
            "stage and what reads it out of dvc.yaml first"
        )
    if not yes:
        if not sys.stdin.isatty():
            raise ValueError(f"nobody can be asked here; give --yes: ./convoy data remove {name} --yes")
        sys.stderr.write(f"remove {name} from {store()}? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise ValueError(f"{name} was not removed: the answer was not y")
    with history.exclusive(name, ConsoleReporter().note):
        history.keep(name)  # what lies in the folder is in the cache before it goes
        pointer, listed = path.with_name(f"{name}.dvc"), history.list_file(name)
        digest = history.current(name)
        if path.exists():
            shutil.rmtree(path)
        pointer.unlink(missing_ok=True)
        listed.unlink(missing_ok=True)
    back = f"git checkout COMMIT -- {pointer} {listed}, then ./convoy data pull {name}"
    said = (
        f"removed {name} ({digest}); DVC's cache keeps its bytes. If git has its pointer, get it back: {back}"
    )
    emit({"name": name, "digest": digest, "get_back": back}, [said], as_json)
