"""Recordings named LABEL_SPEAKER_TAKE.wav, as the Free Spoken Digit Dataset has them.

https://github.com/Jakobovski/free-spoken-digit-dataset: takes 0 to 4 of each speaker are its test split, the rest its
training split.
"""

import re

from data.archive import FileTree
from data.formats.listing import Listing, RawItem, common_folder, count_ignored, wanted_files

TEST_TAKES = 5
_NAME = re.compile(r"([^_/]+)_([^_/]+)_(\d+)\.wav", re.IGNORECASE)
NOTE = "splits by take, as FSDD has them: each speaker stands in all of them"


def is_recordings(tree: FileTree) -> bool:
    """Whether all files are recordings named so, in one folder."""
    names = wanted_files(tree)
    one_folder = len({name.rpartition("/")[0] for name in names}) == 1
    return one_folder and all(_NAME.fullmatch(name.rpartition("/")[2]) for name in names)


def list_recordings(tree: FileTree) -> Listing:
    """The label is what stands before the first underscore."""
    names = wanted_files(tree)
    top = common_folder(names)
    items = []
    for name in names:
        match = _NAME.fullmatch(name.rpartition("/")[2])
        assert match is not None
        split = "test" if int(match[3]) < TEST_TAKES else "train"
        items.append(RawItem(name.removeprefix(top), name, {"label": match[1]}, split))  # type: ignore[arg-type]
    return Listing(tuple(items), count_ignored(tree, set(names), "not a recording"), notes=(NOTE,))
