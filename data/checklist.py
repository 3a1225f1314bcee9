"""The named checks of a stored dataset: how grave each is, what it means, what to do about it.

An `error` stops training unless its name is accepted; a `warning` is shown; `info` is good to know. Where a fault is
harmless while it is rare, the check has the share from which on it is an error, `stops_above`. These shares are chosen
so that published sets train as they are (CIFAR-10: 3.1% of the test pictures look like one of train or val; BCCD: 2 of
4,888 boxes have no area), and so that nobody is told of a test result that is not one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from data import arrays, faults
from data.dataset import NUM_AXES, DatasetInfo, classifies, schema_of
from data.faults import Find, num_boxes, odd, reported, set_aside
from data.issues import ELSEWHERE, ISSUES
from data.measurement import ODDITIES
from data.report import WRONG_EXTENSION

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

# Of the files: beyond it something went wrong on the way, such as a copy that was cut off.
MAX_SET_ASIDE = 0.05
MAX_LEAKED = 0.05  # of the test pictures: beyond it the test measures memory (CIFAR-100: 10%, arxiv.org/abs/1902.00423)
MAX_LEAKED_COPIES = 0.02  # the same of exact copies, of which no published set should have any
MAX_CONFLICTS = 0.01  # of the pictures under several labels: nothing can learn both
MAX_BAD_BOXES = 0.05  # of the boxes of one fault: a convention of coordinates is read wrongly
MAX_UNTRAINED = 0.05  # of the test boxes that are of classes without a training box

# Fractions say nothing of what a source splits itself, nor of images of earlier versions: these keep their side.
LARGER = "raise ingest.{split}_fraction and add the source again with --fresh-splits, if it has no splits of its own"
LARGER_TEST, LARGER_VAL = (LARGER.format(split=split) for split in ("test", "val"))


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to look for."""

    name: str  # what --accept takes
    severity: Severity  # where it is found at all
    meaning: str  # these two with the places of data.dataset.in_words_of
    remedy: str
    find: Find
    stops_above: float | None = None  # share of `of` above which it is an error
    of_family: Callable[[DatasetInfo], bool] = lambda info: True


def has_classes(info: DatasetInfo) -> bool:
    """Whether a picture belongs to one of the classes that a model is to tell apart."""
    return classifies(info.family)


def has_sizes(info: DatasetInfo) -> bool:
    return {"width", "height"} <= set(schema_of(info.family).names) and info.family not in NUM_AXES


def has_axes(info: DatasetInfo) -> bool:
    return info.family in NUM_AXES


def has_boxes(info: DatasetInfo) -> bool:
    return info.family == "detection"


def has_points(info: DatasetInfo) -> bool:
    return info.family == "landmarks"


def has_people(info: DatasetInfo) -> bool:
    return info.family == "faces"


_ROTATED, _ANIMATED, _ALPHA, _CMYK, _DEEP = ODDITIES
_FILLED, _CONSTANT = arrays.ODDITIES
_MEND = "repair or remove the files, and add the source again"
_BOXES = "look at the annotations named here, mend them, and add the source again"
_SPLITS = "remove them from one side in the source, or let ingest split it (no split folders): it keeps groups together"

