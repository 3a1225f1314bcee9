"""What our HTML pages share: one file that needs no network, with pictures in it, and every text escaped.

Pictures are thumbnails as data URIs. Boxes and points are drawn over them as SVG, so that a pointer on one shows its
name.
"""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from data.decode import DecodeError, decode_image, quiet_pillow

THUMBNAIL_PX = 160  # longer side, at most
LEAST_SHOWN_PX = 96  # longer side on the page: smaller pictures are enlarged, pixel by pixel
JPEG_QUALITY = 82
NAME_END = re.compile(r"(.{8,}?)(\w{0,3}\.[A-Za-z0-9]{2,5})", re.DOTALL)
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442")  # Okabe and Ito's

CSS = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0 auto; max-width: 1180px;
  padding: 28px 32px 64px; }
h1 { font-size: 25px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 38px 0 10px; } h3 { font-size: 16px; margin: 0; }
h3.samples { font-size: 15px; margin-top: 22px; }
.quiet { color: #59636e; } .small { font-size: 13px; }
.verdict { border-radius: 8px; padding: 12px 16px; margin: 18px 0; font-weight: 600; }
.stop { background: #fdeceb; color: #9f1f17; } .go { background: #e8f5ec; color: #17612f; }
.numbers { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 16px 0; }
.numbers div { font-size: 22px; } .numbers span { display: block; font-size: 13px; color: #59636e; }
.chip { display: inline-block; min-width: 58px; text-align: center; border-radius: 10px; padding: 0 8px;
  font-size: 12.5px; line-height: 20px; font-weight: 600; }
.error { background: #c5221f; color: #fff; } .warning { background: #fbe3a4; color: #5a3d00; }
.info { background: #e4e9ef; color: #37424e; } .accepted { background: #dce9fb; color: #174a8b; }
table { border-collapse: collapse; } td, th { text-align: left; padding: 4px 14px 4px 0; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid #d1d9e0; } td { border-bottom: 1px solid #eef1f4; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.whole { white-space: nowrap; }
a { color: #0b57d0; text-decoration: none; } a:hover { text-decoration: underline; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 18px 34px;
  align-items: start; }
.charts svg { width: 100%; height: auto; } figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: 4px; }
.card { border: 1px solid #d1d9e0; border-radius: 8px; padding: 14px 18px; margin: 14px 0; }
.card p { margin: 6px 0; } .card .do::before { content: "To do: "; font-weight: 600; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 12px; }
.tile { display: flex; gap: 10px; border: 1px solid #e3e8ed; border-radius: 6px; padding: 8px; background: #f8fafb; }
.picture { position: relative; width: fit-content; } .picture img { display: block; image-rendering: auto; }
.picture img.enlarged { image-rendering: pixelated; }
.picture svg { position: absolute; left: 0; top: 0; width: 100%; height: 100%; }
.caption { font-size: 12px; line-height: 1.35; margin-top: 4px; overflow-wrap: anywhere; }
.ending { white-space: nowrap; }
.missing { display: flex; align-items: center; justify-content: center; background: #eceff2; color: #59636e;
  font-size: 12px; text-align: center; }
"""


@dataclass(frozen=True)
class Mark:
    """Something drawn over a picture: a box, or a point where both corners are the same."""

    x0: float
    y0: float
    x1: float
    y1: float
    name: str
    colour: str
    dashed: bool = False


def escape(text: object) -> str:
    """A text as HTML, in attributes too."""
    return html.escape(str(text), quote=True)


def document(title: str, *parts: str) -> str:
    """A whole page; `parts` are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title><style>{CSS}</style></head>'
        f"<body>\n{chr(10).join(part for part in parts if part)}\n</body></html>\n"
    )


def heading(title: str, about: str) -> str:
    """What the page shows, in large print, and below it a line on that; both are plain texts."""
    return f'<h1>{escape(title)}</h1><div class="quiet">{escape(about)}</div>'


def headline(numbers: Sequence[tuple[str, str]]) -> str:
    """Numbers in large print, each with what it is."""
    return f'<div class="numbers">{"".join(f"<div>{n}<span>{escape(text)}</span></div>" for n, text in numbers)}</div>'


def chip(text: str, kind: str) -> str:
    """A word on a coloured ground; `kind`: error, warning, info, accepted."""
    return f'<span class="chip {kind}">{escape(text)}</span>'


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of plain values; numbers stand right."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = []
    for row in rows:
        cells = [
            f'<td class="number">{value:,}</td>' if isinstance(value, int) else f"<td>{escape(value)}</td>"
            for value in row
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def tile(cells: Sequence[str]) -> str:
    """Pictures that belong together, side by side."""
    return f'<div class="tile">{"".join(cells)}</div>'


def picture(
    blob: bytes | None,
    caption: Sequence[str],
    hint: str,
    marks: Sequence[Mark] = (),
    size: tuple[int, int] = (1, 1),
    longest_px: int = THUMBNAIL_PX,
) -> str:
    """An encoded picture as a thumbnail, upright, with lines below it; `hint` shows under the pointer.

    `marks` are in pixels of the upright picture, whose width and height `size` is. A picture that is not there, or does
    not decode, is a grey field.
    """
    lines = "<br>".join(_line(text) for text in caption)
    try:
        shown = "" if blob is None else _thumbnail(blob, longest_px) + _overlay(marks, size)
        why = "no picture"
    except DecodeError as error:
        shown, why = "", str(error)
    if not shown:
        side = LEAST_SHOWN_PX
        shown = f'<div class="missing" style="width:{side}px;height:{side}px">{escape(why)}</div>'
    return (
        f'<div style="max-width:{longest_px}px" title="{escape(hint)}"><div class="picture">{shown}</div>'
        f'<div class="caption">{lines}</div></div>'
    )


def _line(text: str) -> str:
    """A line of a caption, which may break anywhere but in a file name's ending and the letters before it."""
    found = NAME_END.fullmatch(text)
    return f'{escape(found[1])}<span class="ending">{escape(found[2])}</span>' if found else escape(text)


def _thumbnail(blob: bytes, longest_px: int) -> str:
    with quiet_pillow():
        image = decode_image(blob, channels=3, draft_px=longest_px)
    if max(image.size) > longest_px:
        image.thumbnail((longest_px, longest_px), Image.Resampling.BILINEAR)
    longer = max(image.size)
    kind = "PNG" if longer < LEAST_SHOWN_PX else "JPEG"  # enlarged, a JPEG's own blocks would show
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": JPEG_QUALITY} if kind == "JPEG" else {}))
    data = base64.b64encode(buffer.getvalue()).decode()
    zoom = max(1, round(LEAST_SHOWN_PX / longer))
    width, height = (side * zoom for side in image.size)
    enlarged = ' class="enlarged"' if zoom > 1 else ""
    source = f"data:image/{kind.lower()};base64,{data}"
    return f'<img{enlarged} width="{width}" height="{height}" alt="" src="{source}">'


def _overlay(marks: Sequence[Mark], size: tuple[int, int]) -> str:
    """The marks as SVG, in the picture's own pixels."""
    if not marks:
        return ""
    line = max(size) / THUMBNAIL_PX * 1.6
    shapes = []
    for mark in marks:
        name = f"<title>{escape(mark.name)}</title>"
        if (mark.x0, mark.y0) == (mark.x1, mark.y1):
            shape = (
                f'<circle cx="{mark.x0:.1f}" cy="{mark.y0:.1f}" r="{line * 1.2:.2f}" fill="{mark.colour}">'
            )
            shapes.append(f"{shape}{name}</circle>")
            continue
        # SVG draws nothing of width 0
        width, height = max(mark.x1 - mark.x0, 0.1), max(mark.y1 - mark.y0, 0.1)
        place = f'x="{mark.x0:.1f}" y="{mark.y0:.1f}" width="{width:.1f}" height="{height:.1f}"'
        style = f'fill="none" stroke="{mark.colour}" stroke-width="{line:.2f}" pointer-events="all"'
        style += f' stroke-dasharray="{2 * line:.2f}"' if mark.dashed else ""
        shapes.append(f"<rect {place} {style}>{name}</rect>")
    return f'<svg viewBox="0 0 {size[0]} {size[1]}" preserveAspectRatio="none">{"".join(shapes)}</svg>'
