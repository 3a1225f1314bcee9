"""Whether the home folder can be written to, and one thing to say where it cannot, whichever command met it."""

import errno
import os
import tempfile
from pathlib import Path

from pipelines.fulldisk import of_database
from tasks.paths import home


def why_unwritable() -> str:
    """Why the home folder cannot be made or written to; "" where it can. A full disk is told by pipelines.fulldisk.

    Looking leaves nothing: for a home that is not there, the folder that it would be made in is asked.
    """
    place = home()
    while not os.path.lexists(place):  # not Path.exists, which raises where one may not look
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return "" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error)).lower()


def unwritable_home(error: BaseException) -> str:
    """A sentence for a command that failed at a file or database of a home that cannot be written to; "" for others."""
    file = error.filename if isinstance(error, OSError) else None
    place = Path(os.fsdecode(file)).absolute() if isinstance(file, str | bytes | os.PathLike) else None
    met = place is not None and (place.is_relative_to(home()) or home().is_relative_to(place))
    if not (met or of_database(error)) or not (reason := why_unwritable()):
        return ""
    return f"CONVOY_HOME (={home()}) cannot be made or written to ({reason}); set it to a folder that can"
