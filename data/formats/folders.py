"""A folder for each class, below split folders where there are some.

Without split folders, text files that are called like splits (`train.txt`, `splits/notrash_val.txt`) and name images,
one a line, perhaps with a label behind it, are the splits.
"""

from collections import Counter, defaultdict
from dataclasses import replace

from data.archive import FileTree, parents_of
from data.dataset import Split
from data.formats.listing import (
    IMAGE_ENDINGS,
    LISTED_ONLY,
    SPLIT_NAMES,
    ImageIndex,
    Listing,
    RawItem,
    ignore_reason,
    is_hidden,
    split_of_name,
)

MAX_LIST_BYTES = 256 << 20
MASK_FOLDERS = {"annotations", "gt", "label", "labels", "mask", "masks", "segmentation", "segmentations"}


def list_folders(tree: FileTree) -> Listing:
    """Folder per class, below split folders where there are some.

    `class/img`, `split/class/img`, and either of them below further single folders (which are left out of ids).
    Deeper folders belong to the class above them. Hidden files, READMEs, files beside the class folders and folders
    without images are ignored and counted.
    """
    reasons = {name: ignore_reason(name) for name in tree.sizes}
    ignored = Counter(reason for reason in reasons.values() if reason)
    names = [name for name, reason in reasons.items() if not reason]
    names, folders = _leave_out_lists(names, [folder for folder in tree.folders if not is_hidden(folder)])
    top = _common_top(names, folders)
    inside = [name.removeprefix(top) for name in names if name.startswith(top)]
    folders = [folder.removeprefix(top) for folder in folders if folder.startswith(top)]
    depth = 2 if _has_splits(tree.name, inside, folders) else 1

    items = []
    for name in inside:
        *parents, _file = name.split("/")
        if len(parents) >= depth:
            split = SPLIT_NAMES[parents[0].lower()] if depth == 2 else None
            items.append(RawItem(name, top + name, {"label": parents[depth - 1]}, split))
    ignored["not in a class folder"] = len(tree.sizes) - ignored.total() - len(items)
    classes = {folder.split("/")[depth - 1] for folder in folders if folder.count("/") >= depth - 1}
    empty = classes - {item.targets["label"] for item in items}
    issues: dict[str, list[str]] = {}
    if depth == 1:
        splits, lists, lost = _listed_splits(tree, items)
        items = [replace(item, split=splits.get(item.path)) for item in items]
        ignored["not in a class folder"] -= len(lists)
        issues = {LISTED_ONLY: lost} if lost else {}
    counts = {reason: count for reason, count in sorted(ignored.items()) if count}
    return Listing(tuple(items), counts, tuple(sorted(empty)), issues=issues, notes=_mask_notes(items))


def _mask_notes(items: list[RawItem]) -> tuple[str, ...]:
    """Folders that are called like masks and hold a file for each of another's: classes that nobody meant."""
    files: dict[str, set[str]] = defaultdict(set)
    for item in items:
        files[item.targets["label"]].add(item.id.rpartition("/")[2].partition(".")[0])
    return tuple(
        f"the folder {mask!r} holds a file for each of {label!r}: masks are not read yet, and these files are stored "
        f"as the class {mask!r}"
        for mask in sorted(files)
        for label in sorted(files)
        if mask.lower() in MASK_FOLDERS and mask != label and files[label] == files[mask]
    )


def _listed_splits(tree: FileTree, items: list[RawItem]) -> tuple[dict[str, Split], set[str], list[str]]:
    """The split of each image that a list names, by its path; the lists; and what they name that is not there."""
    paths = {item.path for item in items}
    files = [
        name
        for name in tree.sizes
        if name.lower().endswith(".txt")
        and name not in paths
        and not ignore_reason(name)
        and split_of_name(name.rpartition("/")[2])
        and tree.sizes[name] <= MAX_LIST_BYTES
    ]
    index = ImageIndex(paths) if files else ImageIndex(())
    splits: dict[str, Split] = {}
    lists: set[str] = set()
    lost: list[str] = []
    for name in files:
        split = split_of_name(name.rpartition("/")[2])
        assert split is not None
        try:
            text = tree.read(name).decode("utf-8", "replace")
        except (OSError, ValueError):
            continue
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        if not lines or _named_image(index, lines[0], name) is None:
            continue  # a list of something else
        lists.add(name)
        for line in lines:
            path = _named_image(index, line, name)
            if path is None:
                lost.append(f"{name}: {line[:100]}")
            elif splits.setdefault(path, split) != split:
                raise ValueError(f"{name}: image {path!r} is listed for {splits[path]} too; list it once")
    return splits, lists, lost


def _named_image(index: ImageIndex, line: str, name: str) -> str | None:
    """The image that a line names: the whole line, or what stands before its last gap or comma."""
    for wanted in (line, line.rsplit(maxsplit=1)[0], line.rpartition(",")[0].strip()):
        try:
            path = index.find(wanted, name)
        except ValueError:  # 1.jpg is there in every class
            raise ValueError(
                f"{name}: {line[:100]!a} may be one of several images; give its class folder too"
            ) from None
        if path is not None:
            return path
    return None


def _leave_out_lists(names: list[str], folders: list[str]) -> tuple[list[str], list[str]]:
    """Leave out folders whose files are all of other kinds than images, by their names: lists, annotations, code.

    Folders without any file stay (a class that somebody forgot to fill), and so does everything where no file at
    all is named like an image.
    """
    pictured = parents_of(name for name in names if name.lower().endswith(IMAGE_ENDINGS))
    if not pictured:
        return names, folders
    filled = parents_of(names)
    kept = [name for name in names if "/" not in name or name.rpartition("/")[0] in pictured]
    return kept, [folder for folder in folders if folder in pictured or folder not in filled]


def _common_top(names: list[str], folders: list[str]) -> str:
    """The folders above everything, as a prefix ending in '/': wrapping that says nothing about the images."""
    top = ""
    while True:
        heads = {folder.removeprefix(top).split("/")[0] for folder in folders if folder.startswith(top)} - {
            ""
        }
        if len(heads) != 1:
            return top
        (head,) = heads
        inner = f"{top}{head}/"
        holds_folders = any(folder.startswith(inner) for folder in folders)
        holds_files = any(name.startswith(inner) and "/" not in name.removeprefix(inner) for name in names)
        is_split = head.lower() in SPLIT_NAMES
        if not holds_folders or is_split or (holds_files and not _looks_wrapped(names, inner)):
            return top
        top = inner


def _looks_wrapped(names: list[str], inner: str) -> bool:
    """Whether most files below a lone folder lie deeper: then what lies directly in it are notes and lists."""
    depths = [name.removeprefix(inner).count("/") for name in names if name.startswith(inner)]
    return sum(depth > 0 for depth in depths) > len(depths) / 2


def _has_splits(source: str, names: list[str], folders: list[str]) -> bool:
    """Whether the folders at the top are splits: named so, and holding folders of their own.

    A class may well be called "train": its images lie directly in it.
    """
    heads = {folder.split("/")[0] for folder in folders} | {
        name.split("/")[0] for name in names if "/" in name
    }
    nested = {folder.split("/")[0] for folder in folders if "/" in folder}
    splits = {head for head in heads if head.lower() in SPLIT_NAMES and head in nested}
    others = heads - splits
    if splits and others:
        raise ValueError(
            f"{source}: split folders ({', '.join(sorted(splits))}) stand beside others "
            f"({', '.join(sorted(others)[:5])}); move the others away, so that it is clear which folders are classes"
        )
    return bool(splits)
