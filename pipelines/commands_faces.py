"""`./convoy faces`: people enrolled by their pictures, verified and recognised on others."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pipelines.options import Json
from tasks.paths import DEFAULT_GALLERY

app = App(name="faces", help="Enrol people by pictures of their faces, verify and recognise them.")
app.command(
    "pipelines.commands_gallery:app", name="gallery", help="List, show, search and remove enrolled people."
)


@app.command
def enrol(
    name: str | None = None,
    /,
    *images: Path,
    source: Annotated[Path | None, Parameter(name="--from")] = None,
    gallery: str = DEFAULT_GALLERY,
    model: str | None = None,
    alignment: Path | None = None,
    as_json: Json = False,
) -> int:
    """Add pictures of a person to a gallery, or a folder of people; the first makes the gallery.

    Example: ./convoy faces enrol ann ann1.jpg ann2.jpg

    One picture is enough, more sharpen it; nothing is trained. Of a folder, pictures without exactly one face are
    listed and left out, and the exit code is then 1.

    Parameters
    ----------
    name
        Who is on the pictures.
    images
        Pictures of that person, one face on each: files, and folders that are searched for them.
    source
        Instead: a folder or an archive with a folder for each person, called like the person; two of one name are
        refused.
    gallery
        Name of the gallery, or a folder's path with a slash in it.
    model
        The embedder of a new gallery: models:/NAME@ALIAS, a run key, or a folder; otherwise the champion of
        the only registered model of faces that has one.
    alignment
        For a new gallery whose model does not know how its faces were cut out: an alignment.json, as ./convoy align
        writes it. Without one, each picture is taken for a face as it is.
    """
    if (source is None) == (name is None) or (name is not None and not images):
        raise ValueError("give a name and pictures (enrol ann ann1.jpg), or --from a folder of people")
    from pipelines import faceenrolment  # only now, for torch takes seconds

    return faceenrolment.enrol(name, images, source, gallery, model, alignment, as_json)


@app.command
def verify(
    image: Path,
    /,
    *,
    name: str,
    gallery: str = DEFAULT_GALLERY,
    false_accept_rate: float | None = None,
    liveness: str | None = None,
    as_json: Json = False,
) -> None:
    """Say whether a picture is of the person that it is said to be of.

    Example: ./convoy faces verify door.jpg --name ann

    Parameters
    ----------
    image
        A picture with one face.
    name
        Who it is said to be.
    gallery
        Name of the gallery, or a folder's path with a slash in it.
    false_accept_rate
        Which of the model's thresholds counts: each was fitted to accept this share of pairs of two people; otherwise
        the strictest that at least 30 false accepts tell, as the model's card has it.
    liveness
        A classifier of real faces and attacks, given as a model is: a picture that it judges a spoof is an error. The
        threshold is that of its card.
    """
    from pipelines import facelookup

    facelookup.verify(image, name, gallery, false_accept_rate, liveness, as_json)


@app.command
def recognise(
    *images: Path,
    together: Annotated[bool, Parameter(negative=())] = False,
    gallery: str = DEFAULT_GALLERY,
    false_accept_rate: float | None = None,
    liveness: str | None = None,
    as_json: Json = False,
) -> int:
    """Say who is on pictures: people of a gallery, or that they are nobody in it.

    Example: ./convoy faces recognise door/

    Where the gallery's alignment finds faces, each face of a picture is looked up. A file without a face, one that
    is missing or no picture, and an empty folder are reported, and the others are recognised; the exit code is then 1.

    Parameters
    ----------
    images
        Pictures, and folders that are searched for them.
    together
        The pictures are of one person, who is looked up once, by the mean of what the pictures give.
    gallery
        Name of the gallery, or a folder's path with a slash in it.
    false_accept_rate
        Which of the model's thresholds counts, as for verify: the share is of one comparison, and a stranger is
        compared with everybody in the gallery.
    liveness
        A classifier of real faces and attacks, as for verify: a picture that it judges a spoof is reported as one, and
        nobody is looked up.
    """
    if not images:
        raise ValueError("recognise needs pictures: give files or folders")
    from pipelines import facelookup

    return facelookup.recognise(images, together, gallery, false_accept_rate, liveness, as_json)
