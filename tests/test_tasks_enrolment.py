"""Photographs into a gallery: bound to one model and one alignment, whole or not at all, and re-embedded on Ray."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs
from torch import Tensor

from data import aligned
from data.aligned import FaceAlignment
from data.archive import memory_tree
from data.dataset import Dataset
from data.decode import read_size
from data.ingest import ingest
from data.syntheticfaces import synthetic_faces
from models.mtcnn import Faces
from tasks import cluster, embedshards, facereading
from tasks.embedders import describe, same_faces
from tasks.enrolment import (
    bind,
    enrol_files,
    enrol_tree,
    people_of,
)
from tasks.facealign import Aligner, FaceError, open_aligner
from tasks.facereading import FaceReader, open_reader, reader_of, successor_of
from tasks.faces import far_of
from tasks.families import FAMILIES
from tasks.gallery import Gallery
from tasks.gallerynames import galleries_behind, gallery_names, open_gallery
from tasks.modelfile import load_model
from tasks.paths import ROOT
from tasks.reembedding import here, re_embed
from tasks.verification import NOTHING
from tests import published
from tests.facegalleries import write_embedder
from tests.pictures import encode
from tests.tiny import ingest_config, tiny_config

CROP = FaceAlignment(method="crop", side_px=40, crop_xyxy=(8, 8, 56, 56))
PEOPLE = {name: data for name, data in synthetic_faces(6, 4).items() if name.endswith(".jpg")}


def quiet(_done: int, _total: int) -> None:
    pass


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_embedder(tmp_path / "model"))


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[int], list[Path]]:
    """The files of a person."""

    def write(person: int) -> list[Path]:
        files = []
        for name, data in PEOPLE.items():
            if name.startswith(f"person_{person:03d}/"):
                file = tmp_path / "photos" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
                files.append(file)
        return files

    return write


def test_the_first_picture_makes_the_gallery_and_binds_it(
    model: str, photos: Callable[[int], list[Path]], home: Path
) -> None:
    reader = bind("staff", model, None)
    assert not (home / "galleries").exists()  # nothing before there is a face
    enrolled = enrol_files("staff", reader, "ann", photos(0)[:2])
    assert (enrolled.num_added, enrolled.num_pictures) == (2, 2)
    with Gallery.open(home / "galleries" / "staff") as gallery:
        assert gallery.embedder == reader.embedder and gallery.check() == 1
        assert [each.encoded for each in gallery.pictures("ann")] == [f.read_bytes() for f in photos(0)[:2]]
        again = bind("staff", None, None)
        assert again.embedder == reader.embedder
        [[hit]] = gallery.search(again.embed([again.face(photos(0)[0].read_bytes())]), 1, again.embedder)
        assert hit.name == "ann"


def test_who_is_enrolled_is_listed_and_removed_without_torch_and_mlflow(
    model: str, photos: Callable[[int], list[Path]]
) -> None:
    enrol_files("staff", bind("staff", model, None), "ann", photos(0)[:2])
    for words in (("list",), ("show", "ann"), ("remove", "ann", "--yes")):
        arguments = ["faces", "gallery", *words, "--gallery", "staff"]
        code = f"import sys; from pipelines.commands import main; rc = main({arguments!r}); " + (
            "print(*sys.modules, file=sys.stderr); sys.exit(rc)"
        )
        child = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "ann" in child.stdout
        assert not set(child.stderr.split()) & {"torch", "mlflow", "ray", "prefect", "dvc"}, words


def test_another_model_is_refused_by_one_line_that_says_to_re_embed(
    model: str, tmp_path: Path, photos: Callable[[int], list[Path]]
) -> None:
    enrol_files("staff", bind("staff", model, None), "ann", photos(0))
    other = str(write_embedder(tmp_path / "other", seed=1))
    with pytest.raises(
        ValueError, match=r"do not compare with them. .*faces gallery re-embed --gallery staff --model"
    ) as caught:
        bind("staff", other, None)
    assert "\n" not in str(caught.value)
    assert bind("staff", model, None).embedder == bind("staff", None, None).embedder
    write_embedder(tmp_path / "model", seed=2)  # trained again in its place
    with pytest.raises(ValueError, match="bring the former back, or re-embed"):
        bind("staff", None, None)


def test_a_model_without_a_face_or_a_threshold_is_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(FileNotFoundError, match="no model"):
        open_reader(str(tmp_path / "nothing"), None)
    reader = open_reader(model, None)
    assert reader.threshold(None) == facereading.Threshold(0.1, 1e-2)  # 1e-3 could not be fitted
    assert reader.threshold(0.1).distance == 0.4
    with pytest.raises(ValueError, match=r"false-accept rate \(=0.001\) .* it has: 0.01, 0.1"):
        reader.threshold(1e-3)
    none = open_reader(str(write_embedder(tmp_path / "none", thresholds={"accuracy": 0.3})), None)
    with pytest.raises(ValueError, match="the model has no threshold"):
        none.threshold(None)


@pytest.mark.parametrize(
    ("few", "chosen"),
    [
        ((), "far_1e-3"),  # of a card that says nothing, too
        (("far_1e-3",), "far_1e-2"),
        (("far_1e-2", "far_1e-3"), "far_1e-1"),
        (("far_1e-1", "far_1e-2", "far_1e-3"), "far_1e-1"),
    ],
)
def test_the_threshold_is_the_strictest_that_enough_false_accepts_tell_else_the_loosest(
    tmp_path: Path, few: tuple[str, ...], chosen: str
) -> None:
    thresholds = {"accuracy": 0.5, "far_1e-1": 0.4, "far_1e-2": 0.2, "far_1e-3": 0.1, "far_1e-4": NOTHING}
    folder = write_embedder(tmp_path / "model", thresholds=thresholds, told_by_few=few)
    reader = open_reader(str(folder), None)
    limit = reader.threshold(None)
    assert (limit.distance, limit.false_accept_rate) == (thresholds[chosen], far_of(chosen))
    for name in ("far_1e-1", "far_1e-2", "far_1e-3"):
        assert reader.threshold(far_of(name)).told_by_few == (name in few)


def test_what_is_refused_is_told_the_strictest_looser_threshold_that_accepts_it(tmp_path: Path) -> None:
    thresholds = {"accuracy": 0.5, "far_1e-1": 0.4, "far_1e-2": 0.2, "far_1e-3": 0.1}
    reader = open_reader(str(write_embedder(tmp_path / "model", thresholds=thresholds)), None)
    limit = reader.threshold(1e-3)
    found = [reader.looser(limit, distance) for distance in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)]
    assert [each and each.false_accept_rate for each in found] == [None, None, 0.01, 0.01, 0.1, None]
    assert reader.looser(reader.threshold(0.1), 0.45) is None


def test_an_alignment_travels_from_the_faces_to_the_card(tmp_path: Path) -> None:
    source = tmp_path / "faces"
    for name, data in synthetic_faces(12, 3).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    ingest(source, name="plain", family="faces", store=tmp_path, config=ingest_config())
    (source / aligned.FILE).write_text(CROP.model_dump_json())
    ingest(source, name="cropped", family="faces", store=tmp_path, config=ingest_config())
    plain, cropped = (Dataset.open(tmp_path / name).info for name in ("plain", "cropped"))
    assert (plain.alignment, cropped.alignment) == (None, CROP)
    card = FAMILIES["faces"].card(tiny_config("faces"), cropped, "", "run")
    assert card.alignment == CROP and type(card).model_validate_json(card.model_dump_json()) == card
    (source / aligned.FILE).write_text('{"method": "guess"}')
    with pytest.raises(ValueError, match=r"alignment.json.method \(='guess'\)"):
        ingest(source, name="bad", family="faces", store=tmp_path, config=ingest_config())
    assert not (tmp_path / "bad").exists()


def test_photographs_are_cut_out_as_the_card_says(
    tmp_path: Path, photos: Callable[[int], list[Path]]
) -> None:
    """Enrolled photographs have the vectors of faces that `align` would have written."""
    model = str(write_embedder(tmp_path / "model", alignment=CROP))
    plain = open_reader(str(write_embedder(tmp_path / "plain")), None)
    reader = bind("staff", model, None)
    photo = photos(0)[0].read_bytes()
    assert reader.aligner is not None
    square = facereading.encode_png(reader.aligner.face(photo))
    assert reader.face(photo).encoded == square
    enrol_files("staff", reader, "ann", photos(0)[:1])
    with open_gallery("staff") as gallery:
        [stored] = gallery.pictures("ann")
        np.testing.assert_array_equal(stored.vector, plain.embed([plain.face(square)])[0])
        assert json.loads(stored.embedder.preprocessing)["crop_xyxy"] == [8, 8, 56, 56]
    other = CROP.model_copy(update={"side_px": 48})
    with pytest.raises(
        ValueError, match=r"the model was trained on faces cut out as crop of .* leave it out"
    ):
        open_reader(model, other)
    with pytest.raises(
        ValueError, match=r"gallery 'staff' has its faces cut out as crop .*: enrol in a new gallery"
    ):
        bind("staff", None, other)
    assert bind("staff", None, CROP).embedder == reader.embedder


def test_an_alignment_can_be_said_where_the_card_has_none(
    model: str, photos: Callable[[int], list[Path]], tmp_path: Path
) -> None:
    enrol_files("staff", bind("staff", model, CROP), "ann", photos(0)[:1])
    reader = bind("staff", None, None)
    assert reader.aligner is not None and reader.aligner.config == CROP
    with open_gallery("staff") as gallery:
        embedder = gallery.embedder
    newer = str(write_embedder(tmp_path / "newer", seed=1))
    assert successor_of(embedder, newer).aligner == reader.aligner
    wants = str(write_embedder(tmp_path / "wants", alignment=CROP.model_copy(update={"side_px": 64})))
    with pytest.raises(ValueError, match="photographs are not kept, so enrol them in a new gallery"):
        successor_of(embedder, wants)


def test_alignments_are_the_same_wherever_their_weights_lie() -> None:
    one = FaceAlignment(method="mtcnn", side_px=112, weights="a", weights_sha256="ab")
    assert same_faces(one, one.model_copy(update={"weights": "b", "face": "only"}))
    assert same_faces(one, one.model_copy(update={"weights_sha256": ""}))
    for change in ({"weights_sha256": "cd"}, {"side_px": 96}, {"template": "dlib"}, {"min_score": 0.5}):
        assert not same_faces(one, one.model_copy(update=change))
    assert not same_faces(one, None)
    assert describe(one) == "mtcnn (ab), arcface, margin 0, 112 px" and describe(None) == "pictures as given"


def found(num: int) -> Callable[[Tensor], Faces]:
    """A detector that sees so many faces, wherever it looks: whole pictures, upright."""
    points = torch.tensor([[20.0, 25.0], [44.0, 25.0], [32.0, 36.0], [23.0, 48.0], [41.0, 48.0]])
    return lambda pixels: Faces(
        torch.tensor([[0.0, 0.0, 64.0, 64.0]]).expand(num, 4), torch.ones(num), points.expand(num, 5, 2)
    )


def finding(reader: FaceReader, num: int) -> FaceReader:
    config = FaceAlignment(method="mtcnn", side_px=32, weights="w", weights_sha256="ab")
    return dataclasses.replace(reader, aligner=Aligner(config, found(num)))


def test_a_photograph_without_a_face_or_with_two_is_one_line(
    model: str, photos: Callable[[int], list[Path]], home: Path, tmp_path: Path
) -> None:
    reader = open_reader(model, None)
    photo = photos(0)[0]
    for num, says in ((0, "no face was found"), (2, "2 faces were found, and one is wanted; cut it out")):
        with pytest.raises(FaceError, match=says):
            finding(reader, num).face(photo.read_bytes())
        with pytest.raises(ValueError, match=f"{photo.name}: {says}.*2 of 2 pictures cannot be enrolled"):
            enrol_files("staff", finding(reader, num), "ann", photos(0)[:2])
    assert len(finding(reader, 2).faces(photo.read_bytes())) == 2
    (tmp_path / "junk.jpg").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk.jpg: .*not an image"):
        enrol_files("staff", reader, "ann", [photo, tmp_path / "junk.jpg"])
    assert not (home / "galleries").exists()


def test_a_tree_of_people_is_enrolled_and_what_has_no_face_is_said(model: str) -> None:
    files = {f"top/{name}": data for name, data in PEOPLE.items()}
    tree = memory_tree(
        "people", files | {"top/person_001/bad.jpg": b"junk", "top/eve/1.png": b"", "README.md": b""}
    )
    seen: list[tuple[int, int]] = []
    added = enrol_tree("staff", bind("staff", model, None), tree, lambda *at: seen.append(at))
    assert {each.name: each.num_pictures for each in added.people} == {f"person_{i:03d}": 4 for i in range(6)}
    assert set(added.left_out) == {"top/person_001/bad.jpg", "top/eve/1.png"} and seen[-1] == (26, 26)
    again = enrol_tree("staff", bind("staff", model, None), tree, quiet)
    assert [each.num_added for each in again.people] == [0] * 6
    with open_gallery("staff") as gallery:
        assert gallery.check() == 6


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"1.jpg": b"", "ann/1.jpg": b""}, "1.jpg lies in no person's folder"),
        ({"ann/notes.txt": b""}, "has no pictures"),
    ],
)
def test_a_tree_of_nobody_is_refused(files: dict[str, bytes], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        people_of(memory_tree("people", files))


def test_people_are_called_like_the_folder_that_their_pictures_lie_in() -> None:
    files = {
        "b/bob/1.jpg": b"",
        "a/ann/2.jpg": b"",
        "a/ann/1.jpg": b"",
        "a/notes.txt": b"",
        "b/ann/notes.txt": b"",
    }
    found = people_of(memory_tree("people", files))
    assert found == {"ann": ["a/ann/1.jpg", "a/ann/2.jpg"], "bob": ["b/bob/1.jpg"]}


@pytest.mark.parametrize(
    ("files", "first", "second"),
    [
        (["sales/ann/1.jpg", "staff/ann/1.jpg", "staff/bob/1.jpg"], "sales/ann", "staff/ann"),
        (["ann/1.jpg", "staff/ann/1.jpg"], "ann", "staff/ann"),
        # a folder too deep: the person would be called "indoor"
        (["ann/indoor/1.jpg", "ann/outdoor/1.jpg", "bob/indoor/1.jpg"], "ann/indoor", "bob/indoor"),
    ],
)
def test_two_people_of_one_name_are_not_taken_for_one(
    model: str, home: Path, files: list[str], first: str, second: str
) -> None:
    photo = next(iter(PEOPLE.values()))
    with pytest.raises(ValueError, match=f"people: the folders {first} and {second} have one name") as caught:
        enrol_tree(
            "staff", bind("staff", model, None), memory_tree("people", dict.fromkeys(files, photo)), quiet
        )
    assert "\n" not in str(caught.value)
    assert not (home / "galleries").exists()  # nobody is enrolled before it is seen


def test_a_gallery_that_is_not_there_is_named_with_those_that_are(
    model: str, photos: Callable[[int], list[Path]]
) -> None:
    with pytest.raises(FileNotFoundError, match="known: none yet"):
        open_gallery("staff")
    enrol_files("staff", bind("staff", model, None), "ann", photos(0)[:1])
    with pytest.raises(FileNotFoundError, match=r"no gallery 'stuff' .*; known: staff. ./convoy faces enrol"):
        open_gallery("stuff")
    with pytest.raises(ValueError, match="must be a name"):
        open_gallery("..")


def test_a_gallery_that_was_being_made_is_none_and_a_damaged_one_still_says_whose_vectors_it_has(
    model: str, photos: Callable[[int], list[Path]], home: Path
) -> None:
    enrol_files("staff", bind("staff", model, None), "ann", photos(0)[:1])
    shutil.copytree(home / "galleries" / "staff", home / "galleries" / ".door.partial-x")
    assert gallery_names() == ["staff"]
    next((home / "galleries" / "staff").glob("*.coarse")).unlink()
    with pytest.raises(ValueError, match="missing or cut short"):
        open_gallery("staff")
    assert galleries_behind("faces") == {}  # the embedder is a folder's, and nothing is an error


def test_re_embedding_on_ray_equals_that_in_this_process(model: str, tmp_path: Path) -> None:
    tree = memory_tree("people", PEOPLE)
    newer = str(write_embedder(tmp_path / "newer", seed=1, dim=24))
    vectors = {}
    for name in ("here", "ray"):
        enrol_tree(name, bind(name, model, None), tree, quiet)
        with open_gallery(name) as gallery:
            reader = successor_of(gallery.embedder, newer)
            saved = load_model(Path(newer))
            if name == "ray":
                cluster.connect()
            spread = (
                embedshards.on_ray(saved)
                if name == "ray"
                else here(
                    lambda faces, saved=saved: embedshards.embed_batch(saved, faces)  # type: ignore[misc]
                )
            )
            assert re_embed(gallery.folder, reader.embedder, spread, batch_size=5) == len(PEOPLE)
            assert gallery.embedder == reader.embedder and gallery.check() == 6
            vectors[name] = [
                each.vector for person in gallery.people() for each in gallery.pictures(person.name)
            ]
    assert len(vectors["ray"]) == len(PEOPLE)
    np.testing.assert_array_equal(np.stack(vectors["ray"]), np.stack(vectors["here"]))
    assert bind("ray", newer, None).embedder.num_dims == 24


def test_of_a_real_photograph_the_face_that_mtcnn_finds_is_enrolled(tmp_path: Path) -> None:
    """By published weights: a face is found again on a smaller photograph, none on a cup, two where there are two."""
    alignment = FaceAlignment(method="mtcnn", side_px=64, weights=published.mtcnn(), margin=0.2)
    card_says = open_aligner(alignment).config
    model = str(write_embedder(tmp_path / "model", alignment=card_says))
    astronaut = photographs.astronaut()
    pictures = {
        "one": astronaut,
        "smaller": np.asarray(Image.fromarray(astronaut).resize((400, 400))),
        "two": np.concatenate([astronaut, astronaut[:, ::-1]], axis=1),
        "cup": photographs.coffee(),
    }
    for name, pixels in pictures.items():
        (tmp_path / f"{name}.png").write_bytes(encode(Image.fromarray(np.ascontiguousarray(pixels))))
    reader = bind("space", model, None)
    enrol_files("space", reader, "eileen", [tmp_path / "one.png"])
    with open_gallery("space") as gallery:
        again = reader_of(gallery.embedder)
        [face] = again.faces((tmp_path / "smaller.png").read_bytes())
        assert face.box_xyxy is not None and face.box_xyxy[2] - face.box_xyxy[0] > 50
        assert gallery.verify("eileen", again.embed([face])[0], 0.1, again.embedder).same
        [stored] = gallery.pictures("eileen")
        assert read_size(stored.encoded) == (64, 64)
    assert len(reader.faces((tmp_path / "two.png").read_bytes())) == 2
    for name, says in (("two", "2 faces were found, and one is wanted"), ("cup", "no face was found")):
        with pytest.raises(ValueError, match=f"{name}.png: {says}"):
            enrol_files("space", reader, "bob", [tmp_path / f"{name}.png"])
