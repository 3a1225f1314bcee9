"""Stays with one service of the platform: keeps its output in a bounded log, and notes when and how it ended.

    python -m pipelines.keeper FOLDER NAME LOG_BYTES COMMAND…

`./convoy up` starts one for each service, in a session of its own. Should the keeper be killed, the kernel tells the
service to end; whatever else the service has started is known by a variable of its environment (pipelines.processes).
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

import psutil

from data.files import write_whole

DRAIN_S = 2.0  # for the last lines of a service whose children still hold its output
PR_SET_PDEATHSIG = 1  # of prctl(2)
FILES = 2  # the log, and the one before


def record_file(folder: Path, name: str) -> Path:
    """Where the process of a service is noted."""
    return folder / f"{name}.json"


def log_file(folder: Path, name: str) -> Path:
    """What a service has to say."""
    return folder / "logs" / f"{name}.log"


def end_with_parent() -> None:
    """In a new child: the kernel sends it SIGTERM when its parent ends, in whatever way."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def keep_lines(stream: IO[bytes], file: Path, log_bytes: int) -> None:
    """Copy lines into a log, which starts anew when it is full; the one before stays beside it."""
    handler = RotatingFileHandler(file, maxBytes=max(1, log_bytes // FILES), backupCount=FILES - 1)
    for line in stream:
        text = line.decode(errors="replace").rstrip("\n")
        handler.emit(logging.LogRecord("", 0, "", 0, text, None, None))


def keep(folder: Path, name: str, log_bytes: int, command: list[str]) -> int:
    """Run a service to its end; returns its exit code."""
    log_file(folder, name).parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=end_with_parent,
    ) as service:  # fmt: skip
        signal.signal(signal.SIGTERM, lambda *_: service.terminate())
        note = {
            "pid": service.pid, "created": psutil.Process(service.pid).create_time(), "started_at": time.time(),
            "command": command,
        }  # fmt: skip
        write_whole(record_file(folder, name), json.dumps(note, indent=2) + "\n")
        assert service.stdout is not None
        reader = threading.Thread(
            target=keep_lines, args=(service.stdout, log_file(folder, name), log_bytes), daemon=True
        )
        reader.start()
        code = service.wait()
        ended = {**note, "code": code, "ended_at": time.time()}
        with contextlib.suppress(OSError):  # `down` may have taken the folder away
            write_whole(record_file(folder, name), json.dumps(ended, indent=2) + "\n")
        reader.join(DRAIN_S)
        os._exit(code & 0xFF)  # not waiting for a stream that the service's children hold


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