CHECKS: tuple[Check, ...] = (
    # files that could not be used
    Check(
        name="unreadable", severity="warning", stops_above=MAX_SET_ASIDE, find=set_aside("unreadable"),
        meaning="Files that cannot be read or decoded; they are not in the dataset.", remedy=_MEND,
    ),
    Check(
        name="truncated", severity="warning", stops_above=MAX_SET_ASIDE, find=set_aside("truncated"),
        meaning="{Items} that are cut short; they are not in the dataset.",
        remedy="copy or download them again, and add the source again",
    ),
    Check(
        name="not-an-image", severity="warning", stops_above=MAX_SET_ASIDE, find=set_aside("not-an-image"),
        meaning="Files among the {items} that are empty, no {items}, or of a format that is not read.",
        remedy="remove or convert them, and add the source again",
    ),
    Check(
        name="decompression-bomb", severity="warning", stops_above=MAX_SET_ASIDE,
        find=set_aside("decompression-bomb"),
        meaning="Small files that unpack to more than any {item} holds; they are not in the dataset.",
        remedy="remove them; if they are meant, save them smaller",
    ),
    Check(
        name="annotation-unreadable", severity="warning", stops_above=MAX_SET_ASIDE,
        find=set_aside("annotation-unreadable"),
        meaning="{Items} whose own annotation cannot be read, or none of whose boxes can be used; they are not in the "
        "dataset.",
        remedy="mend the annotations at the places named, and add the source again",
    ),
    # pictures that are used, with something odd about them
    Check(
        name="wrong-extension", severity="info", find=odd(WRONG_EXTENSION),
        meaning="Files that are called otherwise than they are (a PNG called .jpg); the content counts.",
        remedy="nothing; other tools may stumble over them",
    ),
    Check(
        name="cmyk", severity="warning", find=odd(_CMYK),
        meaning="Pictures for print; they become RGB without their colour profile, so colours may be off.",
        remedy="save them as RGB, and add the source again",
    ),
    Check(
        name="deep", severity="info", find=odd(_DEEP),
        meaning="Pictures with 16 bits a sample; they are scaled to 8.",
        remedy="if the values fill only a part of the range, stretch them in the source",
    ),
    Check(
        name="alpha", severity="info", find=odd(_ALPHA),
        meaning="Pictures with transparency; it is laid on white.",
        remedy="nothing; where only one class has it, its white background gives the class away",
    ),
    Check(
        name="animated", severity="warning", find=odd(_ANIMATED),
        meaning="Animations or files of several pages; the first counts, the others are lost.",
        remedy="save the pages as files of their own if they matter",
    ),
    Check(
        name="exif-rotated", severity="info", find=odd(_ROTATED),
        meaning="Pictures that EXIF turns; they are upright here, and their boxes and points with them.",
        remedy="look at boxes drawn on a few of them: some tools annotate the pixels as stored, some the upright ones",
    ),
    Check(
        name="tiny-pictures", severity="warning", find=faults.tiny_pictures, of_family=has_sizes,
        meaning=f"Pictures whose shorter side has less than {faults.TINY_PX} pixels, or an eighth of the usual.",
        remedy="look at them: icons and thumbnails do not belong among photographs",
    ),
    Check(
        name="extreme-aspect", severity="info", find=faults.extreme_aspect, of_family=has_sizes,
        meaning=f"Pictures more than {faults.LONG_ASPECT:g} times longer than wide, or wider than long.",
        remedy="by input.resize: squash distorts them, letterbox (detection alone) makes them small, crop (all but "
        "detection) cuts most of them away",
    ),
    # signals and volumes
    Check(
        name="not-numeric", severity="warning", stops_above=MAX_SET_ASIDE, find=set_aside("not-numeric"),
        of_family=has_axes,
        meaning="Arrays of Python objects (none is unpickled), texts or complex numbers; they are not in the dataset.",
        remedy="save them as real numbers, and add the source again",
    ),
    Check(
        name="not-finite", severity="warning", stops_above=MAX_SET_ASIDE, find=set_aside("not-finite"),
        of_family=has_axes,
        meaning="{Items} with infinite values, or missing ones that cannot be filled in; they are not in the dataset.",
        remedy=_MEND,
    ),
    Check(
        name="no-values", severity="warning", stops_above=MAX_SET_ASIDE, find=set_aside("no-values"),
        of_family=has_axes,
        meaning="{Items} of length zero; they are not in the dataset.", remedy=_MEND,
    ),
    Check(
        name="wrong-shape", severity="warning", stops_above=MAX_SET_ASIDE, find=set_aside("wrong-shape"),
        of_family=has_axes,
        meaning="{Items} of other axes, or of another number of channels than most; they are not in the dataset.",
        remedy="bring them to one shape, channels first, and add the source again",
    ),
    Check(
        name="values-filled", severity="warning", find=odd(_FILLED), of_family=has_axes,
        meaning="{Items} with missing values; they lie on the straight line between their neighbours.",
        remedy="look at them: long gaps become straight lines that nobody measured",
    ),
    Check(
        name="constant", severity="warning", find=odd(_CONSTANT), of_family=has_axes,
        meaning="{Items} of one value throughout: there is nothing in them to learn from.",
        remedy="look whether a sensor was off, and remove them",
    ),
    Check(
        name="uneven-lengths", severity="info", find=faults.uneven_lengths, of_family=has_axes,
        meaning=f"{{Items}} more than {faults.UNEVEN_TIMES} times shorter or longer than the usual one.",
        remedy="look at what `input` keeps of them: long ones are cut to their middle, short ones filled up",
    ),
    # the same picture twice
    Check(
        name="duplicates", severity="warning", find=faults.duplicates,
        meaning="{Items} that stand in one split more than once, byte for byte.",
        remedy="remove the copies: they count double in training and in the test",
    ),
    Check(
        name="near-duplicates", severity="info", find=faults.near_duplicates,
        meaning="{Items} that look like another of the same split: scaled, saved again, or the next frame.",
        remedy="thin them out if they are many: they make a dataset seem larger than it is",
    ),
    Check(
        name="duplicates-across-splits", severity="warning", stops_above=MAX_LEAKED_COPIES,
        find=faults.duplicates_across_splits,
        meaning="Held-out {items} that were trained on too, byte for byte: the test measures memory.", remedy=_SPLITS,
    ),
    Check(
        name="near-duplicates-across-splits", severity="warning", stops_above=MAX_LEAKED,
        find=faults.near_duplicates_across_splits,
        meaning="Held-out {items} that look like one that was trained on: the test flatters.", remedy=_SPLITS,
    ),
    Check(
        name="groups-across-splits", severity="warning", stops_above=MAX_LEAKED, find=faults.groups_across_splits,
        meaning="Held-out {items} of a group (a person, a patient, a video) that was trained on.", remedy=_SPLITS,
    ),
    Check(
        name="report-outdated", severity="warning", find=faults.outdated_report,
        meaning="The dataset was ingested before near-duplicates were listed: the checks above do not see them.",
        remedy="add the source again",
    ),
    # labels
    Check(
        name="conflicting-labels", severity="warning", stops_above=MAX_CONFLICTS, find=faults.conflicting_labels,
        meaning="The same {item}, byte for byte, under several labels, or annotated in several ways.",
        remedy="decide for one label, and remove the other copies",
    ),
    Check(
        name="conflicting-near-duplicates", severity="warning", find=faults.conflicting_near_duplicates,
        of_family=has_classes,
        meaning="{Items} that look the same, under several labels.",
        remedy="look at the pairs, and decide for one label",
    ),
    Check(
        name="class-missing", severity="error", find=faults.class_missing, of_family=has_classes,
        meaning="Classes without a training {item}: no model can know them.",
        remedy="add {items}, or remove the class from the source",
    ),
    Check(
        name="no-training-boxes", severity="error", find=faults.no_box_in_training, of_family=has_boxes,
        meaning="No training picture has a box: there is nothing to learn.",
        remedy="add boxes, or find out why none was read: ./convoy data check names those that were left out",
    ),
    Check(
        name="class-untrained", severity="warning", stops_above=MAX_UNTRAINED, find=faults.class_untrained,
        of_family=has_boxes,
        meaning="Test boxes of classes that have no training box: they can only be missed.",
        remedy="add pictures of these classes, or leave the classes out",
    ),
    Check(
        name="class-unused", severity="info", find=faults.class_unused, of_family=has_boxes,
        meaning="Classes that no box has.", remedy="nothing; a shorter list of classes makes a smaller head",
    ),
    Check(
        name="class-untested", severity="warning", find=faults.class_not_in("test"),
        of_family=lambda info: has_classes(info) or has_boxes(info),
        meaning="Classes that are trained and of which nothing is in the test.",
        remedy="what the model does with these classes stays unknown: add {items}, or " + LARGER_TEST,
    ),
    Check(
        name="class-unvalidated", severity="warning", find=faults.class_not_in("val"),
        of_family=lambda info: has_classes(info) or has_boxes(info),
        meaning="Classes that are trained and of which nothing is in validation.",
        remedy="what is chosen by validation is blind to these classes: add {items}, or " + LARGER_VAL,
    ),
    Check(
        name="class-imbalance", severity="warning", find=faults.class_imbalance,
        of_family=lambda info: has_classes(info) or has_boxes(info),
        meaning=f"Classes that the most frequent one outnumbers more than {faults.IMBALANCE:g} times in training.",
        remedy="add {items} of the rare classes, and read the table of classes; of a classifier macro_f1, not accuracy",
    ),
    Check(
        name="few-pictures", severity="warning", find=faults.few_pictures,
        of_family=lambda info: has_classes(info) or has_boxes(info),
        meaning=f"Classes of which training has fewer than {faults.FEW_PER_CLASS} {{items}}.",
        remedy="add {items}, or start from a pretrained network",
    ),
    Check(
        name="single-picture-identities", severity="info", find=faults.single_picture_identities,
        of_family=has_people,
        meaning="People with one picture: no pair of them can be made.",
        remedy="nothing, or add pictures; they serve as others to be told from",
    ),
    # splits
    Check(
        name="no-test-split", severity="error", find=faults.no_split("test"),
        meaning="There is no {item} to test on: nothing would be known of the model.",
        remedy="add {items}, or " + LARGER_TEST,
    ),
    Check(
        name="no-validation-split", severity="info", find=faults.no_split("val"),
        meaning="There is no {item} to watch training by.",
        remedy=LARGER_VAL,
    ),
    Check(
        name="few-test-pictures", severity="warning", find=faults.few_tested,
        of_family=lambda info: has_classes(info) or has_boxes(info),
        meaning=f"Fewer than {faults.FEW_TESTED} test {{items}}: what is measured is uncertain by 10 points and more.",
        remedy="add {items}, or " + LARGER_TEST,
    ),
    # boxes, points, pairs
    Check(
        name="label-unknown", severity="warning", stops_above=MAX_BAD_BOXES, of_family=has_boxes,
        find=reported(ISSUES["label-unknown"], unit="boxes", of=num_boxes),
        meaning="Boxes of a class that the list of classes does not have; they are left out.", remedy=_BOXES,
    ),
    Check(
        name="box-outside", severity="warning", stops_above=MAX_BAD_BOXES, of_family=has_boxes,
        find=reported(ISSUES["box-outside"], unit="boxes", of=num_boxes),
        meaning="Boxes that lie outside the picture; they are left out.", remedy=_BOXES,
    ),
    Check(
        name="box-clipped", severity="info", of_family=has_boxes,
        find=reported(ISSUES["box-clipped"], unit="boxes", of=num_boxes),
        meaning="Boxes that reach over the edge; they are cut there.",
        remedy="nothing where it is a pixel; where it is many, look whether coordinates are of another size",
    ),
    Check(
        name="box-empty", severity="warning", stops_above=MAX_BAD_BOXES, of_family=has_boxes,
        find=reported(ISSUES["box-empty"], unit="boxes", of=num_boxes),
        meaning="Boxes without area; they are left out.", remedy=_BOXES,
    ),
    Check(
        name="box-inverted", severity="warning", stops_above=MAX_BAD_BOXES, of_family=has_boxes,
        find=reported(ISSUES["box-inverted"], unit="boxes", of=num_boxes),
        meaning="Boxes with corners swapped; they are left out.", remedy=_BOXES,
    ),
    Check(
        name="box-not-finite", severity="warning", stops_above=MAX_BAD_BOXES, of_family=has_boxes,
        find=reported(ISSUES["box-not-finite"], unit="boxes", of=num_boxes),
        meaning="Boxes whose coordinates are not numbers; they are left out.", remedy=_BOXES,
    ),
    Check(
        name="box-duplicated", severity="warning", stops_above=MAX_BAD_BOXES, of_family=has_boxes,
        find=reported(ISSUES["box-duplicated"], unit="boxes", of=num_boxes),
        meaning="The same box of the same class twice; one of them is left out.", remedy=_BOXES,
    ),
    Check(
        name="box-area-unusable", severity="warning", of_family=has_boxes,
        find=reported(ISSUES["box-area-unusable"], unit="boxes", of=num_boxes),
        meaning="Areas that are no numbers, not finite or below 0; those of the boxes count instead.", remedy=_BOXES,
    ),
    Check(
        name="tiny-boxes", severity="info", find=faults.tiny_boxes, of_family=has_boxes,
        meaning=f"Boxes with a side below {faults.TINY_BOX_SHARE:.0%} of the picture's longer side: a detector sees a "
        "few pixels of them. Those below 2 px at input.stored_px are trained as neither object nor background.",
        remedy="train at a larger input, or leave them out of the source",
    ),
    Check(
        name="pictures-without-boxes", severity="info", find=faults.without_boxes, of_family=has_boxes,
        meaning="Pictures without a box; they are background.",
        remedy="make sure that somebody looked: what is not annotated is learnt as background",
    ),
    Check(
        name="annotation-size-differs", severity="warning", of_family=has_boxes,
        find=reported(ISSUES["annotation-size-differs"], unit="annotations"),
        meaning="Annotations that give another size than their picture has; boxes are used as they are.",
        remedy="look at the boxes drawn on them: the pictures may have been scaled after they were annotated",
    ),
    Check(
        name="annotations-unmatched", severity="warning",
        find=reported(ISSUES["annotations-unmatched"], unit="entries"),
        meaning="Entries of annotations and lists that fit no {item}; they are left out.",
        remedy="look whether {items} are missing, or names are written otherwise",
    ),
    Check(
        name="pictures-unannotated", severity="info", of_family=lambda info: has_boxes(info) or has_points(info),
        find=reported(ISSUES["pictures-unannotated"], unit="pictures"),
        meaning="Pictures without any annotation: background of a detector, left out of landmarks.",
        remedy="make sure that they are not simply unfinished work",
    ),
    Check(
        name="point-outside", severity="warning", find=reported(ISSUES["point-outside"], unit="pictures", of=len),
        of_family=has_points,
        meaning="Pictures with points outside; they are kept as they are.",
        remedy="look at them: a crop may have been made after the points were set",
    ),
    Check(
        name="point-missing", severity="info", find=reported(ISSUES["point-missing"], unit="pictures", of=len),
        of_family=has_points,
        meaning="Pictures with points that are not given; these count as hidden.", remedy="nothing",
    ),
    Check(
        name="pair-unusable", severity="warning", of_family=has_people,
        find=reported(ISSUES["pair-unusable"], unit="pairs"),
        meaning="Pairs to compare that name a picture which is not there; they are left out.",
        remedy="look whether pictures are missing: a result on fewer pairs is not the published one",
    ),
    Check(
        name="pair-trained", severity="warning", find=reported(ISSUES["pair-trained"], unit="pairs"),
        of_family=has_people,
        meaning="Pairs to compare with a picture that is trained on: comparing them flatters.",
        remedy="keep the people of the pairs out of the training list",
    ),
    Check(
        name="annotations-other", severity="warning",
        find=faults.unnamed({what for whats in ISSUES.values() for what in whats} | set(ELSEWHERE)),
        meaning="What else the reader of the source has to say.", remedy="look at the entries named here",
    ),
)  # fmt: skip
NAMES: tuple[str, ...] = tuple(check.name for check in CHECKS)
