"""What a gallery's embedder is called: its address, how it has faces cut out, and a line of both."""

from data import aligned
from data.aligned import FaceAlignment
from tasks.gallerystore import Embedder

AS_GIVEN = "pictures as given"


def address(name: str, version: str) -> str:
    """The address of a model by what `tasks.registry.pin` says of it."""
    return f"models:/{name}/{version}" if version else name


def uri_of(embedder: Embedder) -> str:
    """The address of an embedder's model."""
    return address(embedder.name, embedder.version)


def alignment_of(embedder: Embedder) -> FaceAlignment | None:
    """How faces are cut out for it."""
    if embedder.preprocessing == AS_GIVEN:
        return None
    return aligned.parse(embedder.preprocessing, "the gallery's alignment")


def describe(alignment: FaceAlignment | None) -> str:
    """`mtcnn (828f48a5b1a9…), arcface, margin 0, 112 px`."""
    if alignment is None:
        return AS_GIVEN
    weights = f" ({alignment.weights_sha256[:12]})" if alignment.weights_sha256 else ""
    crop = f" of {alignment.crop_xyxy}" if alignment.crop_xyxy else ""
    points = f", {alignment.template}, margin {alignment.margin:g}" if alignment.weights else ""
    return f"{alignment.method}{weights}{crop}{points}, {alignment.side_px} px"


def describe_embedder(embedder: Embedder) -> str:
    """`models:/faces/3 (1f3870be274f), mtcnn (828f48a5b1a9), arcface, margin 0, 112 px`."""
    return f"{uri_of(embedder)} ({embedder.sha256[:12]}), {describe(alignment_of(embedder))}"


def same_faces(one: FaceAlignment, other: FaceAlignment | None) -> bool:
    """Whether two alignments cut out the same, wherever their weights lie and whichever of several faces they take."""
    if other is None:
        return False
    ignored = {"weights": "", "face": "largest"}
    if "" in (one.weights_sha256, other.weights_sha256):  # written by hand: not known
        ignored["weights_sha256"] = ""
    return one.model_copy(update=ignored) == other.model_copy(update=ignored)


def champion_of(embedder: Embedder) -> str:
    """The address of what a gallery's model is succeeded by; raises ValueError for one that is not registered."""
    if not embedder.version:
        raise ValueError(f"{embedder.name} is no registered model, so that nothing succeeds it: give --model")
    return f"models:/{embedder.name}@champion"
