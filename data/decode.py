"""From encoded bytes to pixels, by Pillow: any bytes give an upright RGB or grey image, or a `DecodeError`.

What is done to an image on the way: the EXIF orientation is applied; transparent pixels are laid on white;
16-bit samples are scaled to 8 bits (not clipped); CMYK, palette, 1-bit and YCbCr images are converted; of an
animated file the first frame is taken. Embedded colour profiles are not applied. Truncated files are refused.

The format is told by the first bytes, never by a file name, and the readers of the formats in `FORMATS` are
called directly: `PIL.Image.open` would try others, and it warns about large images by a process-wide setting.
"""

import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from data.jpeg import MAX_SCANS, SCAN, Scaled, decode_upper
from data.squares import Resize, fit

MAX_PIXELS = 120_000_000  # 108-megapixel phone photos pass; decoded as RGB this is half a gigabyte
MAX_DEFLATE_RATIO = 1032

FORMATS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
EXTENSIONS: dict[str, tuple[str, ...]] = {  # lower-case, of the formats
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
_MAGIC: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes there, format
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"BM", "BMP"),
    *((0, magic, "TIFF") for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((0, b"P%d" % n + space, "PPM") for n in range(1, 7) for space in (b"\n", b" ", b"\t", b"\r")),
)
_MAGIC_UNSUPPORTED: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyp", "HEIC or video"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"8BPS", "PSD"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FROM_16_BIT = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)
_MODES_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_MODES_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")


class DecodeError(ValueError):
    """Why these bytes are no image for us, in one line."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """A fully decoded, upright image (L if `grey`, else RGB) and what was found on the way."""

    image: Image.Image
    format: str  # a key of FORMATS
    grey: bool  # stored without colour
    orientation: int  # of EXIF, 1 to 8: how the stored pixels were turned to be upright
    animated: bool  # has more than one frame or page
    alpha: bool
    cmyk: bool
    deep: bool  # 16 bits a sample

    @property
    def rotated(self) -> bool:
        """Whether the stored pixels were turned or mirrored."""
        return self.orientation != 1


def sniff_format(data: bytes) -> str:
    """Name the format of `data` by its first bytes: a key of `FORMATS`; otherwise a DecodeError says why."""
    if not data:
        raise DecodeError("empty file")
    for offset, magic, name in _MAGIC:
        if data.startswith(magic, offset):
            return name
    known = ", ".join(FORMATS)
    for offset, magic, name in _MAGIC_UNSUPPORTED:
        if data.startswith(magic, offset):
            raise DecodeError(f"unsupported format {name} (supported: {known})")
    raise DecodeError(f"not an image (supported: {known})")


def decode_image(data: bytes, *, channels: Literal[1, 3], draft_px: int | None = None) -> Image.Image:
    """Decode to an upright L (`channels` = 1) or RGB (3) image, as said above; raises DecodeError.

    With `draft_px` a JPEG is decoded at 1/2, 1/4 or 1/8 of its size (faster; scaled in the DCT domain), the
    smallest of these whose shorter side is still at least `draft_px`.
    """
    with quiet_pillow():
        return _decode(data, channels, draft_px)[0]


def inspect_image(data: bytes) -> Inspected:
    """Decode the whole image at full size and tell what it is; raises DecodeError."""
    with quiet_pillow(), _failures_as_decode_errors(data):
        image = _open(data)
        orientation = _orientation(image)
        animated = bool(getattr(image, "is_animated", False))
        deep = _is_deep(image, data)
        image.load()
        grey = image.mode in _MODES_GREY
        return Inspected(
            image=_turn_upright(_flatten(image, 1 if grey else 3), image, orientation),
            format=str(image.format),
            grey=grey,
            orientation=orientation if orientation in _UPRIGHT else 1,
            animated=animated,
            alpha=_has_alpha(image),
            cmyk=image.mode == "CMYK",
            deep=deep,
        )


def read_orientation(data: bytes) -> int:
    """The EXIF orientation of an encoded image, 1 to 8; only its header is read. Raises DecodeError."""
    with quiet_pillow(), _failures_as_decode_errors(data):
        orientation = _orientation(_open(data))
    return orientation if orientation in _UPRIGHT else 1


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height of the upright image, by its header; raises DecodeError."""
    with quiet_pillow(), _failures_as_decode_errors(data):
        return _upright_size(_open(data))


