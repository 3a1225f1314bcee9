"""Faces: a folder for each person, and if wanted lists of people and of pairs to compare.

Lists are text files outside the people's folders. `train_ids.txt`, `test_ids.txt` (or LFW's `peopleDevTrain.txt`): a
person in each line, who belongs to that split. Pairs are LFW's (http://vis-www.cs.umass.edu/lfw/README.txt): an
optional first line with the number of folds and of pairs of each kind in a fold, then `name i j` (the same person)
or `name1 i name2 j`, separated by tabs or spaces, where i is the number at the end of the image's name; or a
`pairs.csv` with the columns path_a,path_b,same and if wanted fold. Of several files of pairs one is kept, `pairs.*`
before `pairsDevTest*` before others: pairs to train on are not evaluated.
"""

import csv
import io
import re
from collections import Counter, defaultdict
from dataclasses import replace
from posixpath import splitext

from data.archive import FileTree
from data.dataset import SPLITS, Split
from data.formats.folders import list_folders
from data.formats.listing import SPLIT_NAMES, Listing, Pair, RawItem, ignore_reason, read_text

UNKNOWN_PERSON = "names in lists without a folder"
UNKNOWN_IMAGE = "pairs that name a missing image, left out"
SINGLE = "identities with one image"
MAX_LIST_BYTES = 256 << 20
_IDS = re.compile(
    r"(?:people_?)?(?:dev_?)?(train|val|valid|validation|test)(?:_?(?:ids|identities|people))?\.txt"
)
_OF_PEOPLE = re.compile("ids|identities|people")
_PAIRS = re.compile(r"pairs.*\.(?:txt|csv)")


def has_lists_of_people(tree: FileTree) -> bool:
    """Whether there are pairs to compare, or lists that say by their name that they are of people."""
    files = [_file(name) for name in tree.sizes if not ignore_reason(name)]
    return any(_PAIRS.fullmatch(file) or (_IDS.fullmatch(file) and _OF_PEOPLE.search(file)) for file in files)


def list_identities(tree: FileTree) -> Listing:
    """List people's folders; raises a ValueError of one line for lists that cannot be read."""
    found = list_folders(tree)
    inside = {item.path for item in found.items}
    outside = [name for name in tree.sizes if name not in inside and not ignore_reason(name)]
    lists = {name: match for name in outside if (match := _IDS.fullmatch(_file(name)))}
    pair_files = sorted((n for n in outside if _PAIRS.fullmatch(_file(n))), key=_preference)
    issues = defaultdict(list, found.issues)
    items = [replace(item, group=item.targets["label"]) for item in found.items]
    people = Counter(item.targets["label"] for item in items)
    issues[SINGLE] = [name for name, number in sorted(people.items()) if number == 1]
    pairs: list[Pair] = []
    notes = []
    if pair_files:
        pairs = _read_pairs(pair_files[0], read_text(tree, pair_files[0], MAX_LIST_BYTES), items, issues)
        notes.append(f"{len(pairs):,} pairs from {pair_files[0]}")
        notes += [f"pairs in {name} were left out" for name in pair_files[1:]]
    if lists:
        splits = _read_ids(tree, lists, people, issues)
        listed = [replace(item, split=splits.get(item.targets["label"])) for item in items]
        require_one_side(tree.name, [*(item for item in items if item.split), *listed])
        items = [item if item.split else other for item, other in zip(items, listed, strict=True)]
    elif pairs and not any(item.split for item in items):
        items = _split_by_pairs(items, pairs)
        notes.append("people in the pairs are the test split, the others train")
    require_one_side(tree.name, items)
    used = len(lists) + len(pair_files[:1])
    ignored = {why: number - used * (why == "not in a class folder") for why, number in found.ignored.items()}
    return Listing(
        tuple(items),
        {why: number for why, number in ignored.items() if number},
        found.empty_classes,
        pairs=tuple(pairs),
        issues={what: where for what, where in issues.items() if where},
        notes=tuple(notes),
    )


def require_one_side(source: str, items: list[RawItem]) -> None:
    """Raise a ValueError of one line if the source itself puts a person into two splits."""
    sides: dict[str, set[Split]] = defaultdict(set)
    for item in items:
        if item.split:
            sides[item.targets["label"]].add(item.split)
    both = sorted(person for person, found in sides.items() if len(found) > 1)
    if both:
        where = " and ".join(side for side in SPLITS if side in sides[both[0]])
        raise ValueError(
            f"{source}: {len(both)} of {len(sides)} people stand in two splits, as {both[0]!r} in {where}; what is "
            "measured on people that were trained on says nothing of others: put each person on one side, or leave the "
            "splits to ingest"
        )


