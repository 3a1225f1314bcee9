"""People into a gallery: the first makes it and binds it to a model, all later ones come by the same.

    reader = bind("default", "models:/faces-people@champion", None)
    enrol_files("default", reader, "ann", [Path("ann.jpg")])
    enrol_tree("default", reader, tree, progress)      # a folder for each person

A gallery is named as tasks/gallerynames.py says.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.aligned import FaceAlignment
from data.archive import FileTree
from data.formats.listing import ignore_reason, is_image_name
from tasks import registry
from tasks.embedders import address, alignment_of, describe, same_faces, uri_of
from tasks.facereading import Face, FaceReader, open_reader, read_photos, reader_of
from tasks.gallery import Gallery, Picture
from tasks.gallerynames import folder_of, is_there, open_gallery
from tasks.gallerystore import Embedder, Enrolled
from tasks.modelstore import find_champions
from tasks.recordstore import connect

FACES_AT_ONCE = 64  # embedded together, and on the disk together


@dataclass(frozen=True)
class EnrolledTree:
    """Who was enrolled, and why pictures were left out."""

    people: list[Enrolled]
    left_out: dict[str, str]  # picture -> reason


def bind(name: str, model: str | None, alignment: FaceAlignment | None) -> FaceReader:
    """What reads faces for a gallery: as it has been since its first picture; else by `model`, as a new one will.

    `model` None: a new one will by `only_champion`. Raises ValueError for a model or an alignment other than those that
    the gallery is bound to.
    """
    if not is_there(name):
        return open_reader(model or only_champion(), alignment)
    with open_gallery(name) as gallery:
        embedder = gallery.embedder
    if model is not None:
        require_model(name, embedder, model)
    have = alignment_of(embedder)
    if alignment is not None and not same_faces(alignment, have):
        raise ValueError(
            f"gallery {name!r} has its faces cut out as {describe(have)}, and the alignment given is "
            f"{describe(alignment)}: enrol in a new gallery"
        )
    return reader_of(embedder)


def only_champion() -> str:
    """The address of the one registered embedder of faces that has a champion; ValueError for none and for several."""
    found = find_champions(connect(), "faces")
    if len(found) > 1:
        raise ValueError(
            f"a new gallery needs one of several embedders: give --model, one of {', '.join(found)}"
        )
    if not found:
        raise ValueError(
            "a new gallery needs an embedder, and no registered model of faces has a champion: train one "
            "(./convoy train faces --dataset NAME), or give --model"
        )
    return found[0]


def require_model(name: str, embedder: Embedder, model: str) -> None:
    """Raise ValueError for a model that is not the one whose vectors a gallery has."""
    found = registry.pin(model)
    if found != (embedder.name, embedder.version):
        meant = "" if model == address(*found) else f" ({address(*found)})"
        raise ValueError(
            f"gallery {name!r} has vectors of {uri_of(embedder)}; those of {model}{meant} do not compare with them. "
            "Leave --model out, or re-embed the gallery: "
            f"./convoy faces gallery re-embed --gallery {name} --model {model}"
        )


def enrol_files(name: str, reader: FaceReader, person: str, files: Sequence[Path]) -> Enrolled:
    """Add a person's pictures, each of one face: all, or none where one is refused with a ValueError of one line."""
    photos = [(str(file), file.read_bytes()) for file in files]
    faces, left_out = read_photos(photos, reader.only_face)
    if left_out:
        file, reason = next(iter(left_out.items()))
        others = f"; {len(left_out)} of {len(files)} pictures cannot be enrolled" if len(left_out) > 1 else ""
        raise ValueError(f"{file}: {reason}{others}")
    [enrolled] = _put(name, reader, {person: [face for _, face in faces]})
    return enrolled


def enrol_tree(
    name: str, reader: FaceReader, tree: FileTree, progress: Callable[[int, int], None]
) -> EnrolledTree:
    """Add everybody of a tree with a folder for each person; pictures without one face are left out.

    `progress` hears (pictures done, all pictures). Raises ValueError for a tree without people or with two folders of
    one name, and for what the gallery refuses; people before that are enrolled by then, and are not added twice.
    """
    people = people_of(tree)
    total, done = sum(map(len, people.values())), 0
    result = EnrolledTree([], {})
    waiting: dict[str, list[Face]] = {}
    for number, (person, pictures) in enumerate(people.items(), 1):
        photos = [(picture, tree.read(picture)) for picture in pictures]
        faces, left_out = read_photos(photos, reader.only_face)
        result.left_out.update(left_out)
        if faces:
            waiting[person] = [face for _, face in faces]
        if number == len(people) or sum(map(len, waiting.values())) >= FACES_AT_ONCE:
            result.people.extend(_put(name, reader, waiting))
            waiting = {}
        done += len(pictures)
        progress(done, total)
    if not result.people:
        reason = next(iter(result.left_out.values()))
        raise ValueError(f"{tree.name}: nobody can be enrolled, of {len(people)} people; the first: {reason}")
    return result


def people_of(tree: FileTree) -> dict[str, list[str]]:
    """The pictures of each person, who is called like the folder that they lie in.

    Raises ValueError for two such folders of one name: they may be two people's, whose faces must not be mixed.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for name in sorted(tree.sizes):
        if is_image_name(name) and not ignore_reason(name):
            folders[name.rpartition("/")[0]].append(name)
    if "" in folders:
        raise ValueError(
            f"{tree.name}: {folders[''][0]} lies in no person's folder; --from takes one for each person"
        )
    if not folders:
        raise ValueError(f"{tree.name} has no pictures; --from takes a folder with one for each person")
    called: dict[str, str] = {}  # person -> folder
    for folder in folders:
        other = called.setdefault(folder.rpartition("/")[2], folder)
        if other != folder:
            raise ValueError(
                f"{tree.name}: the folders {other} and {folder} have one name, and a person is called like the folder "
                "that the pictures lie in: put them into one folder if they are one person's, else rename one"
            )
    return {person: folders[folder] for person, folder in called.items()}


def _put(name: str, reader: FaceReader, people: dict[str, list[Face]]) -> list[Enrolled]:
    """Embed faces and enrol them; the gallery is made where there is none yet."""
    if not people:
        return []
    vectors = iter(reader.embed([face for faces in people.values() for face in faces]))
    pictures = [
        (person, [Picture(face.encoded, next(vectors)) for face in faces]) for person, faces in people.items()
    ]
    folder = folder_of(name)
    with Gallery.open(folder) if is_there(name) else Gallery.create(folder, reader.embedder) as gallery:
        return gallery.enrol_people(pictures, reader.embedder)
