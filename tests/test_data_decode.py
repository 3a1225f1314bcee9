"""Any bytes give an upright picture of the wanted kind, or a DecodeError of one line."""

import io
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from data import decode
from data.decode import (
    FORMATS,
    DecodeError,
    decode_image,
    decode_many,
    inspect_image,
    quiet_pillow,
    sniff_format,
)
from data.squares import to_square
from tests.pictures import encode, picture, png, png_bomb

TARGET = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "GIF": "GIF",
    "BMP": "BMP",
    "WEBP": "WEBP",
    "TIFF": "TIFF",
    "PPM": "PPM",
}


def with_orientation(image: Image.Image, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(image, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_every_supported_format_decodes_to_the_picture_that_was_saved(kind: str) -> None:
    source = picture(1)
    data = encode(source, TARGET[kind], **({"lossless": True} if kind == "WEBP" else {}))
    assert sniff_format(data) == kind == inspect_image(data).format
    decoded = np.asarray(decode_image(data, channels=3), np.int16)
    tolerance = {"JPEG": 25, "GIF": 60}.get(kind, 0)  # mean error: quantisation, 256 colours
    assert np.abs(decoded - np.asarray(source)).mean() <= tolerance
    assert np.asarray(decode_image(data, channels=1)).shape == (40, 48)


def test_lossless_pixels_come_through_untouched() -> None:
    source = picture(2, 32, 32)
    squares = decode_many([encode(source)], 32, 3, "crop")
    assert np.array_equal(squares[0].transpose(1, 2, 0), np.asarray(source))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = picture(3, 48, 32)
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    turns |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}  # each is undone by its orientation
    data = with_orientation(upright.transpose(Image.Transpose[turns[orientation]]), orientation, kind)
    decoded = decode_image(data, channels=3)
    assert decoded.size == upright.size
    error = np.abs(np.asarray(decoded, np.int16) - np.asarray(upright)).mean()
    assert error < 12  # of lossy formats; turned wrongly it is above 30
    assert inspect_image(data).rotated


def test_damaged_exif_leaves_the_picture_upright() -> None:
    data = encode(picture(4), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode_image(data, channels=3).size == (48, 40)


def test_transparent_pixels_are_laid_on_white() -> None:
    for mode in ("RGBA", "LA"):
        image = picture(5).convert(mode)
        image.putalpha(Image.new("L", image.size, 0))
        assert np.asarray(decode_image(encode(image), channels=3)).min() == 255
        assert np.asarray(decode_image(encode(image), channels=1)).min() == 255
        assert inspect_image(encode(image)).alpha
    palette = picture(5).quantize(8)
    data = encode(palette, "PNG", transparency=bytes(8))
    assert np.asarray(decode_image(data, channels=3)).min() == 255
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert abs(int(np.asarray(decode_image(encode(half), channels=1))[0, 0]) - 127) <= 1


def test_16_bit_samples_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        data = encode(Image.fromarray(ramp), kind)
        decoded = np.asarray(decode_image(data, channels=1)).ravel()
        assert np.array_equal(decoded, np.arange(256)), kind
        assert inspect_image(data).deep
    pgm = b"P5 16 16 65535\n" + ramp.astype(">u2").tobytes()
    assert np.array_equal(np.asarray(decode_image(pgm, channels=1)).ravel(), np.arange(256))


def test_samples_without_a_range_are_refused() -> None:
    for dtype in (np.float32, np.int32):
        data = encode(Image.fromarray(np.ones((4, 4), dtype)), "TIFF")
        with pytest.raises(DecodeError, match="8 or 16 bits"):
            decode_image(data, channels=3)


def test_cmyk_one_bit_palette_and_grey_alpha_decode() -> None:
    source = picture(6)
    assert inspect_image(encode(source.convert("CMYK"), "JPEG")).cmyk
    for data in (
        encode(source.convert("CMYK"), "JPEG", quality=95),
        encode(source.quantize(256)),
        encode(source.convert("P"), "GIF"),
    ):
        decoded = np.asarray(decode_image(data, channels=3), np.int16)
        assert np.abs(decoded - np.asarray(source)).mean() < 30
    assert set(np.unique(np.asarray(decode_image(encode(source.convert("1")), channels=1)))) == {0, 255}
    assert inspect_image(encode(source.convert("LA"))).grey


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [picture(seed).convert("P") for seed in (7, 8)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    alone = encode(frames[0], "GIF")
    assert inspect_image(data).animated
    assert not inspect_image(alone).animated
    assert decode_image(data, channels=3).tobytes() == decode_image(alone, channels=3).tobytes()


def test_draft_keeps_the_shorter_side() -> None:
    data = encode(picture(9, 640, 480), "JPEG")
    for draft_px, expected in ((480, 480), (240, 240), (239, 240), (100, 120), (60, 60), (10, 60)):
        assert min(decode_image(data, channels=3, draft_px=draft_px).size) == expected


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    side=st.integers(1, 40),
    resize=st.sampled_from(["crop", "squash"]),
    mode=st.sampled_from(["L", "RGB"]),
)
@settings(max_examples=60, deadline=None)
def test_to_square_gives_the_square_asked_for(
    width: int, height: int, side: int, resize: str, mode: str
) -> None:
    square = to_square(picture(0, width, height, mode), side, resize)  # type: ignore[arg-type]
    assert square.shape == ({"L": 1, "RGB": 3}[mode], side, side)
    assert square.dtype == np.uint8
    assert square.flags.c_contiguous


def test_crop_keeps_the_centre_and_squash_the_whole() -> None:
    wide = Image.new("L", (60, 20), 0)
    wide.paste(255, (20, 0, 40, 20))  # white in the middle third
    assert to_square(wide, 20, "crop").min() == 255
    assert 0.3 < to_square(wide, 20, "squash").mean() / 255 < 0.37
    assert to_square(wide, 10, "crop")[0, :, 1:-1].min() == 255


def test_decode_many_equals_one_by_one_and_names_a_bad_one() -> None:
    blobs = [encode(picture(seed, 80 + seed, 90), "JPEG") for seed in range(5)]
    many = decode_many(blobs, 24, 1, "crop")
    for blob, square in zip(blobs, many, strict=True):
        assert np.array_equal(square, to_square(decode_image(blob, channels=1, draft_px=24), 24, "crop"))
    with pytest.raises(DecodeError, match="image 5 of 6: empty file"):
        decode_many([*blobs, b""], 24, 1, "crop")
    assert decode_many([], 24, 3, "crop").shape == (0, 3, 24, 24)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "not an image"),
        (b"<html>", "not an image"),
        (b"%PDF-1.7", "unsupported format PDF"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "unsupported format HEIC"),
        (b"\x89PNG\r\n\x1a\n", "damaged PNG"),
        (b"\xff\xd8\xff", "damaged JPEG"),
        (png_bomb(20_000, 20_000), "decompression bomb: 20000×20000"),
    ],
)
def test_what_is_no_image_gets_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason) as error:
        decode_image(data, channels=3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF"])
def test_truncated_files_are_refused(kind: str) -> None:
    data = encode(picture(10, 200, 150), kind)
    for part in (0.2, 0.5, 0.8):
        with pytest.raises(DecodeError):
            decode_image(data[: int(len(data) * part)], channels=3)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"exif": b"Exif\0\0II*\0"}])
