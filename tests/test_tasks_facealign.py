"""From an encoded picture to a face: what a card says of it, whose weights found it, and what becomes of no face."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photographs
from torch import Tensor
from torch.nn import functional as F

from data.aligned import FaceAlignment
from data.alignment import template
from data.decode import DecodeError
from models.facelandmarks68 import FaceLandmarks68
from models.mtcnn import MTCNN, Faces
from tasks.facealign import Aligner, FaceError, choose, fixed_square, open_aligner
from tasks.faceweights import load_face_landmarks68, load_mtcnn
from tests import published
from tests.pictures import encode, picture, png

# --- weights ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mtcnn_folder(tmp_path: Path) -> Path:
    """Weights by chance, in the three files that facenet-pytorch ships."""
    torch.manual_seed(3)
    net, folder = MTCNN(), tmp_path / "weights"
    folder.mkdir()
    for name in ("pnet", "rnet", "onet"):
        torch.save(getattr(net, name).state_dict(), folder / f"{name}.pt")
    return folder


def test_a_folder_a_package_and_a_file_give_the_same_net_and_checksum(
    mtcnn_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_folder, sha256 = load_mtcnn(str(mtcnn_folder))
    save_file(of_folder.state_dict(), mtcnn_folder / "all.safetensors")
    package = mtcnn_folder.parent / "shipped_mtcnn"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('a package is not run')\n")
    for file in mtcnn_folder.glob("*.pt"):
        (package / "data" / file.name).write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(package.parent)
    for source in (str(mtcnn_folder / "all.safetensors"), "package:shipped_mtcnn"):
        net, again = load_mtcnn(source)
        assert again == sha256
        for name, value in of_folder.state_dict().items():
            assert torch.equal(net.state_dict()[name], value)


def test_weights_that_are_others_are_named(mtcnn_folder: Path, tmp_path: Path) -> None:
    (mtcnn_folder / "onet.pt").unlink()
    with pytest.raises(ValueError, match="one file each of pnet, rnet, onet"):
        load_mtcnn(str(mtcnn_folder))
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    for load in (load_mtcnn, load_face_landmarks68):
        with pytest.raises(ValueError, match="these are not the tensors of"):
            load(str(tmp_path / "w.safetensors"))
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            load(str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(ValueError, match="no such package is installed"):
        load_mtcnn("package:nobody_ships_this")


def test_half_precision_weights_are_computed_with_in_single(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in FaceLandmarks68().state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    net, _ = load_face_landmarks68(str(tmp_path / "w.safetensors"))
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32}
    assert not net.training and not any(p.requires_grad for p in net.parameters())


# --- the card --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"method": "crop"}, "needs crop_xyxy"),
        ({"method": "none", "crop_xyxy": (0, 0, 5, 5)}, "does not belong to method"),
        ({"method": "crop", "crop_xyxy": (5, 0, 5, 5)}, "must be x0 < x1"),
        ({"method": "mtcnn"}, "belong to mtcnn and landmarks68"),
        ({"method": "none", "weights": "w.pt"}, "belong to mtcnn and landmarks68"),
    ],
)
def test_an_alignment_that_cannot_be_is_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FaceAlignment.parse({"side_px": 112, **values}, "alignment")


def test_the_card_names_the_weights_and_others_are_refused(mtcnn_folder: Path) -> None:
    config = FaceAlignment(method="mtcnn", side_px=32, weights=str(mtcnn_folder))
    kept = open_aligner(config).config
    assert len(kept.weights_sha256) == 64
    assert FaceAlignment.model_validate_json(kept.model_dump_json()) == kept
    assert open_aligner(kept).config == kept
    torch.save(MTCNN().onet.state_dict(), mtcnn_folder / "onet.pt")
    with pytest.raises(ValueError, match="are not those of the model"):
        open_aligner(kept)


def test_an_aligner_travels_to_a_worker(mtcnn_folder: Path) -> None:
    aligner = open_aligner(FaceAlignment(method="mtcnn", side_px=32, weights=str(mtcnn_folder)))
    again = pickle.loads(pickle.dumps(aligner))
    assert again.config == aligner.config


# --- pictures --------------------------------------------------------------------------------------------------


def test_a_crop_is_cut_and_stretched_as_pillow_does() -> None:
    image = picture(1, 60, 50)
    aligner = open_aligner(FaceAlignment(method="crop", side_px=64, crop_xyxy=(5, 6, 45, 46)))
    wanted = np.asarray(image.crop((5, 6, 45, 46)).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(aligner.face(encode(image)).permute(1, 2, 0).numpy(), wanted)
    with pytest.raises(FaceError, match="the picture is 30×50"):
        aligner.face(png(2, 30, 50))


def test_without_a_method_a_picture_is_its_central_square() -> None:
    image = picture(1, 60, 40)
    aligner = open_aligner(FaceAlignment(method="none", side_px=40))
    wanted = np.asarray(image)[:, 10:50]
    assert np.array_equal(aligner.face(encode(image)).permute(1, 2, 0).numpy(), wanted)
    assert np.array_equal(fixed_square(image, None, 40), wanted.transpose(2, 0, 1))
    with pytest.raises(FaceError, match="takes each picture for one face"):
        aligner.faces(encode(image))


def found(*boxes: tuple[float, float, float, float]) -> Faces:
    corners = torch.tensor(boxes).view(-1, 4)
    places = template(112)[None] / 112 * (corners[:, None, 2:] - corners[:, None, :2]) + corners[:, None, :2]
    return Faces(corners, torch.ones(len(corners)), places)


def looking(faces: Faces, **values: object) -> Aligner:
    """An aligner whose detector finds these faces in any picture."""

    def find(_pixels: Tensor) -> Faces:
        return faces

    config = FaceAlignment.model_validate({"method": "mtcnn", "side_px": 20, "weights": "w", **values})
    return Aligner(config, find)


def test_a_picture_without_a_face_or_with_several_is_an_error_where_one_is_wanted() -> None:
    with pytest.raises(FaceError, match="no face was found"):
        looking(found()).face(png(1))
    two = found((0, 0, 20, 20), (22, 10, 36, 24))
    with pytest.raises(FaceError, match="2 faces were found; one is wanted"):
        looking(two, face="only").face(png(1))
    assert looking(found((0, 0, 20, 20)), face="only").face(png(1)).shape == (3, 20, 20)
    squares, faces = looking(two).faces(png(1))
    assert squares.shape == (2, 3, 20, 20) and len(faces.scores) == 2
    with pytest.raises(DecodeError):
        looking(two).face(b"no picture")


def test_of_several_faces_the_largest_or_the_central_is_taken() -> None:
    two = found((0, 0, 20, 20), (22, 10, 36, 24))
    assert choose(two, 48, 40, "largest") == 0
    assert choose(two, 48, 40, "central") == 1
    squares, _ = looking(two).faces(png(1))
    assert torch.equal(looking(two, face="central").face(png(1)), squares[1])


def test_a_face_at_the_templates_place_is_left_as_it_is() -> None:
    image = picture(5, 112, 112)
    [square] = looking(found((0, 0, 112, 112)), side_px=112).faces(encode(image))[0]
    difference = np.abs(square.permute(1, 2, 0).numpy().astype(int) - np.asarray(image))
    assert difference.max() <= 1


def test_landmarks_are_looked_for_in_the_box_and_told_in_the_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = FaceLandmarks68()
    places = torch.rand(68, 2)
    with torch.no_grad():
        net.fc.weights.zero_()
        net.fc.bias.copy_(places.flatten())  # it says the same of every picture
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    config = FaceAlignment(
        method="landmarks68", side_px=32, weights=str(tmp_path / "w.safetensors"), crop_xyxy=(10, 5, 50, 25)
    )
    _, faces = open_aligner(config).faces(png(1, 60, 40))
    nose = places[30] * torch.tensor([40.0, 20.0]) + torch.tensor([10.0, 5.0])
    torch.testing.assert_close(faces.points_xy[0, 2], nose)
    middle = config.model_copy(update={"crop_xyxy": None})
    _, faces = open_aligner(middle).faces(png(1, 60, 40))  # the central square begins at x = 10
    torch.testing.assert_close(faces.points_xy[0, 2], places[30] * 40 + torch.tensor([10.0, 0.0]))


# --- published weights on photographs ---------------------------------------------------------------------------


def published_aligner(**values: object) -> Aligner:
    return open_aligner(
        FaceAlignment.model_validate(
            {"method": "mtcnn", "side_px": 112, "weights": published.mtcnn(), **values}
        )
    )


def test_the_published_net_finds_the_astronaut() -> None:
    aligner = published_aligner(face="only")
    photo = encode(Image.fromarray(photographs.astronaut()))
    _, faces = aligner.faces(photo)
    assert len(faces.scores) == 1 and faces.scores[0] > 0.99
    # by eye, in the photograph: eyes, nose and corners of the mouth, to a few pixels
    by_eye = torch.tensor([[205.0, 101], [247, 103], [226, 128], [203, 140], [245, 142]])
    assert (faces.points_xy[0] - by_eye).norm(dim=1).max() < 5
    assert aligner.face(photo).shape == (3, 112, 112)
    coffee = encode(Image.fromarray(photographs.coffee()))
    with pytest.raises(FaceError, match="no face was found"):
        aligner.face(coffee)


def test_a_photograph_and_its_mirror_have_mirrored_points() -> None:
    """Points are edges, not the middles of pixels: they mirror at the picture's width."""
    find = published_aligner().find
    assert find is not None
    pixels = torch.from_numpy(photographs.astronaut()).permute(2, 0, 1)
    there, back = find(pixels).points_xy[0], find(pixels.flip(2).contiguous()).points_xy[0]
    back = back[[1, 0, 2, 4, 3]]
    assert (there[:, 0] + back[:, 0] - 512).abs().max() < 3
    assert (there[:, 1] - back[:, 1]).abs().max() < 3


