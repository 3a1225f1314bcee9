"""What a trained model says of itself: `model.json`, beside its weights (see tasks.modelfile)."""

from typing import Any, Literal

from pydantic import Field

from data.aligned import FaceAlignment
from data.dataset import DatasetInfo
from data.fitting import ArrayPreprocessing
from data.parameters import Parameters
from data.squares import Resize

CARD_VERSION = 1


class Preprocessing(Parameters):
    """From an encoded picture to the network's uint8 input, as evaluation did it."""

    stored_px: int  # the decoded image is a square of this side
    crop_px: int  # the network sees crops of this side
    pad_px: int  # reflected border that crops may reach into
    channels: Literal[1, 3]
    resize: Resize


class Member(Parameters):
    """One network."""

    architecture: str  # a name of the family's ARCHITECTURES, in models/
    arguments: dict[str, Any]  # what its builder takes beside num_classes and channels
    weights: str  # file name beside model.json
    run: str  # the run that trained it


class InitialWeights(Parameters):
    """What training started from, where that was not chance."""

    source: str  # as a person gave it, without a password
    sha256: str  # of the weights' file
    trained: str  # what was trained of it: all, head, or stages, as transfer.mode has it; none where it only judges
    about: dict[str, Any] = Field(default={})  # what else must be known of them


class TaughtBy(Parameters):
    """The model that a network was distilled from."""

    source: str  # as a person gave it
    sha256: str  # of its card and weights


class PairHeads(Parameters):
    """Logistic regressions on pairs of embeddings: see tasks.pairheads."""

    weights: str  # file name beside model.json
    decay: dict[str, float]  # of each kind, by name
    fitted_on: str


class ModelCard(Parameters):
    """`model.json`."""

    card_version: int
    family: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing | ArrayPreprocessing  # of pictures; of signals and volumes
    views: str  # how evaluation looked at each image: a name of tasks.views.VIEWS
    thresholds: dict[str, float]
    told_by_few: tuple[str, ...] = ()  # thresholds of faces: see tasks.verification.ENOUGH_ERRORS
    members: tuple[Member, ...]
    dataset: str
    dataset_digest: str  # DVC's md5 of the dataset the weights were fitted to, or "" if it had none
    initial_weights: InitialWeights | None = None
    taught_by: TaughtBy | None = None
    pair_heads: PairHeads | None = None  # of embedders
    temperature: float = Field(default=1.0, gt=0)  # of `views` and these members: see tasks.temperature
    alignment: FaceAlignment | None = None  # faces: how they had been cut out to train on; None: not known
    calibrated_on: str = ""  # what the temperature was fitted to, or why it is 1; "" if nobody tried


def card_of_one(
    config: Any,
    info: DatasetInfo,
    digest: str,
    run: str,
    *,
    arguments: dict[str, Any],
    classes: tuple[str, ...],
    preprocessing: Preprocessing | ArrayPreprocessing,
    thresholds: dict[str, float] | None = None,
    alignment: FaceAlignment | None = None,
) -> ModelCard:
    """The card of a single trained network of any family, whose parameters are `config`."""
    member = Member(
        architecture=config.model.name, arguments=arguments, weights="member-0.safetensors", run=run
    )
    return ModelCard(
        card_version=CARD_VERSION,
        family=info.family,
        classes=classes,
        preprocessing=preprocessing,
        views=config.evaluate.registered_view,
        thresholds=thresholds or {},
        members=(member,),
        dataset=info.name,
        dataset_digest=digest,
        alignment=alignment,
    )
