"""Galleries by their names: where they lie, and which of them are behind the champion of their model.

A gallery is a folder below the home's `galleries`, by its name, or wherever a name with a slash says.
"""

from pathlib import Path

from tasks.gallery import Gallery
from tasks.gallerystore import DATABASE, Embedder, read_embedder
from tasks.paths import galleries


def folder_of(name: str) -> Path:
    """Where the gallery of that name is, or would be."""
    if not name.strip("./ "):
        raise ValueError(f"gallery (={name!r}) must be a name, or a folder's path with a slash in it")
    return Path(name) if "/" in name else galleries() / name


def is_there(name: str) -> bool:
    """Whether there is a gallery of that name."""
    return (folder_of(name) / DATABASE).is_file()


def gallery_names() -> list[str]:
    """The galleries below the home folder, sorted; one that was still being made when its process died is none."""
    names = (file.parent.name for file in galleries().glob(f"*/{DATABASE}"))
    return sorted(name for name in names if not name.startswith("."))


def galleries_behind(model: str) -> dict[str, str]:
    """The galleries below the home folder that hold another version of a registered model than its champion: theirs."""
    found = {}
    for name in gallery_names():
        embedder = read_embedder(folder_of(name))  # of one whose matrix is damaged, too
        if embedder.name == model and champion_instead(embedder):
            found[name] = embedder.version
    return found


def champion_instead(embedder: Embedder) -> int | None:
    """The version that is champion of an embedder's model in its place; None where there is no such."""
    if not embedder.version:
        return None
    from tasks.recordstore import aliases_of  # only now, for MLflow takes seconds

    champion = aliases_of(embedder.name).get("champion")
    return None if champion is None or str(champion) == embedder.version else champion


def open_gallery(name: str) -> Gallery:
    """The gallery of that name; raises FileNotFoundError naming those that there are."""
    folder = folder_of(name)
    if not is_there(name):
        raise FileNotFoundError(
            f"no gallery {name!r} in {folder.parent}; known: {', '.join(gallery_names()) or 'none yet'}. "
            "./convoy faces enrol makes one"
        )
    return Gallery.open(folder)
