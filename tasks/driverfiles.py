"""Files of the driver's node, as a file system for processes on any other: nodes need no disk in common.

A run's checkpoints lie in its folder, beside the driver. Ranks, members and trials write them from wherever they run:
an actor on the driver's node does the writing. Ray Train takes it as a storage of its own
(https://docs.ray.io/en/latest/train/user-guides/persistent-storage.html), tasks.train.LocalSession as its disk.

The actor imports this module: torch must not come with it.
"""

from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import ray
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from data.files import whole
from tasks.nodes import beside_driver, is_embedded


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Keeper:
    """Does with the files of its node what it is told.

    It may die: it keeps nothing, and what it does may be done again, by Ray, where it died before it could say so.
    """

    def __init__(self) -> None:
        self.files = LocalFileSystem()

    def do(self, name: str, *arguments: Any) -> Any:
        """Call a method of the file system."""
        return getattr(self.files, name)(*arguments)

    def remove(self, path: str, recursive: bool, maxdepth: int | None) -> None:
        """Remove what is there still."""
        with suppress(FileNotFoundError):
            self.files.rm(path, recursive, maxdepth)

    def write(self, path: str, data: bytes) -> None:
        """Write a file, which appears whole."""
        with whole(Path(path)) as stream:
            stream.write(data)


class DriverFiles(AbstractFileSystem):
    """The keeper's files. Its paths are absolute ones of the driver's node."""

    protocol = "driver"
    cachable = False

    def __init__(self, keeper: Any) -> None:
        super().__init__()
        self.keeper = keeper

    def do(self, name: str, *arguments: Any) -> Any:
        return ray.get(self.keeper.do.remote(name, *arguments))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return dict(self.do("info", path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        return list(self.do("ls", path, detail))

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        self.do("mkdir", path, create_parents)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.do("makedirs", path, exist_ok)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        ray.get(self.keeper.remove.remote(path, recursive, maxdepth))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BytesIO:
        return BytesIO(self.do("cat_file", path)) if mode == "rb" else Upload(self.keeper, path)


class Upload(BytesIO):
    """What is written to a file, sent when it is closed; after a failure in a `with` it is not."""

    def __init__(self, keeper: Any, path: str) -> None:
        super().__init__()
        self.keeper, self.path = keeper, path

    def close(self) -> None:
        if not self.closed:
            ray.get(self.keeper.write.remote(self.path, self.getvalue()))
        super().close()

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            super().close()  # sends nothing, and is the last close
        self.close()


def shared_files() -> AbstractFileSystem:
    """This process's disk as any process of the cluster has it; those of an embedded Ray open its files themselves."""
    if is_embedded():
        return LocalFileSystem()
    start: Any = Keeper
    return DriverFiles(start.options(scheduling_strategy=beside_driver()).remote())