def test_each_of_100_small_faces_is_found_and_none_in_100_other_pictures() -> None:
    """lfw_subset's 25 x 25 squares enlarged to 100, with a border, since faces fill them."""
    find = published_aligner(min_face_px=40, min_score=0.7).find
    assert find is not None
    levels = torch.from_numpy(photographs.lfw_subset()).float()[:, None] * 255
    large = F.interpolate(levels, (100, 100), mode="bicubic", antialias=True).clamp(0, 255)
    pixels = F.pad(large, (20,) * 4, mode="replicate").to(torch.uint8).expand(-1, 3, -1, -1)
    num = [len(find(each.contiguous()).scores) for each in pixels]
    assert all(num[:100]) and not any(num[100:])


@pytest.mark.data
def test_all_of_sixty_central_faces_of_lfw_are_found(datasets_folder: Path) -> None:
    aligner = published_aligner(face="central")
    means: list[Tensor] = []
    with tarfile.open(datasets_folder / "lfw_deepfunneled_c128.tar.xz") as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if not member.name.endswith(".jpg") or stream is None:
                continue
            data = stream.read()
            aligner.face(data)  # raises where there is none
            _, faces = aligner.faces(data)
            means.append(faces.points_xy[choose(faces, 128, 128, "central")].mean(0))
            if len(means) == 60:
                break
    assert len(means) == 60
    # deep-funnelled faces stand where the others stand
    assert (torch.stack(means) - torch.stack(means).mean(0)).norm(dim=1).median() < 5
