"""What a detector gets wrong at one score: the confusion matrix with background, and the kinds of errors.

Two passes at one threshold of IoU. What the match table says of each detection stands, so that the diagonal of the
matrix, its row sums and its column sums give the precision and recall that are reported. Then the detections that are
left take, by falling score (of equals the first in the table), the object of *another* class that is still free and
that they overlap most, of equals the first. Objects that nobody took are missed; detections that took none are false
alarms. What the table ignores (crowds, difficult objects, and the detections that took them) counts neither way.

Kinds of false alarms, the first that holds (after Bolya et al. 2020, https://arxiv.org/abs/2008.08115):
- duplicate: overlaps an object of its class enough, which a better one has taken;
- wrong class: overlaps an object of another class enough;
- poorly placed: overlaps an object of its class by `POOR_IOU` or more, but not enough;
- background: all else.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tasks.detectionmatches import Detections, Matches, Objects, pair_iou, pairs_of_groups

Verdict = Literal["hit", "ignored", "duplicate", "wrong class", "poorly placed", "background"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
FALSE_ALARMS = VERDICTS[2:]
POOR_IOU = 0.1


@dataclass(frozen=True)
class Judgement:
    """The D detections that are kept at a score, in the order of the match table, and the M objects."""

    score: float  # detections below it are left out
    iou_threshold: float
    num_classes: int
    place: np.ndarray  # (D,) int64 into the detections as they were given
    scores: np.ndarray  # (D,)
    labels: np.ndarray  # (D,) int64
    verdicts: np.ndarray  # (D,) of VERDICTS
    taken: np.ndarray  # (D,) int64: the object that it takes, of its class or of another; -1 for none
    overlapped: np.ndarray  # (D,) int64: the object that its verdict is about; -1 for none
    object_labels: np.ndarray  # (M,) int64
    object_ignored: np.ndarray  # (M,) bool
    missed: np.ndarray  # (M,) bool: no detection takes it
    hit: np.ndarray  # (M,) bool: one of its class does

    @property
    def confusion(self) -> np.ndarray:
        """Counts (K + 1, K + 1) int64: rows are true classes, columns predicted ones, the last is background."""
        K, counts = self.num_classes, self.verdicts != "ignored"
        true = np.append(self.object_labels, K)[self.taken]  # of none, -1: background
        cells = [true[counts] * (K + 1) + self.labels[counts]]
        cells.append(self.object_labels[self.missed] * (K + 1) + K)
        return np.bincount(np.concatenate(cells), minlength=(K + 1) ** 2).reshape(K + 1, K + 1)

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind: hits, kinds of false alarms, ignored detections, and missed objects."""
        return {kind: int((self.verdicts == kind).sum()) for kind in VERDICTS} | {
            "missed": int(self.missed.sum())
        }


def judge(
    objects: Objects, detections: Detections, matches: Matches, score: float, iou_threshold: float = 0.5
) -> Judgement:
    """Judge the detections of `score` or more (≥), by a table made of these objects and detections.

    Raises ValueError for a threshold of IoU that is not in the table.
    """
    t = matches.threshold_place(iou_threshold)
    rows = np.flatnonzero(matches.scores >= score)
    found, ignored = matches.found[0, t, rows], matches.ignored[0, t, rows]
    place, labels, scores = matches.place[rows], matches.labels[rows], matches.scores[rows]
    object_ignored = matches.object_ignored[0]
    hits = (found >= 0) & ~ignored
    hit = np.zeros(len(object_ignored), bool)
    hit[found[hits]] = True
    left = np.flatnonzero((found < 0) & ~ignored)
    mine, theirs = pairs_of_groups(matches.image[rows[left]], matches.object_image)
    real = ~object_ignored[theirs]
    mine, theirs = left[mine[real]], theirs[real]
    iou = pair_iou(detections.boxes_xyxy[place[mine]], objects.boxes_xyxy[theirs], np.zeros(len(mine), bool))
    same, enough = labels[mine] == matches.object_labels[theirs], iou >= iou_threshold
    verdicts = np.where(hits, "hit", np.where(ignored, "ignored", "background")).astype(object)
    overlapped = np.where(hits | ignored, found, -1)
    kinds = (  # the later ones overrule the earlier
        ("poorly placed", same & ~enough & (iou >= POOR_IOU)),
        ("wrong class", ~same & enough),
        ("duplicate", same & enough),
    )
    for kind, which in kinds:
        order = np.flatnonzero(which)[np.lexsort((-theirs[which], iou[which]))]  # the best last
        verdicts[mine[order]], overlapped[mine[order]] = kind, theirs[order]
    taken = np.where(hits, found, -1)
    other = ~same & enough & ~hit[theirs]
    _take_others(taken, mine[other], theirs[other], iou[other], scores)
    missed = ~object_ignored
    missed[taken[taken >= 0]] = False
    return Judgement(
        score=score, iou_threshold=iou_threshold, num_classes=matches.num_classes, place=place, scores=scores,
        labels=labels, verdicts=verdicts, taken=taken, overlapped=overlapped,
        object_labels=matches.object_labels, object_ignored=object_ignored, missed=missed, hit=hit,
    )  # fmt: skip


def _take_others(
    taken: np.ndarray, mine: np.ndarray, theirs: np.ndarray, iou: np.ndarray, scores: np.ndarray
) -> None:
    """The second pass, over the pairs of different classes that overlap enough: writes into `taken`."""
    used: set[int] = set()
    for pair in np.lexsort((theirs, -iou, mine, -scores[mine])).tolist():
        detection, thing = int(mine[pair]), int(theirs[pair])
        if taken[detection] < 0 and thing not in used:
            taken[detection] = thing
            used.add(thing)


def worst_false_alarms(judgement: Judgement, most: int) -> np.ndarray:
    """The false alarms of highest score, at most so many: places (≤ most,) in the judgement, the worst first."""
    wrong = np.flatnonzero(np.isin(judgement.verdicts, FALSE_ALARMS))
    return wrong[(-judgement.scores[wrong]).argsort(kind="stable")[:most]]


def best_hits(judgement: Judgement, most: int) -> np.ndarray:
    """The hits of highest score, at most so many: places in the judgement, the best first."""
    right = np.flatnonzero(judgement.verdicts == "hit")
    return right[(-judgement.scores[right]).argsort(kind="stable")[:most]]


def largest_misses(judgement: Judgement, objects: Objects, most: int) -> np.ndarray:
    """Objects that no detection took, at most so many: places of objects, the largest first."""
    missed = np.flatnonzero(judgement.missed)
    return missed[(-objects.area[missed]).argsort(kind="stable")[:most]]
