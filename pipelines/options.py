"""Options that several commands share."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter

Changes = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        consume_multiple=False,
        negative=(),
        help="A parameter to change, as KEY.PATH=VALUE; may be given often.",
    ),
]
Accept = Annotated[
    list[str] | None,
    Parameter(
        name="--accept",
        consume_multiple=False,
        negative=(),
        help="Names of checks whose errors are waived, with commas between them; may be given often.",
    ),
]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print the result as one JSON document.")]


@contextlib.contextmanager
def quiet_stdout(quiet: bool) -> Iterator[None]:
    """With `quiet`, what anybody prints goes to stderr, so that stdout holds one JSON document alone."""
    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
        yield
