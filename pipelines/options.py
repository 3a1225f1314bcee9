"""Options that several commands share."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import Parameter

Changes = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        metavar="KEY=VALUE",
        consume_multiple=False,
        negative=(),
        help="A parameter to change, as KEY.PATH=VALUE; may be given often.",
    ),
]
Accept = Annotated[
    list[str] | None,
    Parameter(
        name="--accept",
        metavar="CHECKS",
        consume_multiple=False,
        negative=(),
        help="Names of checks whose errors are waived, with commas between them; may be given often.",
    ),
]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print the result as one JSON document.")]
Yes = Annotated[bool, Parameter(name="--yes", negative=())]

TILE_OVERLAP = 0.25  # of neighbouring tiles, as a share of their side


def overlap_of(tile: bool, overlap: float | None) -> float | None:
    """How much tiles overlap, as a share of their side; None: no tiles. Raises ValueError for --overlap alone."""
    if overlap is not None and not tile:
        raise ValueError(f"--overlap (={overlap}) says how much tiles overlap: give --tile too")
    return None if not tile else TILE_OVERLAP if overlap is None else overlap


def require_nothing_beside_resume(*given: Any) -> None:
    """Raise ValueError where a run goes on, and something of `given` would decide what it has decided."""
    if any(given):
        raise ValueError(
            "--resume goes on with the parameters of that run: give no family, dataset, recipe, --set, --accept"
        )


def confirm(question: str, yes: bool) -> None:
    """Ask on the terminal, unless `yes`; raises ValueError for any answer but y, and where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ValueError(f"{question} Nobody can be asked here: give --yes")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ValueError("nothing was removed: the answer was not y")


@contextlib.contextmanager
def quiet_stdout(quiet: bool) -> Iterator[None]:
    """With `quiet`, what anybody prints goes to stderr, so that stdout holds one JSON document alone."""
    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
        yield
