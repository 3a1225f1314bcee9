"""Single files that appear whole or not at all. It imports nothing, so that models and versions can have it cheaply."""

import os
import secrets
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write `text` as UTF-8 under a name of its own beside `file`, and give it its name when it lies on the disk.

    Of two writers at once, the later one stays. The folder must be there.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with partial.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)  # after a failure