def decode_many(
    blobs: Sequence[bytes], side_px: int, channels: Literal[1, 3], resize: Resize, *, draft: bool = True
) -> np.ndarray:
    """Decode and fit a shard: (N, channels, side_px, side_px) uint8; a DecodeError names the blob's place.

    With `draft` large JPEGs are decoded smaller, which is faster and moves what a `crop` shows by up to half a pixel.
    """
    squares = np.empty((len(blobs), channels, side_px, side_px), np.uint8)
    with quiet_pillow():
        for i, blob in enumerate(blobs):
            try:
                image, full_wh = _decode(blob, channels, side_px if draft else None)
                pixels = np.asarray(fit(image, side_px, resize, full_wh))
            except DecodeError as error:
                raise DecodeError(f"image {i} of {len(blobs)}: {error}") from None
            squares[i] = pixels if channels == 1 else pixels.transpose(2, 0, 1)
    return squares


def decode_part(data: bytes, box_xyxy: Sequence[float], side_px: int, channels: Literal[1, 3]) -> np.ndarray:
    """Decode what a box shows, pixels of the upright image: (h, w, channels) uint8; raises DecodeError.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where both sides of the box still have `side_px` pixels there, and
    not below the box: damage there goes unseen. Files of a dataset were decoded whole when they came in.
    """
    part_px = min(box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1])
    factor = next(k for k in (8, 4, 2, 1) if part_px >= k * side_px or k == 1)
    with quiet_pillow(), _failures_as_decode_errors(data):
        is_jpeg = sniff_format(data) == "JPEG"
        scaled = decode_upper(data, factor, channels, box_xyxy[3], MAX_PIXELS) if is_jpeg else None
        scaled = scaled or _scaled_pixels(data, factor, channels)
    scale_y, scale_x = scaled.size[1] / scaled.full[1], scaled.size[0] / scaled.full[0]
    left, right = _pixels_within(box_xyxy[0] * scale_x, box_xyxy[2] * scale_x, scaled.size[0])
    top, bottom = _pixels_within(box_xyxy[1] * scale_y, box_xyxy[3] * scale_y, scaled.size[1])
    return scaled.pixels[top:bottom, left:right]


