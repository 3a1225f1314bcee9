"""What readers and data.targets say of annotations, by the named check (data.checklist) that shows it."""

from data import targets
from data.formats import coco, identities, landmarks, listing, yolo

ISSUES: dict[str, tuple[str, ...]] = {
    "label-unknown": (targets.UNKNOWN_CLASS,),
    "box-outside": (targets.OUTSIDE,),
    "box-clipped": (targets.CLIPPED,),
    "box-empty": (targets.EMPTY,),
    "box-inverted": (targets.INVERTED,),
    "box-not-finite": (targets.NOT_FINITE,),
    "box-duplicated": (targets.DUPLICATE,),
    "box-area-unusable": (targets.BAD_AREA,),
    "annotation-size-differs": (targets.OTHER_SIZE,),
    "annotations-unmatched": (
        listing.NO_IMAGE,
        listing.LISTED_ONLY,
        yolo.NO_LABELLED_IMAGE,
        coco.UNKNOWN_IMAGE,
        coco.NO_BBOX,
        identities.UNKNOWN_PERSON,
    ),
    "pictures-unannotated": (
        listing.NO_ANNOTATION,
        landmarks.NO_LANDMARKS,
    ),
    "point-outside": (targets.POINT_OUTSIDE,),
    "point-missing": (targets.POINT_MISSING,),
    "pair-unusable": (
        targets.PAIR_UNUSABLE,
        identities.UNKNOWN_IMAGE,
    ),
    "pair-trained": (targets.PAIR_TRAINED,),
}
ELSEWHERE = (listing.NO_BOXES, identities.SINGLE)  # is counted from what is stored
