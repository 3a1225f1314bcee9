"""What every command says of a gallery: what made its vectors, and that its model has another champion."""

from typing import Any

from data.counting import counted
from pipelines.render import ConsoleReporter
from tasks.embedders import alignment_of, uri_of
from tasks.gallerynames import champion_instead
from tasks.gallerystore import Embedder


def document_of(embedder: Embedder) -> dict[str, Any]:
    """What made the vectors, for a document."""
    alignment = alignment_of(embedder)
    return {
        "model": embedder.name,
        "version": embedder.version,
        "sha256": embedder.sha256,
        "alignment": None if alignment is None else alignment.model_dump(),
        "num_dims": embedder.num_dims,
    }


def people_in(gallery: str, num: int) -> str:
    """`16 people in the gallery default`."""
    return f"{counted(num, 'person', 'people')} in the gallery {gallery}"


def note_if_behind(gallery: str, embedder: Embedder) -> None:
    """Say on stderr that the model of a gallery has another champion than the version that it answers by."""
    champion = champion_instead(embedder)
    if champion is not None:
        ConsoleReporter().note(
            f"note: the gallery {gallery} holds vectors of {uri_of(embedder)}, and version {champion} is the champion: "
            f"./convoy faces gallery re-embed --gallery {gallery}"
        )
