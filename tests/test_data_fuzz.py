"""Damaged files of every kind are used, set aside or refused, each with one line; nothing else comes of them.

`benchmarks/fuzz.py` does the same with thousands of real files, in processes with limits of time and memory.
"""

from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.fuzz import GOOD, SOURCE, Case, judge
from data.decode import MAX_PIXELS, DecodeError, decode_image, decode_part
from data.formats.yolo import MAX_SETTINGS_BYTES
from data.jpeg import decode_upper
from data.measurement import measure
from tests.annotated import coco_json, listing_of, pts, voc_xml
from tests.corpus import CONVERSIONS, PACKINGS, Sound, pack
from tests.corruption import DAMAGE, corrupt, mend_checksums, set_member, split_pieces
from tests.pictures import class_tree, encode, picture, png_bomb

SEEDS = st.integers(0, 2**32)
PICTURES = {
    kind: Sound(kind, kind, convert(picture(i, 24, 20)))
    for i, (kind, convert) in enumerate(CONVERSIONS.items())
}
SMALL = class_tree("ab", 3)
ARCHIVES = {kind: Sound(kind, kind, pack(SMALL, kind), files=SMALL) for kind in PACKINGS}
BOX = {"image_id": 0, "category_id": 1, "bbox": [1, 1, 20, 9]}
ANNOTATIONS = {
    "a.xml": ("detection", voc_xml(("cat", 1, 1, 9, 9))),
    "a.json": ("detection", coco_json([{"file_name": "a.png"}], [BOX])),
    "a.txt": ("detection", b"0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.1 0.1\n"),
    "data.yaml": ("detection", b"names: [cat, dog]\ntrain: images\n"),
    "points.csv": ("landmarks", b"path,x0,y0,x1,y1\na.png,1,2,3,4\nb.png,1,2,3,\n"),
    "a.pts": ("landmarks", pts((1, 1), (2, 2))),
    "pairs.csv": ("faces", b"path_a,path_b,same\na/1.png,a/2.png,1\na/1.png,b/1.png,0\n"),
    "train_ids.txt": ("faces", b"a\nb\n"),
}


def source_of(name: str) -> Sound:
    """A small sound source with this annotation."""
    family, data = ANNOTATIONS[name]
    images = SMALL if family == "faces" else {"a.png": encode(picture(1)), "b.png": encode(picture(2))}
    yolo = {"a.txt": ANNOTATIONS["a.txt"][1], "data.yaml": ANNOTATIONS["data.yaml"][1]}
    more = yolo if name in yolo else {}
    return Sound(name, name, data, family, images | more | {name: data})


def end_of(way: str, sound: Sound, data: bytes, seed: int) -> str:
    result, detail = judge(Case(0, way, sound, data, "", Random(seed)))
    assert result in GOOD, detail
    return result


def test_what_is_not_damaged_is_used() -> None:
    for sound in PICTURES.values():
        assert end_of("image", sound, sound.data, 0) == "used"
    for sound in ARCHIVES.values():
        assert end_of("archive", sound, sound.data, 0) == "used"
    for sound in map(source_of, ANNOTATIONS):
        assert end_of("annotation", sound, sound.data, 0) == "used", sound.name


@settings(max_examples=250)
@given(st.sampled_from(sorted(PICTURES)), st.sampled_from(sorted(PICTURES)), SEEDS)
def test_a_damaged_picture_is_set_aside_or_decodes_in_every_way(kind: str, other: str, seed: int) -> None:
    data, _ = corrupt(PICTURES[kind].data, Random(seed), PICTURES[other].data)
    end_of("image", PICTURES[kind], data, seed)


@settings(max_examples=100)
@given(st.sampled_from(sorted(ARCHIVES)), SEEDS)
def test_a_damaged_archive_is_refused_or_read(kind: str, seed: int) -> None:
    data, _ = corrupt(ARCHIVES[kind].data, Random(seed), ARCHIVES["tar"].data)
    end_of("archive", ARCHIVES[kind], data, seed)


@settings(max_examples=100)
@given(st.sampled_from(["tar", "tar pax"]), SEEDS)
def test_a_tar_with_odd_members_is_refused_or_read(kind: str, seed: int) -> None:
    end_of("archive", ARCHIVES[kind], set_member(ARCHIVES[kind].data, Random(seed), b""), seed)


@pytest.mark.parametrize(("reason", "result"), [
    ("read length must be non-negative or -1", "unacceptable"),
    (f"/tmp/{SOURCE}: damaged or truncated archive (its end is missing)", "refused"),
    ("a/0.png: damaged in the archive", "refused"),
])  # fmt: skip
def test_a_refusal_must_name_what_is_refused(
    reason: str, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_case: Case) -> str:
        raise ValueError(reason)

    monkeypatch.setitem(fuzz.RUN, "archive", refuse)
    assert judge(Case(0, "archive", ARCHIVES["tar"], b"", "", Random(0)))[0] == result


