"""A process ends with its code, and with everything done that was asked for."""

import subprocess
import sys

SCRIPT = """
import atexit, sys, threading, time
from pipelines.leaving import leave
def work():
    time.sleep(0.2)
    print("thread", flush=True)
atexit.register(lambda: print("exit function"))
threading.Thread(target=work).start()
print("main", end=" ")
leave({code})
"""


def test_threads_exit_functions_and_output_come_first() -> None:
    for code in (0, 3):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(code=code)], capture_output=True, text=True, check=False
        )
        assert done.returncode == code and done.stderr == ""
        assert done.stdout.split("\n") == ["main thread", "exit function", ""]
