"""What was found of units so far: the strongest pictures of each, kept in a file while a pass is under way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.files import whole
from models.receptive import LayerFields
from models.units import Moments, TopUnits

NUM_PATCHES = 9


@dataclass(frozen=True)
class Seen:
    """What one piece, or all of a split, gave: by network and layer; moments by layer where there are two networks."""

    tops: tuple[dict[str, TopUnits], ...]
    moments: dict[str, Moments]


def empty_seen(layers: Sequence[dict[str, LayerFields]]) -> Seen:
    """Of no pictures; `layers`: of each network those that are looked at."""
    tops = tuple(
        {name: TopUnits.empty(len(each.fields), NUM_PATCHES) for name, each in own.items()} for own in layers
    )
    both = layers[0] if len(layers) == 2 else {}
    moments = {name: Moments.empty(*(len(own[name].fields) for own in layers)) for name in both}
    return Seen(tops, moments)


def merge(total: Seen, seen: Seen) -> None:
    """Take a piece into the total."""
    for own, other in zip(total.tops, seen.tops, strict=True):
        for name, tops in own.items():
            tops.merge(other[name])
    for name, moments in total.moments.items():
        moments.merge(seen.moments[name])


def keep_seen(file: Path, num_pictures: int, seen: Seen) -> None:
    """Write what the first pictures of a split gave, whole or not at all."""
    values = {
        "num_pictures": num_pictures,
        "tops": [{name: vars(tops) for name, tops in own.items()} for own in seen.tops],
        "moments": {name: vars(moments) for name, moments in seen.moments.items()},
    }
    with whole(file) as stream:
        torch.save(values, stream)


def kept_seen(file: Path) -> tuple[int, Seen] | None:
    """How many pictures were looked at, and what they gave; None where nothing was kept."""
    if not file.is_file():
        return None
    values = torch.load(file, weights_only=True)
    tops = tuple({name: TopUnits(**each) for name, each in own.items()} for own in values["tops"])
    moments = {name: Moments(**each) for name, each in values["moments"].items()}
    return values["num_pictures"], Seen(tops, moments)
