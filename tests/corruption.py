"""The ways in which files go wrong: random damage, and damage that knows where a format keeps its numbers.

`corrupt` draws one to three of `DAMAGE` for a file; half of the time checksums are mended afterwards (PNG's chunks,
tar's headers), since a reader that checks them would otherwise never see the damage behind.
"""

import re
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from random import Random

EXTREMES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 24,
    65500,
)
WORDS = (
    b"", b"-1", b"0", b"1e999", b"NaN", b"-inf", b"99999999999999999999999999", b"1e-400", b"0x10", b"1_000",
    b"\xff\xfe", b"\0", b"\r", b'"', b"'", b"{", b"[" * 2000, b"<", b"&lol;", b"../../etc/passwd", b"*a", b"null",
    b"true", b"\xd9\xa3", b"\xe2\x80\xa8", b"x" * 5000, b",", b";", b"\t", b"!!python/object:os.system", b"%s%n",
    b"9" * 5000, b"x" * 140_000, b'"\\ud800"', b"\\ud800", b"\\u0000", b"-0", b"1e308", b"[]", b"{}", b'""',
)  # fmt: skip
MAGICS = (
    b"\xff\xd8\xff\xe0\0\x10JFIF\0", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"GIF89a", b"BM",
    b"RIFF\xff\0\0\0WEBPVP8 ", b"RIFF\xff\0\0\0WEBPVP8L", b"RIFF\xff\0\0\0WEBPVP8X", b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0",
    b"P1\n", b"P2\n", b"P3\n", b"P4\n9 9\n", b"P5\n9 9\n255\n", b"P6\n9 9\n65535\n",
)  # fmt: skip
_TEXT = re.compile(rb"[^\s,<>\"'{}\[\]:]+")


def corrupt(data: bytes, random: Random, other: bytes) -> tuple[bytes, str]:
    """Damaged bytes, and the names of what was done; `other` is a file to take pieces from."""
    done = []
    for _ in range(random.choice((1, 1, 1, 1, 2, 3))):
        name = random.choice(list(DAMAGE))
        data = DAMAGE[name](data, random, other)
        done.append(name)
    if random.random() < 0.5 and (mended := mend_checksums(data)) != data:
        data = mended
        done.append("checksums mended")
    return data, ", ".join(done)


def _place(data: bytes, random: Random) -> int:
    """A place in the file; headers more often than their share."""
    reach = random.choice((32, 128, 1024, len(data)))
    return random.randrange(max(1, min(reach, len(data))))


def flip_bits(data: bytes, random: Random, _other: bytes) -> bytes:
    """Turn over 1 to 32 bits."""
    if not data:
        return data
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 32))):
        out[_place(data, random)] ^= 1 << random.randrange(8)
    return bytes(out)


def replace_run(data: bytes, random: Random, _other: bytes) -> bytes:
    """Put zeros, ones or noise over a run of bytes."""
    start, length = _place(data, random), random.choice((1, 2, 4, 16, 512, 4096))
    run = random.choice((bytes(length), b"\xff" * length, random.randbytes(length)))
    return data[:start] + run + data[start + length :]


def truncate(data: bytes, random: Random, _other: bytes) -> bytes:
    """End early: anywhere, in the header, or just before the end."""
    return data[: random.choice((_place(data, random), max(0, len(data) - random.randrange(1, 40))))]