def _scaled_pixels(data: bytes, factor: int, channels: Literal[1, 3]) -> Scaled:
    """Any image, upright, a JPEG at 1 / factor of its size."""
    image = _open(data)
    orientation = _orientation(image)
    width, height = image.size if orientation < 5 else image.size[::-1]
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        image.draft(None, (image.width // factor, image.height // factor))
    image.load()
    pixels = np.array(_turn_upright(_flatten(image, channels), image, orientation))
    return Scaled(pixels if channels == 3 else pixels[..., None], pixels.shape[1::-1], (width, height))


def _pixels_within(start: float, stop: float, size: int) -> tuple[int, int]:
    """The whole pixels nearest to an interval; at least one, and inside the picture."""
    first = min(max(round(start), 0), size - 1)
    return first, min(max(round(stop), first + 1), size)


def _decode(
    data: bytes, channels: Literal[1, 3], draft_px: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    """The upright image, and its size had it not been decoded smaller."""
    with _failures_as_decode_errors(data):
        image = _open(data)
        orientation = _orientation(image)
        full_wh = _upright_size(image)
        if draft_px is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
            image.draft(None, (draft_px, draft_px))
        image.load()
        return _turn_upright(_flatten(image, channels), image, orientation), full_wh


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header; the pixels are decoded by `.load()`."""
    name = sniff_format(data)
    if name == "WEBP":
        _check_pixels(*_webp_size(data))
    image = FORMATS[name](io.BytesIO(data))
    _check_pixels(*image.size)
    if name == "PNG":
        _check_png_size(data, *image.size)
    if image.info.get("progressive"):
        scans = data.count(SCAN)
        if scans > MAX_SCANS:
            raise DecodeError(
                f"decompression bomb: {scans} scans in a progressive JPEG, more than {MAX_SCANS}"
            )
    return image


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DecodeError(f"decompression bomb: {width}×{height} pixels, more than {MAX_PIXELS:,}")


def _check_png_size(data: bytes, width: int, height: int) -> None:
    """Pillow leaves black what the pixel data lack, however much: refuse what so few bytes cannot hold.

    Source: deflate's format, RFC 1951, in which two bits stand for 258 bytes at most.
    """
    bits = data[24] * {2: 3, 4: 2, 6: 4}.get(data[25], 1)  # a sample times the channels of the colour type
    if height * (-(-width * bits // 8)) > MAX_DEFLATE_RATIO * len(data):
        raise DecodeError(f"damaged PNG: {len(data):,} bytes cannot hold {width}×{height} pixels")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read the size by hand: Pillow's reader makes its canvases before it can be asked.

    Source: RFC 9649, sections 2.5 to 2.7 and 3.4.
    """
    kind, header = data[12:16], data[20:30]
    if kind == b"VP8X":
        return int.from_bytes(header[4:7], "little") + 1, int.from_bytes(header[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(header[6:8], "little") & 0x3FFF, int.from_bytes(header[8:10], "little") & 0x3FFF


def _orientation(image: ImageFile.ImageFile) -> int:
    if "exif" not in image.info and image.format != "TIFF":
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # a damaged EXIF block raises nearly anything, and the pixels may be fine: taken as upright
        return 1
    return orientation if isinstance(orientation, int) else 1


def _turn_upright(image: Image.Image, source: ImageFile.ImageFile, orientation: int) -> Image.Image:
    # Pillow turns TIFF files by itself while loading
    if orientation not in _UPRIGHT or source.format == "TIFF":
        return image
    return image.transpose(_UPRIGHT[orientation])


def _upright_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Width and height of an opened image once it is turned; those of a TIFF are given so."""
    turned = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
    return image.size[::-1] if turned else image.size


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _MODES_ALPHA or "transparency" in image.info


def _is_deep(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether samples have 16 bits in the file; Pillow hands out RGB as 8 bits, so the header is asked."""
    if image.format == "PNG":
        return data[24] == 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(258, (1,))) == 16
    return image.mode.startswith("I")


def _flatten(image: Image.Image, channels: Literal[1, 3]) -> Image.Image:
    """Any mode to L or RGB."""
    target = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _scale_16_bit(image).convert(target)
    if image.mode in ("I", "F"):
        raise DecodeError("32-bit samples have no fixed range; save the image with 8 or 16 bits")
    if _has_alpha(image):
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white.convert(target)
    return image if image.mode == target else image.convert(target)


def _scale_16_bit(image: Image.Image) -> Image.Image:
    samples = np.clip(np.asarray(image), 0, 65535)
    pixels = _FROM_16_BIT[samples]
    key = image.info.get("transparency")  # one value of a grey PNG may stand for "transparent"
    if isinstance(key, int):
        pixels[samples == key] = 255
    return Image.fromarray(pixels)


@contextmanager
def _failures_as_decode_errors(data: bytes) -> Iterator[None]:
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        # damaged files make Pillow raise OSError, SyntaxError, struct.error, KeyError, ...
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise DecodeError(f"damaged {sniff_format(data)}: {text}") from None


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_filters: "warnings.catch_warnings[None] | None" = None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore Pillow's warnings about odd metadata, and leave the process's filters as they were.

    `warnings.catch_warnings` alone is not safe among threads: here the first one in changes the filters and
    the last one out restores them.
    """
    global _quiet_users, _quiet_filters
    with _quiet_lock:
        if _quiet_users == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0:
                assert _quiet_filters is not None
                _quiet_filters.__exit__(None, None, None)
