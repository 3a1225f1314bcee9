"""What champion and challenger are compared on: test samples that the champion was not fitted to.

The challenger's test split is clean by its making. The champion may be of another version of the data, whose train and
validation held some of these samples: it would be asked what it has learnt by heart. They are left out, which is known
from the version that its card names, where that is in DVC's cache; where it is not, that is said. Samples left in by
that count for the champion, so that nothing is promoted by it.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.dataset import Dataset, Split, noun_of
from data.seen import seen_samples, write_kept
from tasks import versioning, versions
from tasks.card import ModelCard

SHORT = 8


@dataclass(frozen=True)
class Unseen:
    """The samples to compare on, and what is known of the others."""

    dataset: Dataset  # of the split alone, where some are left out
    seen: str  # how many the champion was fitted to, in a few words
    note: str  # a sentence for whoever reads the verdict; "" where there is nothing to know
    num_left_out: int = 0


@contextmanager
def unseen_part(dataset: Dataset, split: Split, champion: ModelCard) -> Iterator[Unseen]:
    """The samples of a split that a champion was not fitted to, for as long as they are looked at."""
    digest = champion.dataset_digest
    if champion.dataset == dataset.info.name and digest and digest == versioning.digest(dataset.path):
        yield Unseen(dataset, "none: it was trained on this version", "")
        return
    noun = f"{split} {noun_of(dataset.info.family)}"
    if not digest or not versioning.is_cached(digest):
        where = f"{digest[:SHORT]} is not in DVC's cache" if digest else "was not recorded"
        seen = f"not known: the version of {champion.dataset} that it was trained on {where}"
        note = f"whether the champion was fitted to some of these {noun} is not known, and counts for it: the version "
        yield Unseen(dataset, seen, f"{note}of {champion.dataset} that it was trained on {where}")
        return
    with versions.opened(digest) as trained:
        is_seen = seen_samples(dataset, split, trained)
    num_seen, num = int(is_seen.sum()), len(is_seen)
    if not num_seen:
        yield Unseen(dataset, f"none, of the version {digest[:SHORT]} that it was trained on", "")
        return
    told = f"{num_seen:,} of {num:,}, which are left out"
    note = (
        f"{num_seen:,} of {num:,} {noun} are left out: the champion was fitted to them, or to the same picture, group "
        f"or person, in the version {digest[:SHORT]} of the data"
    )
    with tempfile.TemporaryDirectory(prefix="convoy-unseen-") as folder:
        yield Unseen(write_kept(dataset, split, ~is_seen, Path(folder)), told, note, num_seen)
