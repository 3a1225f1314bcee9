"""The files that a person names to a command: given one by one, or in folders that are searched; and what to write."""

from collections.abc import Sequence
from pathlib import Path

from tasks.drawing import distinct

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")  # of what is written


def require_there(paths: tuple[Path, ...]) -> None:
    """Raise ValueError or FileNotFoundError where a person gave nothing, or nothing that is there."""
    if not paths:
        raise ValueError("no images: give files or folders after the model")
    if not any(path.exists() for path in paths):
        pattern = " (nothing matches the pattern)" if set(str(paths[0])) & set("*?[") else ""
        raise FileNotFoundError(f"no file or folder {paths[0]}{pattern}")


def find_images(paths: tuple[Path, ...], suffixes: frozenset[str]) -> list[Path]:
    """Files as given, folders searched for what is called so.

    Raises ValueError for a folder without any, and for a pipe or device, which might never end.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file()
            )
            if not found:
                raise ValueError(f"no images in the folder {path}; looked for {' '.join(sorted(suffixes))}")
            files += found
        elif path.exists() and not path.is_file():
            raise ValueError(f"{path} is a pipe or a device; give a file or a folder")
        else:
            files.append(path)
    return files


def targets_of(stems: Sequence[str], out: Path) -> list[Path]:
    """Where pictures are written: `out` is the file of one of them, else a folder of PNGs called by their `stems`.

    Raises ValueError where several would go to one file, and for a file that is there and called like no picture.
    """
    if out.suffix.lower() in PICTURE_SUFFIXES and not out.is_dir():
        if len(stems) != 1:
            raise ValueError(f"--out {out} is one file, and there are {len(stems)} pictures: give a folder")
        return [out]
    if out.is_file():
        raise ValueError(
            f"--out {out} is a file: it must end in {', '.join(PICTURE_SUFFIXES)}, or be a folder"
        )
    return [out / f"{name}.png" for name in distinct(stems)]
