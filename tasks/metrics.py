"""What is computed from predicted probabilities: plain numpy, all samples at once.

K classes, N samples; probabilities (N, K) are softmax outputs whose rows sum to one, labels (N,) are class indices.
The predicted class is the first of the highest probability.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import betaincinv

NUM_BINS = 15
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)  # softmax in float32 may reach 0: counted as 87.3 nats


@dataclass(frozen=True)
class PerClass:
    """Each of shape (K,): precision, recall and F1 in [0, 1], 0 where undefined; support and predicted are counts."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    predicted: np.ndarray

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that occur, in truth or prediction (scikit-learn's default); 0 where none does."""
        occurs = (self.support > 0) | (self.predicted > 0)
        return float(self.f1[occurs].mean()) if occurs.any() else 0.0


@dataclass(frozen=True)
class Reliability:
    """Samples by top-1 confidence, in equal-width bins (low, high]: each of shape (num_bins,).

    Accuracy and mean confidence of an empty bin are NaN.
    """

    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray

    @property
    def expected_error(self) -> float:
        """ECE: Σ (n_b / N) · |accuracy - confidence| (Naeini et al. 2015; Guo et al. 2017)."""
        gap = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gap * self.count) / self.count.sum())


def check_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """What every function below relies on; raises ValueError."""
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            f"probabilities {probabilities.shape} and labels {labels.shape} must be (N, K) and (N,) with N ≥ 1"
        )
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()} must lie in 0…{probabilities.shape[1] - 1}"
        )
    sums = probabilities.sum(axis=1, dtype=np.float64)
    wrong = ~np.isfinite(probabilities).all(axis=1) | (probabilities < 0).any(axis=1) | (abs(sums - 1) > 1e-3)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"{wrong.sum()} of {len(labels)} rows are no probabilities; the first is row {first}, "
            f"which sums to {sums[first]}: has the training diverged?"
        )


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (K, K) int64: rows are true classes, columns predicted ones."""
    cells = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(confusion: np.ndarray) -> PerClass:
    """Precision, recall and F1 of each class, from the confusion matrix (K, K)."""
    right, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return PerClass(
        precision=_ratio(right, predicted),
        recall=_ratio(right, support),
        f1=_ratio(2 * right, support + predicted),
        support=support,
        predicted=predicted,
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def wilson_interval(num_right: int, num_samples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (1927, https://doi.org/10.1080/01621459.1927.10502953)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n, share = num_samples, num_right / num_samples
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    # where all or none are right, the formula gives 1 or 0 but for rounding
    low = 0.0 if num_right == 0 else centre - half
    high = 1.0 if num_right == n else centre + half
    return low, high


def exact_interval(num_right: int, num_samples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share (1934, https://doi.org/10.1093/biomet/26.4.404).

    A true share lies above it, or below it, by chance at most (1 − confidence) / 2 of the time, however few the samples
    and however near the share is to 0 or 1; Wilson's keeps to that only on average over shares.
    """
    tail = (1 - confidence) / 2
    num_wrong = num_samples - num_right
    low = 0.0 if num_right == 0 else float(betaincinv(num_right, num_wrong + 1, tail))
    high = 1.0 if num_wrong == 0 else float(betaincinv(num_right + 1, num_wrong, 1 - tail))
    return low, high


def confidence_bins(top: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Which of `num_bins` equal bins (low, high] of (0, 1] each confidence (N,) lies in: (N,) int64."""
    return np.clip(np.ceil(top * num_bins).astype(np.int64) - 1, 0, num_bins - 1)


def reliability_in(
    bins: np.ndarray, top: np.ndarray, right: np.ndarray, num_bins: int = NUM_BINS
) -> Reliability:
    """Accuracy against confidence `top` (N,), by the bins (N,) that the samples lie in; `right` (N,) bool."""
    count = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):  # 0/0 of an empty bin is the NaN we want
        accuracy = np.bincount(bins, weights=right, minlength=num_bins) / count
        confidence = np.bincount(bins, weights=top, minlength=num_bins) / count
    edges = np.arange(num_bins + 1) / num_bins
    return Reliability(edges[:-1], edges[1:], count, accuracy, confidence)


def reliability(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> Reliability:
    """Accuracy against confidence of the predicted class, in `num_bins` equal bins of (0, 1]."""
    top = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    return reliability_in(confidence_bins(top, num_bins), top, right, num_bins)


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p(true class) of each sample, in nats: (N,); probabilities below `LEAST_PROBABILITY` count as that."""
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return np.asarray(-np.log(np.maximum(true, LEAST_PROBABILITY)))


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `log_losses`."""
    return float(log_losses(probabilities, labels).mean())


def brier_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Σ_k (p_k - [k is true])² of each sample, from 0 to 2 (Brier 1950): (N,)."""
    rows = probabilities.astype(np.float64)
    true = rows[np.arange(len(labels)), labels]
    return np.asarray((rows**2).sum(axis=1) - 2 * true + 1)


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `brier_losses`."""
    return float(brier_losses(probabilities, labels).mean())


def top_k_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of samples whose true class is among the `k` most probable; of equals, the first class counts first."""
    rows, classes = np.arange(len(labels)), np.arange(probabilities.shape[1])
    true = probabilities[rows, labels][:, None]
    ahead = (probabilities > true) | ((probabilities == true) & (classes < labels[:, None]))
    return float((ahead.sum(axis=1) < k).mean())


def summarise(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The figures of one way to predict: accuracy with its 95% interval, macro-F1, `confidence_figures`, and top-5
    from 6 classes on.

    Raises ValueError for what is not probabilities.
    """
    check_probabilities(probabilities, labels)
    num_samples, num_classes = probabilities.shape
    predicted = probabilities.argmax(axis=1)
    num_right = int((predicted == labels).sum())
    low, high = wilson_interval(num_right, num_samples)
    figures = {
        "accuracy": num_right / num_samples,
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": per_class(confusion_matrix(labels, predicted, num_classes)).macro_f1,
        **confidence_figures(probabilities, labels),
    }
    if num_classes >= 6:
        figures["top5_accuracy"] = top_k_accuracy(probabilities, labels, 5)
    return figures


def confidence_figures(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well the probabilities themselves fit: NLL, Brier's score and ECE."""
    return {
        "nll": negative_log_likelihood(probabilities, labels),
        "brier": brier_score(probabilities, labels),
        "ece": reliability(probabilities, labels).expected_error,
    }
