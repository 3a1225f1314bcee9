"""Python imports this as it starts, in every process of a command that tests/chaos.py sends to a point of its work.

CHAOS_POINT is `module:function:number`: the first process that makes this call of the function writes its id to the
file CHAOS_MARK and waits, before the call, until there is a file of that name and `.go`.
"""

import functools
import importlib.abc
import importlib.util
import os
import sys
import time

MODULE, FUNCTION, NUMBER = os.environ["CHAOS_POINT"].split(":")
MARK = os.environ["CHAOS_MARK"]


def halt():
    """Say that this process is there, and wait; another one was there before: go on."""
    own = f"{MARK}.{os.getpid()}"
    with open(own, "w") as file:
        file.write(str(os.getpid()))
    try:
        os.link(own, MARK)
    except FileExistsError:
        return
    finally:
        os.unlink(own)
    while not os.path.exists(f"{MARK}.go"):
        time.sleep(0.005)


def halting(function):
    calls = 0

    @functools.wraps(function)
    def called(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == int(NUMBER):
            halt()
        return function(*arguments, **options)

    return called


class Finder(importlib.abc.MetaPathFinder):
    """Puts the wait before the function as its module is imported."""

    looking = False

    def find_spec(self, name, path=None, target=None):
        if name != MODULE or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            *path, last = FUNCTION.split(".")
            owner = functools.reduce(getattr, path, module)
            setattr(owner, last, halting(getattr(owner, last)))

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
