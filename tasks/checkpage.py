"""The report of a dataset's checks as one HTML file: numbers, charts, and every finding with pictures.

It needs no network, and the same dataset gives the same bytes.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.dataset import NUM_AXES, SPLITS, Dataset, DatasetInfo, Split, noun_of
from data.evidence import Evidence, gather, read_pictures
from data.files import write_whole
from data.findings import Finding, Findings, Verdict
from tasks import charts, page
from tasks.arrays import PANELS, as_png
from tasks.page import COLOURS, Mark, chip, escape

MAX_TILES = 24  # of a finding
MAX_INFO_TILES = 8  # of one that is only worth knowing
NUM_SAMPLES = 12  # of what is in it
MAX_BARS = 24  # classes in a chart: beyond it the most and the least frequent
MAX_VALUES = 8  # of a length, rate or side, that have a bar each
MAX_FILES = 100  # set aside, in the table
MAX_LEFT_OUT = 3  # boxes that were left out, named below a picture
LEFT_OUT_COLOUR = "#E00000"
MANY = 10**9
IDENTITY_SIZES = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 9), (10, 19), (20, 49), (50, MANY))
BOX_NUMBERS = ((0, 0), *IDENTITY_SIZES[:-1], (50, 99), (100, 199), (200, 499), (500, MANY))


def write_check_page(file: Path, dataset: Dataset, findings: Findings, verdict: Verdict) -> None:
    """Write the report of a dataset that is whole; a ValueError, and no file, if it was replaced since."""
    text = check_page(dataset, findings, verdict)
    dataset.require_current()  # now that all is read
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)


def check_page(dataset: Dataset, findings: Findings, verdict: Verdict) -> str:
    """The page, as HTML."""
    evidence = gather(dataset)
    wanted = [id for finding in findings.findings for group in finding.examples[:MAX_TILES] for id in group]
    samples = sample_ids(evidence)
    has_pictures = "width" in evidence.columns.column_names
    blobs = read_pictures(dataset, evidence, [*wanted, *samples]) if has_pictures else {}
    if dataset.info.family in NUM_AXES:
        blobs = {id: as_png(blob, NUM_AXES[dataset.info.family]) for id, blob in blobs.items()}
    accepted = {finding.name for finding in verdict.accepted}
    return page.document(
        f"Checks of {dataset.info.name}",
        headline(dataset.info, findings, verdict),
        summary(findings, accepted),
        f'<h2>What is in it</h2><div class="charts">{"".join(distributions(evidence))}</div>',
        sample_tiles(samples, evidence, blobs) if has_pictures else "",
        "<h2>Findings</h2>" if findings.findings else "",
        *(card(finding, finding.name in accepted, evidence, blobs) for finding in findings.findings),
        set_aside_table(evidence),
    )


def headline(info: DatasetInfo, findings: Findings, verdict: Verdict) -> str:
    """What the dataset is, and whether training may start; whether it is sound where its family has no training."""
    num_boxes = sum(sum(classes.values()) for classes in info.num_boxes.values())
    kinds = {"faces": "people", "style": "folders"}.get(info.family, "classes")
    numbers = [(f"{findings.num_images:,}", noun_of(info.family))]
    numbers += [(f"{len(info.classes):,}", kinds)] if info.classes else []
    numbers += [(f"{info.num_images(split):,}", split) for split in SPLITS]
    numbers += [(f"{num_boxes:,}", "boxes")] if num_boxes else []
    numbers += [(f"{len(info.points):,}", "points")] if info.points else []
    numbers += [(f"{info.set_aside:,}", "set aside")]
    about = f"{info.family}, from {info.source}, licence: {info.licence}"
    if verdict.stopped_by:
        names = ", ".join(finding.name for finding in verdict.stopped_by)
        judgement = f'<div class="verdict stop">Training does not start: {escape(names)}</div>'
    else:
        waived = ", ".join(finding.name for finding in verdict.accepted)
        text = "Training may start" + (f", with {waived} accepted" if waived else "")
        judgement = f'<div class="verdict go">{escape(text)}</div>'
    return page.heading(info.name, about) + judgement + page.headline(numbers)


def summary(findings: Findings, accepted: set[str]) -> str:
    """One line a finding, with the way to its card."""
    if not findings.findings:
        return "<p>No check found anything.</p>"
    lines = [
        f"<tr><td>{chips(finding, finding.name in accepted)}</td>"
        f'<td class="whole"><a href="#{escape(finding.name)}">{escape(finding.name)}</a></td>'
        f'<td class="whole">{escape(finding.amount)}</td>'
        f'<td class="quiet">{escape(finding.meaning)}</td></tr>'
        for finding in findings.findings
    ]
    return f"<table>{''.join(lines)}</table>"


def chips(finding: Finding, accepted: bool) -> str:
    """How grave a finding is, and whether it was accepted."""
    return chip(finding.severity, finding.severity) + (" " + chip("accepted", "accepted") if accepted else "")


# ------------------------------------------------------------------------------- charts


def distributions(evidence: Evidence) -> list[str]:
    """Charts of classes, people, sizes and boxes: what the family has."""
    info = evidence.info
    drawn = []
    if info.family == "faces":
        drawn.append(identities_chart(evidence))
    elif info.family == "detection":
        drawn.append(balance_chart("Boxes by class", info.num_boxes, info.classes))
    elif info.family != "landmarks":
        drawn.append(balance_chart(f"{evidence.noun.capitalize()} by class", info.counts, info.classes))
    if info.family in NUM_AXES:
        drawn += array_charts(evidence)
    elif {"width", "height"} <= set(evidence.columns.column_names):
        width, height = evidence.sizes_px.T
        drawn += size_charts(width, height)
        if info.family == "detection":
            drawn += box_charts(evidence, np.sqrt(width * height))
    return drawn


def balance_chart(caption: str, counts: dict[Split, dict[str, int]], classes: Sequence[str]) -> str:
    """Numbers by class and split; of many classes those at both ends."""
    rows = [(name, {split: counts.get(split, {}).get(name, 0) for split in SPLITS}) for name in classes]
    rows.sort(key=lambda row: -sum(row[1].values()))
    note = ""
    if len(rows) > MAX_BARS:
        half = MAX_BARS // 2
        note = f"the {half} most and the {half} least frequent of {len(rows):,} classes"
        rows = rows[:half] + rows[-half:]
    return charts.figure(caption, charts.legend(SPLITS) + charts.stacked_bars(rows), note)


def identities_chart(evidence: Evidence) -> str:
    """How many people have how many pictures."""
    assert evidence.labels is not None
    per_person = np.unique(evidence.labels, return_counts=True)[1]
    bars = binned(per_person, IDENTITY_SIZES)
    return charts.figure("Pictures per person", charts.columns(bars, "pictures", "people"))


def binned(numbers: np.ndarray, bins: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """How many of `numbers` (N,) lie in each bin (least, greatest) up to the last that has some, with its name."""
    last = max([i for i, (low, _) in enumerate(bins) if (numbers >= low).any()], default=0)
    return [
        (
            f"{low}" if low == high else f"{low}–{high}" if high < MANY else f"{low}+",
            int(((numbers >= low) & (numbers <= high)).sum()),
        )
        for low, high in bins[: last + 1]
    ]


def size_charts(width: np.ndarray, height: np.ndarray) -> list[str]:
    """How the longer side and the aspect are spread, where sizes differ."""
    sizes = Counter(zip(width.tolist(), height.tolist(), strict=True))
    (w, h), number = max(sizes.items(), key=lambda item: (item[1], item[0]))
    if len(sizes) == 1:
        return [charts.figure("Size", f"<p>all {number:,} pictures have {w} × {h} pixels</p>")]
    size = charts.histogram(np.maximum(width, height), "longer side, pixels", "pictures", logarithmic=True)
    aspect = charts.histogram(width / height, "width / height (1: square)", "pictures", logarithmic=True)
    note = f"{len(sizes):,} different sizes; the most frequent, {w} × {h}: {number:,} pictures"
    return [charts.figure("Size", size, note), charts.figure("Aspect", aspect)]


def array_charts(evidence: Evidence) -> list[str]:
    """How lengths of signals or sides of volumes are spread, and their rates or voxels where files tell them."""
    noun = evidence.noun
    shapes = np.array(evidence.columns["shape"].to_pylist(), np.int64)[:, 1:]  # (N, axes), channels left out
    if evidence.info.family == "signals":
        rates = np.asarray(evidence.columns["rate_hz"].to_numpy(), np.float64)
        drawn = [("Length", shapes[:, 0], "samples"), ("Rate", rates[rates > 0], "samples a second")]
    else:
        spacings = [sides for sides in evidence.columns["spacing_mm"].to_pylist() if sides]
        voxels = np.array(spacings, np.float64).reshape(-1, 3)
        drawn = [(f"Side {axis}", sides, "voxels") for axis, sides in enumerate(shapes.T)]
        drawn += [(f"Voxel, side {axis}", sides, "mm") for axis, sides in enumerate(voxels.T)]
    return [
        charts.figure(caption, spread(values, unit, noun), untold(values, evidence))
        for caption, values, unit in drawn
        if len(values)
    ]


def spread(values: np.ndarray, unit: str, noun: str) -> str:
    """A bar for each value where there are few, else a histogram."""
    distinct, counts = np.unique(values, return_counts=True)
    if not 1 < len(distinct) <= MAX_VALUES:
        return charts.histogram(values, unit, noun, logarithmic=True)
    bars = [(f"{value:g}", number) for value, number in zip(distinct.tolist(), counts.tolist(), strict=True)]
    return charts.columns(bars, unit, noun)


def untold(values: np.ndarray, evidence: Evidence) -> str:
    """Of how many items a file does not tell this."""
    lacking = len(evidence) - len(values)
    return f"{lacking:,} {evidence.noun} do not tell it" if lacking else ""


def box_charts(evidence: Evidence, picture_side: np.ndarray) -> list[str]:
    """How large boxes are, and how many a picture has."""
    boxes = evidence.boxes
    sides = boxes.boxes_xyxy[:, 2:] - boxes.boxes_xyxy[:, :2]
    share = np.sqrt(sides.prod(1)) / picture_side[boxes.image]
    size = charts.histogram(share, "√(area of the box / area of the picture)", "boxes", logarithmic=True)
    bars = binned(np.bincount(boxes.image, minlength=len(evidence)), BOX_NUMBERS)
    return [
        charts.figure("Size of boxes", size),
        charts.figure("Boxes per picture", charts.columns(bars, "boxes", "pictures")),
    ]


# ------------------------------------------------------------------------------- findings


def card(finding: Finding, accepted: bool, evidence: Evidence, blobs: dict[str, bytes]) -> str:
    """One finding: what, how much, what to do, and examples."""
    examples = finding.examples[: MAX_INFO_TILES if finding.severity == "info" else MAX_TILES]
    shown = [group for group in examples if any(id in blobs for id in group)]
    reasons = {image.id: image.reason for image in evidence.report.set_aside}
    texts = [
        ", ".join(f"{id}: {reasons[id]}" if id in reasons else id for id in group)
        for group in examples
        if group not in shown
    ]
    tiles = [page.tile([example(id, evidence, blobs) for id in group]) for group in shown]
    listed = f'<p class="small">{"<br>".join(escape(text) for text in texts)}</p>' if texts else ""
    detail = f"<p>{escape(finding.detail)}</p>" if finding.detail else ""
    return (
        f'<div class="card" id="{escape(finding.name)}"><h3>{chips(finding, accepted)} {escape(finding.name)}'
        f' <span class="quiet">{escape(finding.amount)}</span></h3><p>{escape(finding.meaning)}</p>{detail}'
        f'<p class="do">{escape(finding.remedy)}</p>{listed}<div class="tiles">{"".join(tiles)}</div></div>'
    )


def sample_ids(evidence: Evidence) -> list[str]:
    """A few ids from all over the dataset, in its order."""
    places = np.linspace(0, len(evidence) - 1, min(NUM_SAMPLES, len(evidence))).astype(int)
    return [evidence.ids[place] for place in places]


def sample_tiles(ids: Sequence[str], evidence: Evidence, blobs: dict[str, bytes]) -> str:
    """What items look like, found faulty or not: are boxes, points and labels where they belong?"""
    tiles = [page.tile([example(id, evidence, blobs)]) for id in ids]
    caption = f"{len(ids):,} of {len(evidence):,} {evidence.noun}"
    panels = f'<p class="quiet small">{escape(PANELS)}</p>' if evidence.info.family == "volumes" else ""
    return f'<h3 class="samples">{escape(caption)}</h3>{panels}<div class="tiles">{"".join(tiles)}</div>'


def example(id: str, evidence: Evidence, blobs: dict[str, bytes]) -> str:
    """One picture with its split and label, and what is marked on it."""
    place = evidence.place_of.get(id)
    if place is None:
        return page.picture(None, [id], id)
    width, height = evidence.sizes_px[place].tolist()
    left_out = evidence.report.left_out.get(id, ())
    lines = [f"{SPLITS[evidence.split[place]]}{label_of(evidence, place)}", id.rpartition("/")[2]]
    lines += [f"{why}: {', '.join(f'{side:g}' for side in box)}" for why, *box in left_out[:MAX_LEFT_OUT]]
    hint = f"{id}, {width} × {height}"
    return page.picture(blobs.get(id), lines, hint, marks_of(evidence, place), (width, height))


def label_of(evidence: Evidence, place: int) -> str:
    """`, cat` where a picture has one label."""
    return "" if evidence.labels is None else f", {evidence.info.classes[evidence.labels[place]]}"


def marks_of(evidence: Evidence, place: int) -> list[Mark]:
    """Boxes or points of a picture, coloured by class."""
    if evidence.info.family == "detection":
        boxes = evidence.boxes
        mine = slice(*np.searchsorted(boxes.image, (place, place + 1)))
        left_out = [
            Mark(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1), why, LEFT_OUT_COLOUR, dashed=True)
            for why, x0, y0, x1, y1 in evidence.report.left_out.get(evidence.ids[place], ())
        ]
        return left_out + [
            Mark(x0, y0, x1, y1, evidence.info.classes[label], COLOURS[label % len(COLOURS)])
            for (x0, y0, x1, y1), label in zip(
                boxes.boxes_xyxy[mine].tolist(), boxes.labels[mine].tolist(), strict=True
            )
        ]
    if evidence.info.family == "landmarks":
        xy = np.array(evidence.columns["points_xy"][place].as_py()).reshape(-1, 2) + 0.5
        named = zip(evidence.info.points, xy.tolist(), strict=True)
        return [Mark(x, y, x, y, name, COLOURS[0]) for name, (x, y) in named]
    return []


def set_aside_table(evidence: Evidence) -> str:
    """Files that are not in the dataset, and why."""
    files = evidence.report.set_aside
    if not files:
        return ""
    table = page.table(("file", "kind", "reason"), [(f.id, f.fault, f.reason) for f in files[:MAX_FILES]])
    more = (
        f'<p class="quiet">and {len(files) - MAX_FILES:,} more, in report.json</p>'
        if len(files) > MAX_FILES
        else ""
    )
    return f"<h2>Set aside</h2>{table}{more}"
