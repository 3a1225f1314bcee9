"""What becomes of a signal while a training runs: it ends soon, and keeps what it has done.

The first Ctrl-C or SIGTERM asks the training to stop: it keeps a checkpoint at its next step. A second one stops it at
once, and so does a first one where no step was taken yet, or where the checkpoint is not kept in time. However it ends,
the signal is raised once more for whoever dealt with it before: it is Prefect's handler that knows a cancellation.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.families import Executor
from tasks import cluster
from tasks.stopping import Interrupted

STOP_WITHIN_S = 10.0


class Stop:
    """Whether a training is to stop, and whether it is far enough to do so by itself."""

    def __init__(self) -> None:
        self.under_way = False  # its loop runs, and would notice
        self.asked = threading.Event()


@contextmanager
def interruptible(
    executor: Executor,
    say: Callable[[str], None],
    resume: str,
    idle: str = "stopped before it took a step",
) -> Iterator[Stop]:
    """Have the first signal ask a training to stop, and give the handlers back to whoever had them.

    `say` tells a person what happens, `resume` is the command that goes on with the run, `idle` the account of what was
    stopped where no loop is under way. While Ray is waited for, nothing but KeyboardInterrupt gets out: Prefect's own
    exception for SIGTERM would be lost in the wait.
    """
    stop, over, told = Stop(), threading.Event(), list[int]()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def interrupt(number: int, _frame: Any) -> None:
        told.append(number)
        if over.is_set():
            return
        if len(told) > 1 or not stop.under_way:
            raise KeyboardInterrupt
        stop.asked.set()

    watch = threading.Thread(target=watch_over, args=(stop, over, say), name="watch-stop", daemon=True)
    ending: BaseException | None = None
    try:
        if executor == "ray":
            cluster.connect()  # first, since Ray sets a handler too when it starts
        for number in handlers:
            signal.signal(number, interrupt)
        watch.start()
        yield stop
    except KeyboardInterrupt as error:
        ending = error
    except Exception as error:
        if not told:
            raise
        ending = error
    finally:
        over.set()
        stop.asked.set()
        if watch.ident is not None:
            watch.join()
        restore(handlers)
    if told or ending:
        say(f"{account(ending, stop.under_way, idle)}; go on: {resume}")
    if told:
        signal.raise_signal(told[0])
    if ending:
        raise KeyboardInterrupt


def resume_command(command: str, key: str, executor: Executor = "ray") -> str:
    """What a person types to go on with a run of `train`, or of another command.

    `executor` is of a run that does not keep it itself.
    """
    return f"./convoy {command} --resume {key}" + ("" if executor == "ray" else f" --executor {executor}")


def watch_over(stop: Stop, over: threading.Event, say: Callable[[str], None]) -> None:
    """Send a second signal where the first has not ended the training in time."""
    stop.asked.wait()
    if over.is_set():
        return
    say("stopping: the step under way is finished and kept; once more to stop at once")
    main = threading.main_thread().ident
    if not over.wait(STOP_WITHIN_S) and main is not None:
        signal.pthread_kill(main, signal.SIGINT)


def account(ending: BaseException | None, under_way: bool, idle: str) -> str:
    """What became of a training that a signal has ended."""
    if ending is None:
        return "stopped; the training was done by then"
    if isinstance(ending, Interrupted):
        return f"stopped after step {ending.step}: no step is lost"
    if not under_way:
        return idle
    # a worker may still have kept one by itself
    kept = "the run goes on from its last one, or from the start where there is none"
    if isinstance(ending, KeyboardInterrupt):
        return f"stopped without waiting for a checkpoint: {kept}"
    return f"stopped, but no checkpoint could be kept ({str(ending).partition(chr(10))[0]}): {kept}"


def restore(handlers: dict[signal.Signals, Any]) -> None:
    """Give signals back to the handlers they had."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep SIGINT and SIGTERM away while a stopped run is put in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore(handlers)
