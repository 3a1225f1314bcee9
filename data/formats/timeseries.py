"""`.ts`: the format of the UCR and UEA time series archive (https://www.aeon-toolkit.org, "ts file format").

    @problemName GunPoint
    @univariate true
    @classLabel true 1 2
    @data
    0.1,0.2,0.3:0.5,0.6,0.7:1       a case: its channels, and its class

`GunPoint_TRAIN.ts` and `GunPoint_TEST.ts` are the splits of one set.
"""

import re
from collections import defaultdict

import numpy as np

from data.archive import FileTree
from data.formats.containers import Part, list_parts, parse_values
from data.formats.listing import Listing, read_text, split_of_name, stem_of, wanted_files

_SPLIT_ENDING = re.compile(r"[_-]?(train(ing)?|val(id(ation)?)?|test(ing)?)$", re.IGNORECASE)


def is_ts(tree: FileTree) -> bool:
    """Whether there are `.ts` files."""
    return any(name.lower().endswith(".ts") for name in tree.sizes)


def list_ts(tree: FileTree) -> Listing:
    """All cases of the one set that the source holds; a ValueError names the sets where there are several."""
    names = [name for name in wanted_files(tree) if name.lower().endswith(".ts")]
    sets: dict[str, list[str]] = defaultdict(list)
    for name in names:
        sets[_SPLIT_ENDING.sub("", name.rpartition(".")[0])].append(name)
    if len(sets) > 1:
        folders = {name: name.rpartition("/")[0] for name in sets}
        alone = len(set(folders.values())) == len(sets)
        choices = sorted(folders.values() if alone else (names[0] for names in sets.values()))
        raise ValueError(f"{tree.name}: {len(sets)} sets in it; choose one: --subset {', '.join(choices)}")
    return list_parts(tree, [read_ts(name, read_text(tree, name)) for name in names], set(names))


def read_ts(name: str, text: str) -> Part:
    """The cases of one file; raises a ValueError of one line."""
    header: dict[str, str] = {}
    lines = enumerate(text.splitlines(), 1)
    for number, line in lines:
        line = line.strip()
        if line.lower() == "@data":
            break
        if not line or line.startswith("#"):
            continue
        if not line.startswith("@"):
            raise ValueError(f"{name} line {number}: expected @data, or a line that begins with @ or #")
        key, _, value = line[1:].partition(" ")
        header[key.lower()] = value.strip()
    else:
        raise ValueError(f"{name}: no line @data in it")
    if header.get("timestamps", "false").lower() == "true":
        raise ValueError(
            f"{name}: its values carry time stamps, which are not read; give evenly sampled values"
        )
    known = header.get("classlabel", "false").split()
    if known[0].lower() != "true":
        raise ValueError(f"{name}: its cases have no classes (@classLabel); signals are sorted into classes")
    items, labels = [], []
    for number, line in lines:
        if line.strip() and not line.startswith("#"):
            values, label = _read_case(f"{name} line {number}", line.strip())
            if label not in known[1:]:
                raise ValueError(
                    f"{name} line {number}: class {label!r} is none of @classLabel ({' '.join(known[1:])})"
                )
            items.append(values)
            labels.append(label)
    num = len(items)
    return Part(name, items, labels, [split_of_name(stem_of(name))] * num, [None] * num)


def _read_case(where: str, line: str) -> tuple[np.ndarray, str]:
    """(C, L) float32 and the class; channels that end early are filled up with missing values."""
    *channels, label = line.split(":")
    if not channels or not label.strip():
        raise ValueError(f"{where}: it must be values, a colon, and a class")
    values = [parse_values(channel.split(","), where) for channel in channels]
    padded = np.full((len(values), max(map(len, values))), np.nan, np.float32)
    for row, channel in zip(padded, values, strict=True):
        row[: len(channel)] = channel
    return padded, label.strip()