def set_number(data: bytes, random: Random, _other: bytes) -> bytes:
    """Write an extreme number of 1 to 8 bytes, of either order."""
    form = random.choice(("B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(form)
    value = random.choice(EXTREMES) & ((1 << 8 * size) - 1)
    start = _place(data, random)
    return data[:start] + struct.pack(form, value) + data[start + size :]


def set_length(data: bytes, random: Random, _other: bytes) -> bytes:
    """Make the length of a piece of the format larger, smaller or extreme."""
    start, form = random.choice(_lengths(data) or [(_place(data, random), ">I")])
    size = struct.calcsize(form)
    if len(data) < start + size:
        return data
    (now,) = struct.unpack_from(form, data, start)
    top = (1 << 8 * size) - 1
    value = random.choice((now + 1, now - 1, now * 2, now + 1000, 0, top, top >> 1)) & top
    return data[:start] + struct.pack(form, value) + data[start + size :]


def move_pieces(data: bytes, random: Random, other: bytes) -> bytes:
    """Swap, repeat or leave out chunks, segments or lines, or take some of the other file."""
    pieces = split_pieces(data, random)
    foreign = split_pieces(other, random)
    for _ in range(random.choice((1, 1, 2, 5))):
        if not pieces:
            break
        i, j = random.randrange(len(pieces)), random.randrange(len(pieces))
        match random.randrange(4):
            case 0:
                pieces[i], pieces[j] = pieces[j], pieces[i]
            case 1:
                pieces[i:i] = [pieces[j]] * random.choice((1, 2, 50))
            case 2:
                del pieces[i]
            case 3 if foreign:
                pieces.insert(i, random.choice(foreign))
    return b"".join(pieces)[: 4 * len(data) + (1 << 20)]


def splice(data: bytes, random: Random, other: bytes) -> bytes:
    """The start of this file and the end of the other."""
    return data[: _place(data, random)] + other[_place(other, random) :]


def garbage(_data: bytes, random: Random, _other: bytes) -> bytes:
    """Noise behind the first bytes of a known format, or nothing but noise."""
    magic = random.choice((*MAGICS, b""))
    return magic + random.randbytes(random.choice((0, 1, 10, 300, 5000)))


def insert_or_delete(data: bytes, random: Random, _other: bytes) -> bytes:
    """Put noise between, or take bytes out."""
    start, length = _place(data, random), random.choice((1, 1, 2, 3, 100))
    if random.random() < 0.5:
        return data[:start] + random.randbytes(length) + data[start:]
    return data[:start] + data[start + length :]


def set_word(data: bytes, random: Random, _other: bytes) -> bytes:
    """Put something odd in the place of a word or number of a text."""
    words = list(_TEXT.finditer(data[: 1 << 16]))
    if not words:
        return flip_bits(data, random, b"")
    word = random.choice(words)
    return data[: word.start()] + random.choice(WORDS) + data[word.end() :]


def set_member(data: bytes, random: Random, _other: bytes) -> bytes:
    """Make a tar's member sparse, of any type, or of negative size, in a header whose checksum fits."""
    headers = _tar_headers(data)
    if not headers:
        return flip_bits(data, random, b"")
    out, start = bytearray(data), random.choice(headers)
    out[start + 156] = random.choice(b"SSSxgLK01234567DX")
    out[start + 482] = random.randrange(2)  # whether the map of a sparse one goes on
    if random.random() < 0.3:
        out[start + 124 : start + 136] = struct.pack(">iq", -1, -random.choice((1, 512, 1 << 40)))
    return mend_checksums(bytes(out))


DAMAGE: dict[str, Callable[[bytes, Random, bytes], bytes]] = {
    "bits flipped": flip_bits,
    "run replaced": replace_run,
    "truncated": truncate,
    "extreme number": set_number,
    "length changed": set_length,
    "pieces moved": move_pieces,
    "spliced": splice,
    "garbage": garbage,
    "inserted or deleted": insert_or_delete,
    "word replaced": set_word,
    "member changed": set_member,
}


def split_pieces(data: bytes, random: Random) -> list[bytes]:
    """Cut a file where its format does, or anywhere; together the pieces are the file."""
    cuts = sorted({0, len(data), *(start for start, _ in _lengths(data) if start < len(data))})
    if len(cuts) < 4:
        if b"\0" not in data:
            return data.splitlines(keepends=True)
        cuts = sorted({0, len(data), *(random.randrange(len(data)) for _ in range(random.choice((4, 30))))})
    return [data[start:stop] for start, stop in pairwise(cuts)]


def _lengths(data: bytes) -> list[tuple[int, str]]:
    """Where a format says how long what follows is: (place, form of the number)."""
    if data.startswith(b"\x89PNG"):
        return _walk(data, 8, ">I", 0, 12)
    if data.startswith(b"\xff\xd8"):
        return _walk(data, 4, ">H", 0, 2)
    if data.startswith(b"RIFF"):
        return [(4, "<I"), *_walk(data, 16, "<I", 0, 8)]
    if data[:4] in (b"II*\0", b"MM\0*"):
        order = "<" if data.startswith(b"II") else ">"
        (start,) = struct.unpack_from(order + "I", data.ljust(8, b"\0"), 4)
        tags = [(start + 2 + 12 * tag + 4, order + "I") for tag in range(30)]
        return [
            (4, order + "I"),
            (start, order + "H"),
            *((place + k, form) for place, form in tags for k in (0, 4)),
        ]
    if data.startswith(b"BM"):
        return [(place, "<I") for place in (2, 10, 14, 18, 22, 34, 46)]
    if data.startswith(b"PK"):
        return [
            (found.start() + k, form)
            for found in re.finditer(rb"PK(\x03\x04|\x01\x02|\x05\x06)", data)
            for k, form in ((18, "<I"), (22, "<I"), (26, "<H"), (28, "<H"), (42, "<I"))
        ]
    return []


def _walk(data: bytes, start: int, form: str, before: int, more: int) -> list[tuple[int, str]]:
    """Places of lengths that follow each other: `more` bytes of a piece are not counted in its length."""
    places = []
    size = struct.calcsize(form)
    while start + size <= len(data) and len(places) < 1000:
        places.append((start, form))
        (length,) = struct.unpack_from(form, data, start)
        start += before + length + (more if form != "<I" else 8 + length % 2)
    return places


def mend_checksums(data: bytes) -> bytes:
    """The file with the checksums that its bytes want, for PNG and tar."""
    out = bytearray(data)
    if data.startswith(b"\x89PNG"):
        for start, _ in _lengths(data):
            (length,) = struct.unpack_from(">I", data, start)
            end = start + 8 + length
            if end + 4 <= len(data):
                struct.pack_into(">I", out, end, zlib.crc32(out[start + 4 : end]))
    for start in _tar_headers(data):
        out[start + 148 : start + 156] = b" " * 8
        out[start + 148 : start + 156] = b"%06o\0 " % sum(out[start : start + 512])
    return bytes(out)


def _tar_headers(data: bytes) -> list[int]:
    """Where the members of a tar begin."""
    starts = range(0, len(data) - 511, 512) if data[257:262] == b"ustar" else ()
    return [start for start in starts if data[start + 257 : start + 262] == b"ustar"]
