"""`./convoy data remove`: a dataset leaves the store; DVC's cache keeps its bytes."""

import sys
from typing import Annotated

from cyclopts import Parameter

from pipelines.options import Json
from pipelines.render import ConsoleReporter, emit
from tasks import placing
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
    placing.require_removable(name)
    if not yes:
        if not sys.stdin.isatty():
            raise ValueError(f"nobody can be asked here; give --yes: ./convoy data remove {name} --yes")
        sys.stderr.write(f"remove {name} from {store()}? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise ValueError(f"{name} was not removed: the answer was not y")
    digest, files = placing.remove(name, ConsoleReporter().note)
    back = f"git checkout COMMIT -- {' '.join(map(str, files))}, then ./convoy data pull {name}"
    said = (
        f"removed {name} ({digest}); DVC's cache keeps its bytes. If git has its pointer, get it back: {back}"
    )
    emit({"name": name, "digest": digest, "get_back": back}, [said], as_json)
