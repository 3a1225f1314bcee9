"""The binary-classification heads of an embedder (models/pairhead.py): fitted after training, kept beside its weights.

Features of pairs are of precomputed embeddings. The weights are fitted to pairs of people of train, and how strongly
they are held back (`decay`) is chosen on people of validation, who are also asked how far to trust the logit: the
embedder saw those of train, whose pairs it tells apart better than anybody else's. So a logit of 0 stands where pairs
of other people are as likely of one person as of two, in equal numbers.

    pair-heads.safetensors      difference.weight (D,), difference.bias (), chi_squared.weight, chi_squared.bias
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from models.pairhead import PairFeatures, PairHead, fit_logistic, fit_pair_head
from tasks.card import ModelCard, PairHeads
from tasks.facepairs import pairs_of_people
from tasks.modelfile import weights_file

FILE = "pair-heads.safetensors"
KINDS: tuple[PairFeatures, ...] = get_args(PairFeatures)
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
MOST_PAIRS = 20_000  # of a kind, to fit to
MOST_PICTURES = 4_000  # of train
LEAST_DECAY = 1e-6  # of the two numbers that validation fits


@dataclass(frozen=True)
class People:
    """Embeddings (N, D) of unit length, and who is on each (N,)."""

    embeddings: np.ndarray
    labels: np.ndarray

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Both sides of the pairs (P, D), (P, D), and which are of one person (P,)."""
        places, same = pairs_of_people(self.labels, MOST_PAIRS)
        rows = torch.from_numpy(self.embeddings)
        return rows[places[:, 0]], rows[places[:, 1]], torch.from_numpy(same)


@dataclass(frozen=True)
class Fitted:
    """A head, and the decay that was best for it."""

    head: PairHead
    decay: float


def fit_pair_heads(train: People, val: People) -> dict[PairFeatures, Fitted]:
    """A head of each kind; raises ValueError where either has no pairs of both kinds."""
    return {kind: fit_one(kind, train, val) for kind in KINDS}


def fit_one(kind: PairFeatures, train: People, val: People) -> Fitted:
    """The head whose logit, scaled and shifted for the pairs of validation, has the least cross-entropy on them."""
    a, b, same = val.pairs()
    best, least = None, np.inf
    for decay in DECAYS:
        head = fit_pair_head(*train.pairs(), kind, decay)
        with torch.no_grad():
            logits = head(a, b).double()
            spread = logits.std()  # one, for the decay to be slight whatever the head's was
            (slope,), shift = fit_logistic(logits[:, None] / spread, same, LEAST_DECAY)
            scale = slope / spread
            entropy = float(F.binary_cross_entropy_with_logits(scale * logits + shift, same.double()))
            head.linear.weight *= scale
            head.linear.bias.copy_(scale * head.linear.bias + shift)
        if entropy < least:
            best, least = Fitted(head, decay), entropy
    assert best is not None
    return best


def write_pair_heads(folder: Path, fitted: dict[PairFeatures, Fitted], fitted_on: str) -> PairHeads:
    """Write the heads to a model's folder; what its card says of them."""
    tensors = {}
    for kind, each in fitted.items():
        tensors[f"{kind}.weight"] = each.head.linear.weight.detach()[0].clone()
        tensors[f"{kind}.bias"] = each.head.linear.bias.detach()[0].clone()
    save_file(tensors, folder / FILE)
    return PairHeads(
        weights=FILE, decay={kind: each.decay for kind, each in fitted.items()}, fitted_on=fitted_on
    )


def load_pair_heads(folder: Path, card: ModelCard) -> dict[PairFeatures, PairHead]:
    """The heads of the model in `folder`; none of a model that has none."""
    if card.pair_heads is None:
        return {}
    tensors = load_file(weights_file(folder, card.pair_heads.weights))
    heads = {}
    for kind in KINDS:
        heads[kind] = PairHead(len(tensors[f"{kind}.weight"]), kind)
        heads[kind].linear.load_state_dict(
            {"weight": tensors[f"{kind}.weight"][None], "bias": tensors[f"{kind}.bias"][None]}
        )
    return heads


@torch.inference_mode()
def pair_logits(head: PairHead, embeddings: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How likely pairs (P, 2) of rows of embeddings (N, D) are of one person: logits (P,) float64."""
    rows = torch.from_numpy(embeddings)
    pieces = torch.from_numpy(places).split(MOST_PAIRS)
    return torch.cat([head(rows[some[:, 0]], rows[some[:, 1]]) for some in pieces]).double().numpy()