def test_the_size_of_a_webp_is_read_before_anything_is_allocated(options: dict[str, Any]) -> None:
    data = encode(picture(13, 301, 77), "WEBP", **options)
    assert decode._webp_size(data) == (301, 77) == decode_image(data, channels=3).size
    extended = b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\xff\xff" * 2
    with pytest.raises(DecodeError, match="decompression bomb: 16777216×16777216"):
        decode_image(extended, channels=3)


def test_a_progressive_jpeg_of_many_scans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(picture(11), "JPEG", progressive=True)
    assert decode_image(data, channels=3).size == (48, 40)
    monkeypatch.setattr(decode, "MAX_SCANS", 3)
    with pytest.raises(DecodeError, match="scans"):
        decode_image(data, channels=3)


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"P6 ", b"P5\n"]),
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_an_image_or_a_decode_error(data: bytes, start: bytes) -> None:
    try:
        found = inspect_image(start + data)
    except DecodeError:
        return
    assert found.image.mode in ("L", "RGB")


@given(
    kind=st.sampled_from(sorted(FORMATS)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_flipped_bytes_give_an_image_or_a_decode_error(kind: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray(encode(picture(12, 24, 20), kind))
    for place, value in flips:
        data[int(place * len(data))] = value
    try:
        image = decode_image(bytes(data), channels=3)
    except DecodeError:
        return
    assert image.mode == "RGB"


def test_warning_filters_are_left_as_they_were_also_among_threads() -> None:
    before = list(warnings.filters)
    blobs = [png(seed) for seed in range(4)] + [b"II*\0" + bytes(40)]

    def work() -> None:
        for blob in blobs * 10:
            try:
                decode_image(blob, channels=3)
            except DecodeError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before
    with quiet_pillow():
        assert warnings.filters != before
    assert warnings.filters == before
    assert Image.MAX_IMAGE_PIXELS == 89478485  # Pillow's own setting is not ours to change
    with io.BytesIO(png(0)) as file, Image.open(file) as image:
        assert image.size == (48, 40)