def _file(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _preference(name: str) -> tuple[int, str]:
    file = _file(name)
    if file in ("pairs.csv", "pairs.txt"):
        return 0, file
    return (1 if "test" in file else 2 if "train" not in file else 3), name


def _read_ids(
    tree: FileTree, lists: dict[str, re.Match[str]], people: Counter[str], issues: dict[str, list[str]]
) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for name, match in lists.items():
        split = SPLIT_NAMES[match[1]]
        for i, line in enumerate(read_text(tree, name, MAX_LIST_BYTES).split("\n")):
            person = line.split("\t")[0].strip()  # LFW's lists have the number of images behind a tab
            if person not in people:
                if person and not (i == 0 and person.isdecimal()):
                    issues[UNKNOWN_PERSON].append(f"{name}: {person[:100]}")
            elif splits.setdefault(person, split) != split:
                raise ValueError(
                    f"{name}: {person!r} is listed for {splits[person]} too; a person has one split"
                )
    return splits


def _split_by_pairs(items: list[RawItem], pairs: list[Pair]) -> list[RawItem]:
    """People whose images are compared must not be trained on."""
    person = {item.id: item.targets["label"] for item in items}
    compared = {person[id] for pair in pairs for id in (pair.id_a, pair.id_b)}
    if compared == set(person.values()):
        return items  # everybody: then the pairs cannot decide
    return [replace(item, split="test" if item.targets["label"] in compared else "train") for item in items]


def _read_pairs(name: str, text: str, items: list[RawItem], issues: dict[str, list[str]]) -> list[Pair]:
    person = {item.id: item.targets["label"] for item in items}
    pairs = []
    if name.lower().endswith(".csv"):
        named = [(where, (a, b), same, fold) for where, a, b, same, fold in read_pair_table(name, text)]
    else:
        numbered = number_images(items)
        named = [
            (where, (numbered.get(a, ""), numbered.get(b, "")), a[0] == b[0], fold)
            for where, a, b, fold in read_lfw_pairs(name, text)
        ]
    for where, (a, b), same, fold in named:
        if a not in person or b not in person:
            issues[UNKNOWN_IMAGE].append(where)
        elif same != (person[a] == person[b]):
            raise ValueError(f"{where}: {a} and {b} are {'not ' if same else ''}in the folder of one person")
        else:
            pairs.append(Pair(a, b, same, fold))
    return pairs


def number_images(items: list[RawItem]) -> dict[tuple[str, int], str]:
    """The id of each person's i-th image, by the number at the end of its name: Ann_0003.jpg is Ann's 3."""
    found = {}
    for item in items:
        digits = re.search(r"(\d{1,9})$", splitext(item.id)[0])
        if digits:
            found[item.targets["label"], int(digits[1])] = item.id
    return found


def read_lfw_pairs(name: str, text: str) -> list[tuple[str, tuple[str, int], tuple[str, int], int]]:
    """Parse LFW's pairs: (where, (person, number), (person, number), fold); raises a ValueError of one line."""
    lines = [(i, line.strip()) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    head = lines[0][1].split() if lines else []
    folds, each = 1, 0
    if 1 <= len(head) <= 2 and all(_is_number(word) for word in head):
        folds, each = (int(head[0]), int(head[1])) if len(head) == 2 else (1, int(head[0]))
        lines = lines[1:]
        if len(lines) != folds * each * 2:
            raise ValueError(
                f"{name}: its first line promises {folds} x 2 x {each} pairs, but {len(lines)} follow"
            )
    pairs = []
    for place, (i, line) in enumerate(lines):
        where = f"{name} line {i}"
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        numbers = fields[1:3] if len(fields) == 3 else fields[1::2]
        if len(fields) not in (3, 4) or not all(_is_number(number) for number in numbers):
            raise ValueError(f"{where}: a pair must be `name i j` or `name1 i name2 j`, not {line[:80]!a}")
        a, b = (int(number) for number in numbers)
        other = fields[0] if len(fields) == 3 else fields[2]
        pairs.append((where, (fields[0], a), (other, b), place // (2 * each) if each else 0))
    return pairs


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def read_pair_table(name: str, text: str) -> list[tuple[str, str, str, bool, int]]:
    """Parse a table of pairs: (where, path, path, same, fold); raises a ValueError of one line."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{name}: not a readable CSV ({error})") from None
    columns = [column.strip() for column in rows[0]] if rows else []
    if columns[:3] != ["path_a", "path_b", "same"] or columns[3:] not in ([], ["fold"]):
        raise ValueError(f"{name}: columns must be path_a,path_b,same and if wanted fold")
    pairs = []
    for i, row in enumerate(rows[1:], 2):
        if not row:
            continue
        where = f"{name} line {i}"
        values = [value.strip() for value in row]
        fold = values[3] if len(values) == 4 else "0"
        if len(values) != len(columns) or values[2] not in ("0", "1") or not _is_number(fold):
            raise ValueError(f"{where}: it must have {len(columns)} fields, same as 0 or 1, fold as a number")
        pairs.append((where, values[0], values[1], values[2] == "1", int(fold)))
    return pairs
