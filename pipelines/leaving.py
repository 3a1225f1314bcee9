"""How a process of ours ends."""

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End the process as `sys.exit` would, but for the interpreter's own teardown.

    Threads are waited for, exit functions run, output is flushed: all that anybody has asked for is done. What would
    follow frees objects under native threads that are still running (Ray's, Arrow's, gRPC's), and once in a while one
    of them crashes: a command that has succeeded would end with exit code 139.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # what Py_Finalize calls first
    atexit._run_exitfuncs()  # and second
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it has gone, or it is closed
            stream.flush()
    os._exit(code)
