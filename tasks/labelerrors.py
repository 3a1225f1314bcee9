"""Which labels are probably wrong, told from a model's probabilities: confident learning.

Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
https://arxiv.org/abs/1911.00068. Written from the paper:

- A class's threshold is the mean probability that pictures labelled so get for it (equation 2). A picture belongs
  confidently to class j if its probability for j reaches j's threshold; of several such classes the most probable one
  counts.
- The confident joint counts pictures by given label and confident class (equation 1); scaled to the number of pictures
  of each label, it estimates how often class j is labelled i (equation 3).
- For each pair i ≠ j as many pictures as estimated, rounded, are suspects: those labelled i with the largest margin
  p_j − p_i (section 3.2, "prune by noise rate").

We deviate in one thing: of these only those for which j is the most probable class are suspects, since a person is
shown j as the label to give. So there may be fewer of them than estimated, and none is named twice.

The probabilities must come from a model that has not been trained on these pictures: one that has repeats its labels.
Suspects are ranked by their normalised margin, p_given − max of the others: the least first.
"""

from dataclasses import dataclass

import numpy as np

# Mean share of wrong labels in the test sets of ten well-known datasets: Northcutt, Athalye, Mueller 2021, "Pervasive
# Label Errors in Test Sets Destabilize Machine Learning Benchmarks", https://arxiv.org/abs/2103.14749
USUAL_NOISE = 0.033
# a model that errs so many times as often as labels usually do suspects its own mistakes above all
WEAK_FACTOR = 6
ROUNDING = 1e-6  # a probability that is its class's mean reaches it, whatever the sum was rounded to


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """What N pictures and their probabilities over K classes say of their labels."""

    thresholds: np.ndarray  # (K,) float64: mean self-confidence; NaN for a class without pictures
    joint: np.ndarray  # (K, K) float64: estimated pictures by given label (row) and true class; sums to N
    suspects: np.ndarray  # (M,) int64: places, the most suspect first
    suggested: np.ndarray  # (M,) int64: class of each suspect
    margins: np.ndarray  # (M,) float64: normalised margin of each, −1 to 1

    @property
    def estimated(self) -> float:
        """Estimated number of wrong labels."""
        return float(self.joint.sum() - self.joint.trace())

    @property
    def noise_rate(self) -> float:
        """Estimated share of wrong labels."""
        return self.estimated / max(1.0, float(self.joint.sum()))


def weakness(accuracy: float) -> str:
    """What to know of a model that disagrees with many labels, "" of one that does not.

    A suspect is a picture on which model and label disagree. Where they disagree on more than WEAK_FACTOR times the
    share of labels that usually are wrong, below an accuracy of about 80%, most suspects are the model's mistakes,
    unless these labels are far worse than usual.
    """
    disagreement = 1 - accuracy
    if disagreement <= WEAK_FACTOR * USUAL_NOISE:
        return ""
    return (
        f"the model disagrees with {disagreement:.0%} of these labels; where as many are wrong as in published test "
        f"sets ({USUAL_NOISE:.1%}), only one in {disagreement / USUAL_NOISE:.0f} of these is a wrong label and the "
        "others are the model's mistakes: train a better one first, or read the suspects as a hint"
    )


def find_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Look at `probabilities` (N, K) and the given `labels` (N,), class indices; a ValueError if they do not fit."""
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities must be (N, K) and labels (N,), got {probabilities.shape} and {labels.shape}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite numbers; the model gives others")
    thresholds = class_thresholds(probabilities, labels)
    joint = calibrate(confident_joint(probabilities, labels, thresholds), labels)
    places, suggested = prune_by_noise_rate(probabilities, labels, joint)
    margins = normalised_margins(probabilities, labels)[places]
    order = np.argsort(margins, kind="stable")
    return LabelErrors(thresholds, joint, places[order], suggested[order], margins[order])


def class_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean probability of each class over the pictures labelled so: (K,); NaN where there are none."""
    K = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    counts = np.bincount(labels, minlength=K)
    return np.divide(np.bincount(labels, own, minlength=K), counts, out=np.full(K, np.nan), where=counts > 0)


def confident_joint(probabilities: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Pictures by given label (row) and confident class (column): (K, K) int64."""
    K = probabilities.shape[1]
    confident = probabilities >= thresholds - ROUNDING  # NaN compares as false: an absent class takes none
    best = np.where(confident, probabilities, -1.0).argmax(1)
    counted = confident.any(1)
    pairs = labels[counted] * K + best[counted]
    return np.bincount(pairs, minlength=K * K).reshape(K, K)


def calibrate(joint: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The confident joint, with each row scaled to the number of pictures of its label: (K, K) float64.

    A label of which no picture is confident is taken to be right.
    """
    K = len(joint)
    counts = np.bincount(labels, minlength=K).astype(np.float64)
    rows = joint.sum(1)
    scaled = np.where(rows[:, None] > 0, joint, np.eye(K)) * (counts / np.where(rows > 0, rows, 1))[:, None]
    return np.asarray(scaled, np.float64)


def prune_by_noise_rate(
    probabilities: np.ndarray, labels: np.ndarray, joint: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the suspects (M,), each once, and the class suggested for each (M,)."""
    predicted = probabilities.argmax(1)
    places, suggested = [], []
    for given, true in np.argwhere(np.rint(joint) > 0):
        if given == true:
            continue
        inside = np.flatnonzero(labels == given)
        margin = probabilities[inside, true] - probabilities[inside, given]
        chosen = inside[np.argsort(-margin, kind="stable")[: int(np.rint(joint[given, true]))]]
        chosen = chosen[predicted[chosen] == true]
        places.append(chosen)
        suggested.append(np.full(len(chosen), true))
    none = np.empty(0, np.int64)
    return np.concatenate([none, *places]), np.concatenate([none, *suggested])


def normalised_margins(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """p_given − max of the others: (N,) in [−1, 1]; below 0 another class is more probable."""
    rows = np.arange(len(labels))
    others = probabilities.astype(np.float64)
    own = others[rows, labels]
    others[rows, labels] = -np.inf
    return np.asarray(own - others.max(1, initial=-np.inf), np.float64)


def noisy_pairs(found: LabelErrors, least: float = 0.5) -> list[tuple[int, int, float, float]]:
    """(given, true, estimated pictures, share of the given label's), the most frequent first."""
    rows = found.joint.sum(1)
    pairs = [
        (
            int(given),
            int(true),
            float(found.joint[given, true]),
            float(found.joint[given, true] / rows[given]),
        )
        for given, true in np.argwhere(found.joint >= least)
        if given != true
    ]
    return sorted(pairs, key=lambda pair: -pair[2])
