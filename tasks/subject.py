"""The one network that an explanation is of: a trained classifier, or published weights by the network's name.

models:/classifier-digits@champion    a run key, runs:/ID, a folder: everything is in its card
package:NAME, FILE, URL#sha256=…      weights as transfer.weights takes them; then the network must be named
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn

from data.address import is_url
from models.classification import (
    ARCHITECTURES,
    Classifier,
    arguments_of,
    build,
    least_px,
    usual_px,
)
from models.receptive import LayerFields, receptive_fields
from models.stages import parameters_of, stages_of
from models.units import activations
from tasks import registry
from tasks.card import Preprocessing
from tasks.modelfile import load_model, model_sha256
from tasks.transfer import load
from tasks.weights import PACKAGE, SUFFIXES, read_weights


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode, and how pictures become its input."""

    source: str  # as a person gave it
    sha256: str  # of its files
    architecture: str
    classifier: Classifier
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    dataset: str  # that it was trained on; "" if not known
    temperature: float = 1.0  # of its probabilities by the view `single`

    def skeleton(self) -> nn.Module:
        """The network without numbers, on the meta device."""
        own = self.preprocessing
        with torch.device("meta"):
            arguments = arguments_of(self.architecture, own.crop_px)
            net = ARCHITECTURES[self.architecture](
                num_classes=len(self.classes), channels=own.channels, **arguments
            )
        return net.eval()

    def fields(self) -> dict[str, LayerFields]:
        """Shapes and receptive fields of its layers, for a picture as prediction shows it."""
        own = self.preprocessing
        return receptive_fields(self.skeleton(), (own.channels, own.crop_px, own.crop_px))

    def takes(self, side_px: int, layer: str) -> bool:
        """Whether a picture of that side is large enough for what lies before a layer, and for it."""
        picture = torch.empty(1, self.preprocessing.channels, side_px, side_px, device="meta")
        try:
            activations(self.skeleton(), [layer], picture)
        except RuntimeError:
            return False
        return True


def is_bare(source: str) -> bool:
    """Whether a source names weights that do not say what they are of."""
    return source.startswith(PACKAGE) or source.endswith(SUFFIXES) or is_url(source)


def open_subject(
    source: str, network: str | None = None, px: int | None = None, class_names: Sequence[str] = ()
) -> Subject:
    """Read the network that `source` names; `network` and the side `px` of its pictures are of bare weights.

    `class_names` take the place of its classes' names. Raises ValueError or FileNotFoundError saying what there is.
    """
    if is_bare(source):
        subject = _of_weights(source, network, px)
    elif network is not None or px is not None:
        raise ValueError(f"{source} says itself which network it is: leave --network and --input out")
    else:
        subject = _of_model(source, registry.resolve_model(source))
    if not class_names:
        return subject
    if len(class_names) != len(subject.classes):
        raise ValueError(f"{len(class_names)} class names for a network of {len(subject.classes)} classes")
    return replace(subject, classes=tuple(class_names))


def _of_model(source: str, folder: Path) -> Subject:
    saved = load_model(folder)
    card = saved.card
    if card.family != "classification" or not isinstance(card.preprocessing, Preprocessing):
        raise ValueError(
            f"{source} is a model for {card.family}: classifiers of pictures alone are explained"
        )
    if len(saved.members) != 1:
        runs = ", ".join(member.run for member in card.members)
        raise ValueError(
            f"{source} is {len(saved.members)} networks together: explain one of them, by its run: {runs}"
        )
    [member] = saved.members
    assert isinstance(member, Classifier)
    return Subject(
        source, model_sha256(folder), card.members[0].architecture, member, card.classes, card.preprocessing,
        card.dataset, card.temperature if card.views == "single" else 1.0,
    )  # fmt: skip


def perhaps(text: str) -> str:
    """`, as efficientnet_lite0 or …`: networks whose names are like a wrong one, or like a file's; "" without any."""
    name = Path(text.removeprefix(PACKAGE).partition("#")[0]).stem.lower()
    near = get_close_matches(name, list(ARCHITECTURES), 3, 0.5)
    return f", perhaps {' or '.join(near)}" if near else ""


def _of_weights(source: str, network: str | None, px: int | None) -> Subject:
    """Bare weights; their classes have numbers for names."""
    if network not in ARCHITECTURES:
        raise ValueError(
            f"{source} are bare weights: say by --network what they are of"
            f"{f' (got {network})' if network else ''}{perhaps(network or source)}; ./convoy models list --catalogue "
            "lists all networks"
        )
    side = usual_px(network) if px is None else px
    if side < least_px(network):
        raise ValueError(
            f"--input (={side}) is too small for {network}: it takes pictures of at least {least_px(network)} px"
        )
    weights = read_weights(source, network, 3, registry.resolve_model, "weights")
    if weights.mean_shape is not None:
        raise ValueError(f"weights (={source}) find landmarks: classifiers of pictures alone are explained")
    arguments = arguments_of(network, side)
    with torch.device("meta"):
        skeleton = ARCHITECTURES[network](num_classes=2, channels=3, **arguments)
    head = parameters_of(skeleton, stages_of(skeleton)[-1:])
    own = [tensor for name, tensor in weights.state.items() if name in head]
    if not own:
        raise ValueError(
            f"weights (={source}) have no head for {network} ({', '.join(sorted(head))}): give those of a whole "
            "network, and by --network the one that they were trained for"
        )
    classes = tuple(f"class {number}" for number in range(len(own[-1])))
    classifier = build(network, len(classes), 3, arguments, weights.mean, weights.std)
    load(classifier, weights, classes, "weights", "--network")
    preprocessing = Preprocessing(stored_px=side, crop_px=side, pad_px=0, channels=3, resize="crop")
    return Subject(source, weights.sha256, network, classifier.eval(), classes, preprocessing, "")