@settings(max_examples=150)
@given(st.sampled_from(sorted(ANNOTATIONS)), st.sampled_from(sorted(ANNOTATIONS)), SEEDS)
def test_a_damaged_annotation_is_set_aside_refused_or_read(name: str, other: str, seed: int) -> None:
    data, _ = corrupt(ANNOTATIONS[name][1], Random(seed), ANNOTATIONS[other][1])
    end_of("annotation", source_of(name), data, seed)


@given(st.sampled_from(sorted(DAMAGE)), st.binary(max_size=600), st.binary(max_size=600), SEEDS)
@example("pieces moved", b"", b"", 0)
def test_damage_follows_from_the_seed_and_takes_any_bytes(
    name: str, data: bytes, other: bytes, seed: int
) -> None:
    assert DAMAGE[name](data, Random(seed), other) == DAMAGE[name](data, Random(seed), other)
    assert b"".join(split_pieces(data, Random(seed))) == data


def test_mended_checksums_are_those_of_the_formats() -> None:
    for sound in (PICTURES["PNG, RGB"], ARCHIVES["tar"], ARCHIVES["tar pax"]):
        assert mend_checksums(sound.data) == sound.data
    renamed = b"z" + ARCHIVES["tar"].data[1:]
    assert end_of("archive", ARCHIVES["tar"], renamed, 0) == "refused"
    assert end_of("archive", ARCHIVES["tar"], mend_checksums(renamed), 0) == "used"


def test_what_ingest_accepts_of_a_damaged_jpeg_streaming_decodes() -> None:
    sound = bytearray(encode(picture(5, 200, 160), "JPEG", quality=90))
    odd = 0
    for place in range(700, len(sound) - 40, 97):
        data = bytes(sound[:place] + bytes(6) + sound[place + 6 :])
        (reason,) = measure([data]).reason
        if not reason:
            odd += decode_upper(data, 1, 3, 160, MAX_PIXELS) is None  # a warning of libjpeg's is its error
            part = decode_part(data, (0, 0, 200, 160), 200, 3)
            assert part.shape == (160, 200, 3)
            whole = np.asarray(decode_image(data, channels=3))
            assert part.tobytes() == whole.tobytes()
            upper = decode_part(data, (0, 0, 200, 64), 200, 3)  # the rows below are not decoded
            assert upper.tobytes() == whole[:64].tobytes()
    assert odd > 0


def test_damage_below_a_part_is_seen_when_the_picture_comes_in_and_harms_no_part_above() -> None:
    sound = encode(picture(5, 200, 160), "JPEG", quality=90)
    place = len(sound) - 200
    data = sound[:place] + b"\xff\xc0\0\x04" + sound[place + 4 :]  # a second frame amid the last rows
    assert measure([data]).reason[0].startswith("damaged JPEG")
    with pytest.raises(DecodeError, match="damaged JPEG"):
        decode_part(data, (0, 0, 200, 160), 200, 3)
    upper = decode_part(data, (0, 0, 200, 64), 200, 3)
    assert upper.tobytes() == decode_part(sound, (0, 0, 200, 64), 200, 3).tobytes()


def test_odd_metadata_of_a_part_is_no_warning() -> None:
    entry = b"\x12\x01\x02\0\xff\xff\0\0\x10\0\0\0"  # the orientation as a text of 65,535 letters
    data = encode(picture(1), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4))
    assert decode_part(data, (0, 0, 9, 9), 9, 3).shape == (9, 9, 3)


def test_a_png_whose_bytes_cannot_hold_its_pixels_is_set_aside() -> None:
    (reason,) = measure([png_bomb(32, 2_000_000)]).reason
    assert "cannot hold 32×2000000 pixels" in reason
    one_colour = encode(picture(1).resize((4000, 3000)).point(lambda _: 0))  # as dense as deflate gets
    assert measure([one_colour, encode(picture(1).convert("1").resize((900, 900)))]).reason == ["", ""]


def test_names_that_grow_by_aliases_are_refused_at_once() -> None:
    lines = [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    settings = "\n".join(["a0: &a0 [x]", *lines, "train: *a59", "names: [cat]"]).encode()
    with pytest.raises(
        ValueError, match=r"data\.yaml: train must be a folder, a list file, or a list of these"
    ):
        listing_of("detection", source_of("data.yaml").files | {"data.yaml": settings})
    large = b"names: [cat]\n" + b"#" * MAX_SETTINGS_BYTES
    with pytest.raises(ValueError, match=r"data\.yaml: 1,048,589 bytes are too many"):
        listing_of("detection", source_of("data.yaml").files | {"data.yaml": large})
