"""Which family a source looks made for: told to who gave another, with the error that came of it."""

from collections.abc import Iterator
from contextlib import contextmanager

from data.archive import FileTree
from data.formats.coco import is_coco
from data.formats.identities import has_lists_of_people
from data.formats.landmarks import has_landmark_table, has_pts
from data.formats.listing import is_image_name, wanted_files
from data.formats.timeseries import is_ts
from data.formats.voc import is_voc
from data.formats.yolo import is_yolo

SIGNAL_ENDINGS = (".wav", ".ts")
VOLUME_ENDINGS = (".nii", ".nii.gz")
ARRAY_ENDINGS = (".npy", ".npz")


@contextmanager
def hinting(tree: FileTree, family: str) -> Iterator[None]:
    """Add to a ValueError which families the source looks made for, where the one asked for is none of them."""
    try:
        yield
    except ValueError as error:
        sign, families = likeness(tree)
        if not families or family in families:
            raise
        wish = " or ".join(f"--family {name}" for name in families)
        raise ValueError(
            f"{error}; it looks like a source for {' or '.join(families)} ({sign}): {wish}"
        ) from error


def likeness(tree: FileTree) -> tuple[str, tuple[str, ...]]:
    """What of a source tells its family, and the families that this fits; none where nothing tells."""
    names = wanted_files(tree)
    pictures = [name for name in names if is_image_name(name)]
    for what, fits, family in (
        ("COCO's JSON of boxes", is_coco, "detection"),
        ("XML of boxes", is_voc, "detection"),
        ("YOLO's text of boxes", is_yolo, "detection"),
        (".pts files", has_pts, "landmarks"),
        ("a table of points", has_landmark_table, "landmarks"),
        ("lists of people or of pairs beside the pictures", has_lists_of_people, "faces"),
    ):
        if (pictures or family == "landmarks") and fits(tree):
            return what, (family,)
    if len(pictures) > len(names) / 2:
        folders = {name.rpartition("/")[0] for name in pictures}
        return ("pictures in several folders", ("classification", "faces")) if len(folders) > 1 else ("", ())
    if is_ts(tree) or _most(names, SIGNAL_ENDINGS):
        return "WAV or .ts files", ("signals",)
    if _most(names, VOLUME_ENDINGS):
        return "NIfTI files", ("volumes",)
    return ("files of arrays", ("signals", "volumes")) if _most(names, ARRAY_ENDINGS) else ("", ())


def _most(names: list[str], endings: tuple[str, ...]) -> bool:
    return sum(name.lower().endswith(endings) for name in names) > len(names) / 2
