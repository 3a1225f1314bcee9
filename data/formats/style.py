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
    """The top folders, where there are several, are the classes; otherwise all images are one class, `pictures`."""
    found = list_folders(tree)
    names = [name for name in wanted_files(tree) if is_image_name(name)]
    if len({item.targets["label"] for item in found.items}) > 1 and all("/" in name for name in names):
        return found
    top = common_folder(names)
    items = tuple(
        RawItem(name.removeprefix(top), name, {"label": ONE_CLASS}, split_of_folders(name)) for name in names
    )
    return Listing(items, count_ignored(tree, set(names), "not called like an image"))
