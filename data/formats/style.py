"""Pictures for style transfer: folders such as content and style, or pictures alone."""

from data.archive import FileTree
from data.formats.folders import list_folders
from data.formats.listing import (
    Listing,
    RawItem,
    common_folder,
    count_ignored,
    is_image_name,
    split_of_folders,
    wanted_files,
)

ONE_CLASS = "pictures"


def list_pictures(tree: FileTree) -> Listing:
    """The top folders, where they are several and hold every picture, are the classes; otherwise all images are one
    class, `pictures`. Folders that are called like splits are splits and no classes."""
    found = list_folders(tree)
    names = [name for name in wanted_files(tree) if is_image_name(name)]
    labels = {item.targets["label"] for item in found.items}
    listed = {item.path: item.split for item in found.items}
    if len(labels) > 1 and listed.keys() >= set(names) and not any(split_of_folders(f"{x}/") for x in labels):
        return found
    top = common_folder(names)
    items = tuple(
        RawItem(
            name.removeprefix(top), name, {"label": ONE_CLASS}, listed.get(name) or split_of_folders(name)
        )
        for name in names
    )
    return Listing(items, count_ignored(tree, set(names), "not called like an image"))
