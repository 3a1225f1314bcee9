"""How datasets come: each reader turns a source's list of files into images with their targets.

A reader sees the whole list of names (`data.archive.FileTree`) and may read small files of it, such as tables and
annotations; it names the images without reading them, so listing a million costs no memory for pixels. `FORMATS` is
tried from the top. A new one is a function `FileTree -> Listing` in a module here and a line there; what it knows of
an image besides the split goes into `RawItem.targets`, which data.targets checks once the image's size is known.
"""

from functools import partial

from data.archive import FileTree
from data.arrays import SIGNAL, VOLUME
from data.dataset import noun_of
from data.formats.coco import is_coco, list_coco, why_not_coco
from data.formats.containers import is_npz, is_value_table, list_npz, list_value_tables
from data.formats.folders import list_folders
from data.formats.identities import list_identities
from data.formats.landmarks import has_landmark_table, has_pts, list_landmark_tables, list_pts
from data.formats.listing import SPLIT_NAMES, Boxes, Format, Listing, Pair, Points, RawItem
from data.formats.recordings import is_recordings, list_recordings
from data.formats.style import list_pictures
from data.formats.table import list_table, table_tree
from data.formats.timeseries import is_ts, list_ts
from data.formats.voc import is_voc, list_voc
from data.formats.yolo import is_yolo, list_yolo

__all__ = [
    "FORMATS", "LAYOUTS", "SPLIT_NAMES", "Boxes", "Format", "Listing", "Pair", "Points", "RawItem", "list_folders",
    "list_source", "list_table", "table_tree",
]  # fmt: skip


def is_table(tree: FileTree) -> bool:
    """Whether the source is one CSV file."""
    return len(tree.sizes) == 1 and next(iter(tree.sizes)).lower().endswith(".csv")


CLASSES = ("classification", "signals", "volumes")  # families of one class an item
FORMATS: dict[str, Format] = {
    "ts": Format(families=("signals",), matches=is_ts, list_items=list_ts),
    "npz of signals": Format(
        families=("signals",), matches=is_npz, list_items=partial(list_npz, num_axes=SIGNAL)
    ),
    "npz of volumes": Format(
        families=("volumes",), matches=is_npz, list_items=partial(list_npz, num_axes=VOLUME)
    ),
    "values": Format(families=("signals",), matches=is_value_table, list_items=list_value_tables),
    "recordings": Format(families=("signals",), matches=is_recordings, list_items=list_recordings),
    "table": Format(families=CLASSES, matches=is_table, list_items=list_table),
    "folders": Format(families=CLASSES, matches=lambda tree: True, list_items=list_folders),
    "coco": Format(families=("detection",), matches=is_coco, list_items=list_coco),
    "voc": Format(families=("detection",), matches=is_voc, list_items=list_voc),
    "yolo": Format(families=("detection",), matches=is_yolo, list_items=list_yolo),
    "landmark tables": Format(
        families=("landmarks",), matches=has_landmark_table, list_items=list_landmark_tables
    ),
    "pts": Format(families=("landmarks",), matches=has_pts, list_items=list_pts),
    "identities": Format(families=("faces",), matches=lambda tree: True, list_items=list_identities),
    "pictures": Format(families=("style",), matches=lambda tree: True, list_items=list_pictures),
}
LAYOUTS: dict[str, str] = {  # what a person should do, by family
    "classification": "put them in one folder per class, or in train/CLASS and test/CLASS folders, or name them in a "
    ".csv",
    "detection": "give COCO JSON (images, annotations, categories), Pascal VOC XML (Annotations/ and JPEGImages/), or "
    "YOLO text (images/, labels/ and data.yaml)",
    "landmarks": "give a .pts file beside each image, or a .csv with the columns path,x0,y0,x1,y1,...",
    "faces": "put the images of each person in one folder called like the person",
    "style": "put pictures in one folder, or in the folders content and style",
    "signals": "put WAV, .npy, .npz or .csv files in one folder per class, or give an .npz with x and y, a .csv with "
    "label and values in each row, or NAME_TRAIN.ts and NAME_TEST.ts",
    "volumes": "put .npy, .npz, .nii or .nii.gz files in one folder per class, or give an .npz with x and y",
}


def list_source(tree: FileTree, family: str) -> Listing:
    """List the images of a source by the first format that fits; raises a ValueError of one line."""
    known = sorted({name for form in FORMATS.values() for name in form.families})
    if family not in known:
        raise ValueError(f"family (={family!r}) has no reader; known: {', '.join(known)}")
    layout = LAYOUTS[family]
    for form in FORMATS.values():
        if family in form.families and form.matches(tree):
            listing = form.list_items(tree)
            if not listing.items and not listing.empty_classes:
                ignored = "".join(f"; {count} {reason}" for reason, count in sorted(listing.ignored.items()))
                raise ValueError(f"{tree.name}: no {noun_of(family)} found: {layout}{ignored}")
            return listing
    fault = why_not_coco(tree) if family == "detection" else ""
    why = f" ({fault})" if fault else ""
    raise ValueError(f"{tree.name}: no known layout for {family}{why}: {layout}")
