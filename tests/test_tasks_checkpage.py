"""The report as HTML: whole in one file, the same each time, and safe whatever files are called."""

import base64
import html
import io
import re
import shutil
import wave
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.dataset import Dataset
from data.findings import find, judge
from data.report import read_report
from tasks import charts, page
from tasks.arrays import PANELS
from tasks.checkpage import check_page, headline, write_check_page
from tests.faulty import PLANTED, SOUND, box, classification, detection, jpeg, stock
from tests.pictures import png
from tests.test_data_findings import dataset_of

VOID = {"meta", "img", "br", "line", "rect", "circle"}
HOSTILE = "<img src=x onerror=alert(1)>&\"'"


class Reader(HTMLParser):
    """Checks that tags nest, and keeps what a browser would load or run."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.loaded: list[str] = []
        self.attributes: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def page_of(dataset: Dataset, *accepted: str) -> str:
    findings = find(dataset)
    return check_page(dataset, findings, judge(findings, accepted))


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_dataset_of_any_family_has_a_page(tmp_path: Path, name: str) -> None:
    family, source = SOUND[name]
    reader = read(page_of(dataset_of(tmp_path, family, source())))
    text = " ".join(reader.text)
    assert "Training may start" in text
    assert "No check found anything" in text
    assert len(reader.loaded) == 12  # pictures from all over it, in the page itself
    assert all(source.startswith("data:image/") for source in reader.loaded)


def arrays_of(family: str) -> dict[str, bytes]:
    """Two classes of sounds at two rates, or of volumes without spacing, of many sizes."""
    generator = np.random.default_rng(0)
    files = {}
    for i in range(24):
        stream = io.BytesIO()
        if family == "signals":
            with wave.open(stream, "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate((8000, 16000)[i % 3 == 0])
                file.writeframes(generator.integers(-9999, 9999, 400 + 40 * i, dtype=np.int16).tobytes())
        else:
            np.save(stream, generator.random((6 + i, 12, 9 + i % 4), dtype=np.float32))
        files[f"{'ab'[i % 2]}/{i}.{'wav' if family == 'signals' else 'npy'}"] = stream.getvalue()
    return files


@pytest.mark.parametrize(
    ("family", "captions"),
    [("signals", ("Length", "Rate")), ("volumes", ("Side 0", "Side 1", "Side 2"))],
)
def test_lengths_and_sides_have_charts_and_the_panels_of_volumes_are_named(
    tmp_path: Path, family: str, captions: tuple[str, ...]
) -> None:
    text = page_of(dataset_of(tmp_path, family, arrays_of(family)))
    assert all(f"<figcaption>{caption}</figcaption>" in text for caption in captions)
    assert (PANELS in text) == (family == "volumes")


def test_a_file_that_cannot_be_used_is_named_with_its_reason_on_the_card(tmp_path: Path) -> None:
    planted = PLANTED["annotation-unreadable"]
    dataset = dataset_of(tmp_path, SOUND[planted.sound][0], planted.files(), **planted.ingest)
    card = (
        page_of(dataset)
        .split('id="annotation-unreadable"')[1]
        .split("</h3>")[1]
        .split('<div class="tiles">')[0]
    )
    (image, *_) = (
        image for image in read_report(dataset.path).set_aside if image.fault == "annotation-unreadable"
    )
    assert html.escape(f"{image.id}: {image.reason}") in card


def test_a_long_name_breaks_before_its_ending() -> None:
    shown = page.picture(None, ["train, cat", "a<b_000000001.jpg"], "hint")
    assert 'train, cat<br>a&lt;b_000000<span class="ending">001.jpg</span>' in shown


def test_what_is_only_worth_knowing_does_not_fill_the_page(tmp_path: Path) -> None:
    people = {f"{who}/0.png": png(who) for who in range(20)} | {f"x/{i}.png": png(90 + i) for i in range(12)}
    text = page_of(dataset_of(tmp_path, "faces", people))
    card = text.split('id="single-picture-identities"')[1].split('class="card"')[0]
    assert card.count('<div class="tile">') == 8


@pytest.mark.parametrize(
    "name",
    ["truncated", "cmyk", "duplicates-across-splits", "class-missing", "box-outside", "annotations-unmatched",
     "annotation-unreadable", "point-outside", "pair-trained", "few-test-pictures"],
)  # fmt: skip
def test_every_finding_has_its_card(tmp_path: Path, name: str) -> None:
    planted = PLANTED[name]
    dataset = dataset_of(tmp_path, SOUND[planted.sound][0], planted.files(), **planted.ingest)
    text = page_of(dataset)
    reader = read(text)
    assert f'id="{name}"' in text
    assert f'href="#{name}"' in text
    assert all(link.startswith(("#", "data:image/")) for link in reader.loaded)  # nothing is fetched
    assert ("Training does not start" in " ".join(reader.text)) == (planted.severity == "error")


def test_names_of_files_and_classes_are_text_and_nothing_else(tmp_path: Path) -> None:
    files = {name.replace("/a/", f"/{HOSTILE}/"): data for name, data in classification().items()}
    files |= {f"train/{HOSTILE}/{HOSTILE}.png": stock(0), f"train/b/{HOSTILE}.jpg": jpeg(1)}
    files |= {f"test/b/{HOSTILE}.png": b"no picture"}
    reader = read(page_of(dataset_of(tmp_path, "classification", files)))
    assert "onerror" not in reader.attributes
    assert reader.tags["script"] == 0
    assert "x" not in reader.loaded
    assert any(f"{HOSTILE}.png" in text for text in reader.text)


def test_the_same_dataset_gives_the_same_page(tmp_path: Path) -> None:
    files = PLANTED["near-duplicates"].files()
    one, other = (page_of(dataset_of(tmp_path / name, "classification", files)) for name in "ab")
    assert one == other


def test_pairs_stand_side_by_side_with_split_and_label(tmp_path: Path) -> None:
    text = page_of(dataset_of(tmp_path, "classification", classification() | {"test/b/x.png": stock(0)}))
    card = text[text.index('id="duplicates-across-splits"') :]
    tile = card[card.index('<div class="tile">') : card.index('<div class="card"')]
    assert re.findall(r'caption">(.*?)<br>(.*?)<', tile) == [("test, b", "x.png"), ("train, a", "0.png")]


def test_boxes_are_drawn_where_they_are_with_their_names(tmp_path: Path) -> None:
    planted = PLANTED["tiny-boxes"]
    text = page_of(dataset_of(tmp_path, "detection", planted.files()))
    card = text[text.index('id="tiny-boxes"') :]
    rects = re.findall(
        r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"[^>]*><title>(\w+)', card
    )
    assert rects == [
        ("2.0", "2.0", "20.0", "20.0", "cat"),
        ("25.0", "5.0", "15.0", "30.0", "dog"),
        ("5.0", "5.0", "0.4", "9.0", "cat"),
    ]
    assert 'viewBox="0 0 48 40"' in card


def test_a_box_that_was_left_out_is_shown_where_it_was(tmp_path: Path) -> None:
    dataset = dataset_of(
        tmp_path, "detection", detection(box(9, 9, -5, 7), box(5, 6, 0, 8), box(70, 60, 5, 5))
    )
    assert read_report(dataset.path).left_out == {
        "train/0.png": (
            ("boxes with corners swapped, left out", 4, 9, 9, 16),
            ("boxes without area, left out", 5, 6, 5, 14),
            ("boxes outside the image, left out", 70, 60, 75, 65),
        )
    }
    text = page_of(dataset)
    card = text[text.index('id="box-inverted"') :]
    dashed = r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"[^>]*dasharray'
    assert re.findall(dashed, card)[:3] == [
        ("4.0", "9.0", "5.0", "7.0"), ("5.0", "6.0", "0.1", "8.0"), ("70.0", "60.0", "5.0", "5.0"),
    ]  # fmt: skip
    assert "boxes outside the image, left out: 70, 60, 75, 65" in card


def test_accepted_errors_are_marked_and_files_set_aside_are_listed(tmp_path: Path) -> None:
    files = PLANTED["class-missing"].files() | PLANTED["truncated"].add
    dataset = dataset_of(tmp_path, "classification", files)
    findings = find(dataset)
    file = tmp_path / "new" / "checks.html"
    write_check_page(file, dataset, findings, judge(findings, ["class-missing"]))
    text = file.read_text(encoding="utf-8")
    assert "Training may start, with class-missing accepted" in text
    assert '<span class="chip accepted">accepted</span>' in text
    assert "<td>train/a/x.png</td><td>truncated</td>" in text
    assert [path.name for path in file.parent.iterdir()] == ["checks.html"]


def test_no_page_is_left_of_a_dataset_that_was_replaced_after_its_checks(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, "classification", PLANTED["class-missing"].files())
    findings = find(dataset)
    other = dataset_of(tmp_path / "other", "classification", classification())
    shutil.rmtree(dataset.path)
    shutil.copytree(other.path, dataset.path)
    file = tmp_path / "checks.html"
    with pytest.raises(ValueError, match="dataset 'set' was replaced while it was read"):
        write_check_page(file, dataset, findings, judge(findings, ()))
    assert not file.exists()


def test_numbers_of_boxes_are_binned_whatever_the_greatest_is(tmp_path: Path) -> None:
    boxes = [box(i % 40, i // 40, 1, 1) for i in range(300)]
    text = page_of(dataset_of(tmp_path, "detection", detection(*boxes)))
    chart = text[text.index("Boxes per picture") :]
    bars = re.findall(r"<title>([^<]*): ([\d,]+)</title>", chart[: chart.index("</svg>")])
    assert bars == [
        ("0", "0"), ("1", "0"), ("2", "128"), ("3", "0"), ("4", "0"), ("5–9", "0"), ("10–19", "0"),
        ("20–49", "0"), ("50–99", "0"), ("100–199", "0"), ("200–499", "1"),
    ]  # fmt: skip


# ------------------------------------------------------------------------------- pictures and charts


@given(st.integers(1, 700), st.integers(1, 700))
def test_a_thumbnail_is_small_keeps_its_proportions_and_is_shown_large_enough(
    width: int, height: int
) -> None:
    text = page.picture(_flat(width, height), [], "")
    match = re.search(r'width="(\d+)" height="(\d+)" alt="" src="data:image/\w+;base64,([^"]*)"', text)
    assert match is not None
    image = Image.open(io.BytesIO(base64.b64decode(match[3])))
    assert max(image.size) <= page.THUMBNAIL_PX
    shown = int(match[1]), int(match[2])
    assert shown[0] % image.width == shown[1] % image.height == 0
    assert page.LEAST_SHOWN_PX / 2 < max(shown) <= page.THUMBNAIL_PX
    if max(width, height) <= page.THUMBNAIL_PX:
        assert image.size == (width, height)


def _flat(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (9, 99, 199)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("blob", "text"), [(None, "no picture"), (b"<b>", "not an image"), (png(1)[:300], "truncated")]
)
def test_a_picture_that_is_not_there_leaves_a_field_that_says_why(blob: bytes | None, text: str) -> None:
    shown = page.picture(blob, ["<i>"], '"')
    assert text in shown
    assert "<i>" not in shown
    read(shown)


@given(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])))  # which no parser keeps
def test_any_text_survives_escaping(text: str) -> None:
    reader = Reader()
    reader.feed(f"<p>{page.escape(text)}</p>")
    reader.close()
    assert (
        "".join(reader.text) == text.replace("\r\n", "\n").replace("\r", "\n") or "\r" in text or "\0" in text
    )
    assert reader.tags == {"p": 1}


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60), st.booleans())
def test_a_histogram_counts_every_value(values: list[float], logarithmic: bool) -> None:
    drawn = charts.histogram(np.array(values), "x", "y", logarithmic)
    counts = [int(number.replace(",", "")) for number in re.findall(r": ([\d,]+)</title>", drawn)]
    assert sum(counts) == len(values) if counts else f"all {len(values):,}:" in drawn
    read(drawn)


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("ends", [(0.17, 0.2), (480.0, 500.0), (1.0, 1.001), (0.5, 3.0), (0.0, 1.0)])
def test_no_name_stands_below_two_bars_of_a_histogram(ends: tuple[float, float], logarithmic: bool) -> None:
    low, high = ends
    drawn = charts.histogram(np.linspace(low or 0.001, high, 90), "x", "y", logarithmic)
    names = re.findall(r'text-anchor="middle" fill="#1b1f24">([^<]*)</text>', drawn)
    assert len(names) >= 4
    assert len(set(names)) == len(names)


def test_bars_are_as_long_as_their_numbers() -> None:
    drawn = charts.stacked_bars(
        [("a<b", {"train": 30, "val": 0, "test": 10}), ("c", {"train": 5, "val": 5, "test": 0})]
    )
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn)]
    assert widths == pytest.approx(
        [30 * k for k in (1, 0, 1 / 3, 1 / 6, 1 / 6, 0)] * np.array(widths[0] / 30), abs=0.1
    )
    assert "a&lt;b, train: 30" in drawn
    read(drawn)


@pytest.mark.parametrize(
    ("family", "noun"), [("classification", "pictures"), ("signals", "signals"), ("volumes", "volumes")]
)
def test_the_headline_calls_items_what_they_are(tmp_path: Path, family: str, noun: str) -> None:
    dataset = dataset_of(tmp_path, "classification", PLANTED["cmyk"].files())
    findings = find(dataset)
    text = headline(dataset.info.model_copy(update={"family": family}), findings, judge(findings, ()))
    assert f"<span>{noun}</span>" in text
