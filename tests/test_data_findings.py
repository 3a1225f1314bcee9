"""Each named check finds its planted fault, and none finds anything in sound sources; the gate stops what it should."""

import json
import re
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import duplicates, faults
from data.arrays import SIGNAL, VOLUME, decode_item
from data.checklist import CHECKS, NAMES, Check
from data.classification import InputConfig
from data.dataset import Dataset, DatasetInfo
from data.decode import DecodeError
from data.detection import DetectionInput
from data.evidence import Evidence, codes_of, gather, groups_of, pictures_at, read_pictures
from data.faults import FEWEST_TO_STOP, Found
from data.findings import (
    Finding,
    examine,
    find,
    judge,
    make_finding,
    obey,
    parse_accepted,
    percent,
    refusal,
)
from data.ingest import IngestConfig, ingest
from data.issues import ISSUES
from data.landmarks import LandmarkInput
from data.report import fault_of, read_report
from tests.annotated import coco_json
from tests.faulty import PLANTED, SOUND, Files, classification, detection, npy, stock
from tests.pictures import write_tree
from tests.waves import nifti, tone, wav

CONFIG = {"val_fraction": 0.1, "test_fraction": 0.1, "near_duplicate_distance": 3, "max_source_gb": 1}


OF_ARRAYS = DatasetInfo.model_construct(family="signals")
CHECKED_OF_ARRAYS = [  # without those whose faults only pictures have
    check.name
    for check in CHECKS
    if check.of_family(OF_ARRAYS)
    and check.name not in ("cmyk", "deep", "alpha", "animated", "exif-rotated", "wrong-extension")
]


def dataset_of(tmp_path: Path, family: str, files: Files, **changes: float) -> Dataset:
    source = write_tree(tmp_path / "source", files)
    config = IngestConfig.parse({**CONFIG, **changes}, "ingest")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_SAMPLE_LOOKS", 400)  # of half the time that these small ingests take
        ingest(source, name="set", family=family, store=tmp_path / "store", config=config, workers=1)
    return Dataset.open(tmp_path / "store" / "set")


def found(dataset: Dataset) -> dict[str, Finding]:
    return {finding.name: finding for finding in find(dataset).findings}


@pytest.mark.parametrize("name", SOUND)
def test_no_check_finds_anything_in_a_sound_source(tmp_path: Path, name: str) -> None:
    family, source = SOUND[name]
    assert found(dataset_of(tmp_path, family, source())) == {}


@pytest.mark.parametrize("name", PLANTED)
def test_each_check_finds_its_planted_fault(tmp_path: Path, name: str) -> None:
    planted = PLANTED[name]
    dataset = dataset_of(tmp_path, SOUND[planted.sound][0], planted.files(), **planted.ingest)
    finding = found(dataset)[name]
    assert (finding.count, finding.severity) == (planted.count, planted.severity)
    assert finding.of >= finding.count or finding.of == 0
    assert finding.meaning.endswith(".")
    assert finding.remedy


@pytest.mark.parametrize("name", CHECKED_OF_ARRAYS)
@pytest.mark.parametrize("family", ["signals", "volumes"])
def test_what_is_said_of_signals_and_volumes_speaks_of_no_pictures(family: str, name: str) -> None:
    (check,) = (check for check in CHECKS if check.name == name)
    finding = make_finding(check, Found(1, 2, family), family)
    said = f"{finding.meaning} {finding.remedy}".lower()
    assert not re.search(r"picture|image|pixel|\{|\}", said), said


@pytest.mark.parametrize("check", CHECKS, ids=NAMES)
def test_the_same_is_said_of_pictures_without_a_place_left_open(check: Check) -> None:
    finding = make_finding(check, Found(1, 2, "pictures"), "classification")
    assert not re.search(r"\{|\}", finding.meaning + finding.remedy)


@pytest.mark.parametrize(
    ("fault", "amount"),
    [
        (Found(1, 0, "entries"), "1 entry"),
        (Found(2, 0, "annotations"), "2 annotations"),
        (Found(1, 0, "annotations"), "1 annotation"),
        (Found(1, 0, "test pictures"), "1 test picture"),
        (Found(1, 0, "split"), "1 split"),
        (Found(1, 1, "boxes"), "1 of 1 box (100%)"),
        (Found(1, 3, "classes"), "1 of 3 classes (33%)"),
    ],
)
def test_one_of_something_is_counted_in_the_singular(fault: Found, amount: str) -> None:
    assert make_finding(CHECKS[0], fault, "detection").amount == amount


def test_a_leak_of_signals_is_counted_in_signals(tmp_path: Path) -> None:
    files = {
        f"{split}/{name}/{i}.wav": wav(tone(100 * k + i + start, 2 + 3 * k))
        for start, (split, num) in zip((0, 50), {"train": 6, "test": 3}.items(), strict=True)
        for k, name in enumerate(("low", "high"))
        for i in range(num)
    }
    files["test/low/again.wav"] = files["train/low/0.wav"]
    finding = found(dataset_of(tmp_path, "signals", files, val_fraction=0))["duplicates-across-splits"]
    assert (finding.amount, finding.of) == ("1 of 7 test signals (14%)", 7)


def test_a_report_of_before_is_read_without_what_it_counted_otherwise(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, "classification", SOUND["classification"][1]())
    report, file = read_report(dataset.path), dataset.path / "report.json"
    values = json.loads(file.read_text()) | {"across_splits": 0, "overlaps": []}
    file.write_text(json.dumps(values))
    assert read_report(dataset.path) == report


def test_every_check_has_a_planted_fault() -> None:
    elsewhere = {"report-outdated", "annotations-other"}  # have tests of their own
    assert set(PLANTED) | elsewhere == set(NAMES)
    assert len(set(NAMES)) == len(NAMES) == len(CHECKS)


def test_a_report_that_does_not_list_near_duplicates_is_said_to_be_outdated(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, "classification", PLANTED["near-duplicates"].files())
    file = dataset.path / "report.json"
    values = json.loads(file.read_text())
    del values["near_duplicates"]
    file.write_text(json.dumps(values))
    assert set(found(dataset)) == {"report-outdated"}


def test_what_a_reader_says_that_no_check_names_is_shown_all_the_same(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, "detection", SOUND["detection"][1]())
    file = dataset.path / "report.json"
    values = json.loads(file.read_text())
    values["issues"] = [{"what": "boxes of a new kind", "count": 3, "examples": ["train/0.png"]}]
    file.write_text(json.dumps(values))
    finding = found(dataset)["annotations-other"]
    assert (finding.count, finding.detail, finding.examples) == (
        3,
        "boxes of a new kind",
        (("train/0.png",),),
    )


def test_every_issue_is_shown_by_one_check() -> None:
    whats = [what for issues in ISSUES.values() for what in issues]
    assert len(set(whats)) == len(whats)
    assert set(ISSUES) <= set(NAMES)


# ------------------------------------------------------------------------------- examples


def test_examples_of_leaks_are_pairs_and_those_of_two_labels_come_first(tmp_path: Path) -> None:
    copies = {"test/a/copy.png": stock(0), "test/b/other.png": stock(1)}
    finding = found(dataset_of(tmp_path, "classification", classification() | copies))[
        "duplicates-across-splits"
    ]
    assert finding.examples == (("test/b/other.png", "train/a/1.png"), ("test/a/copy.png", "train/a/0.png"))
    assert finding.detail == "1 of them under another label"
    assert (finding.count, finding.of, finding.unit) == (2, 106, "test pictures")


def test_a_leak_is_told_of_the_split_that_it_is_worse_for(tmp_path: Path) -> None:
    copies = {"test/a/copy.png": stock(0), "val/a/copy.png": stock(1)}
    finding = found(dataset_of(tmp_path, "classification", classification() | copies))[
        "duplicates-across-splits"
    ]
    assert (finding.count, finding.of, finding.unit) == (1, 7, "val pictures")
    assert finding.detail == "1 of 105 in test"


def test_a_near_duplicate_that_is_an_exact_copy_too_is_counted_once(tmp_path: Path) -> None:
    files = PLANTED["near-duplicates-across-splits"].files() | {"test/a/copy.png": stock(0)}
    findings = found(dataset_of(tmp_path, "classification", files))
    assert findings["duplicates-across-splits"].examples == (("test/a/copy.png", "train/a/0.png"),)
    assert findings["near-duplicates-across-splits"].examples == (("test/a/x.jpg", "train/a/0.png"),)
    assert "groups-across-splits" not in findings


def test_held_out_pictures_without_a_box_test_no_class(tmp_path: Path) -> None:
    lists = {
        f"instances_{split}.json": coco_json(
            [{"file_name": f"{i}.png"} for i in range(num)], [], ("cat", "dog")
        )
        for split, num in {"val": 3, "test": 104}.items()
    }
    findings = found(dataset_of(tmp_path, "detection", SOUND["detection"][1]() | lists))
    assert findings["class-untested"].count == findings["class-unvalidated"].count == 2


def test_boxes_of_one_picture_are_one_picture_of_their_class(tmp_path: Path) -> None:
    birds = [
        {"image_id": 0, "category_id": 3, "bbox": [x, y, 6, 6]}
        for x in range(2, 34, 7)
        for y in range(2, 34, 7)
    ]
    files = detection(*birds, categories=("cat", "dog", "bird"))
    finding = found(dataset_of(tmp_path, "detection", files))["few-pictures"]
    assert (finding.count, finding.detail) == (1, "bird 1")
    assert finding.meaning.endswith("fewer than 20 pictures.")


def test_pictures_are_read_by_their_place_in_any_split(tmp_path: Path) -> None:
    files = classification()
    dataset = dataset_of(tmp_path, "classification", files)
    evidence = gather(dataset)
    places = [0, 43, 44, 49, 50, len(evidence) - 1]  # the ends of each split
    wanted = [evidence.ids[place] for place in places]
    assert read_pictures(dataset, evidence, [*wanted, "no such picture"]) == {id: files[id] for id in wanted}
    assert read_pictures(dataset, evidence, []) == {}
    last = dataset.info.num_images("test") - 1
    assert pictures_at(dataset, "test", [last, 3]) == {i: files[evidence.ids[50 + i]] for i in (3, last)}


def test_a_remedy_by_fractions_says_that_images_keep_their_side_without_fresh_splits() -> None:
    named = [check for check in CHECKS if "_fraction" in check.remedy]
    assert {"no-test-split", "few-test-pictures", "class-untested", "class-unvalidated"} <= {
        check.name for check in named
    }
    assert all("--fresh-splits" in check.remedy for check in named)


def test_ways_to_fit_long_pictures_are_told_with_the_families_that_have_them() -> None:
    [remedy] = [check.remedy for check in CHECKS if check.name == "extreme-aspect"]
    has = {
        model: set(get_args(model.model_fields["resize"].annotation))
        for model in (DetectionInput, InputConfig, LandmarkInput)
    }
    assert has == {
        DetectionInput: {"squash", "letterbox"},
        InputConfig: {"squash", "crop"},
        LandmarkInput: {"squash", "crop"},
    }
    for told in (": squash", "letterbox (detection alone)", "crop (all but detection)"):
        assert told in remedy


def test_shards_that_cannot_be_read_are_one_clear_line(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, "style", SOUND["style"][1]())
    shard = dataset.shards("train")[0]
    shard.write_bytes(b"no parquet")
    with pytest.raises(
        ValueError, match=r"train shards in .* cannot be read \(.*move .* away and fetch it again"
    ):
        find(dataset)
    (dataset.path / "report.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"report.json is missing; move .* away"):
        read_report(dataset.path)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40))
def test_groups_are_all_places_that_share_a_number(rows: list[tuple[int, bool]]) -> None:
    numbers = np.array([number for number, _ in rows], np.int64)
    where = np.array([inside for _, inside in rows], bool)
    expected = {tuple(i for i, row in enumerate(rows) if row == (number, True)) for number in range(6)}
    assert {tuple(group.tolist()) for group in groups_of(numbers, where)} == {
        g for g in expected if len(g) > 1
    }


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        ("damaged PNG: image file is truncated", "truncated"),
        ("damaged JPEG: Truncated File Read", "truncated"),
        ("damaged PNG: broken data stream when reading image file", "unreadable"),
        ("empty file", "not-an-image"),
        ("unsupported format PDF (supported: JPEG)", "not-an-image"),
        ("decompression bomb: 30000×30000 pixels, more than 120,000,000", "decompression-bomb"),
    ],
)
def test_a_reason_tells_its_kind(reason: str, fault: str) -> None:
    assert fault_of(reason) == fault


@pytest.mark.parametrize(
    ("data", "ndim", "fault"),
    [
        (b"", SIGNAL, "not-an-image"),
        (bytes(range(256)), SIGNAL, "not-an-image"),
        (b"only words", SIGNAL, "not-an-image"),
        (b"\xff\xfe words", SIGNAL, "not-an-image"),
        (wav(tone(0, 2)), VOLUME, "not-an-image"),
        (nifti(np.zeros((2, 2, 2)))[:-4], VOLUME, "truncated"),
        (wav(tone(0, 2))[:20], SIGNAL, "truncated"),
        (wav(tone(0, 2))[:-7], SIGNAL, "truncated"),
        (npy(tone(0, 2))[:-4], SIGNAL, "truncated"),
        (npy(tone(0, 2))[:20], SIGNAL, "unreadable"),
        (npy(np.array([{}, []], object)), SIGNAL, "not-numeric"),
        (npy(np.array(["a"])), SIGNAL, "not-numeric"),
        (npy(np.array([1 + 2j])), SIGNAL, "not-numeric"),
        (npy(np.array([1, np.inf])), SIGNAL, "not-finite"),
        (npy(np.array([np.nan, np.nan])), SIGNAL, "not-finite"),
        (npy(np.full((2, 2, 2), np.nan)), VOLUME, "not-finite"),
        (npy(np.zeros((2, 0))), SIGNAL, "no-values"),
        (wav(np.zeros(0)), SIGNAL, "no-values"),
        (npy(np.zeros((2, 2, 2))), SIGNAL, "wrong-shape"),
        (npy(np.zeros((513, 2))), SIGNAL, "wrong-shape"),
        (b"1,2\n3\n", SIGNAL, "wrong-shape"),
        (npy(np.zeros(5)), VOLUME, "wrong-shape"),
    ],
)
def test_what_a_signal_or_volume_is_refused_for_tells_its_kind(data: bytes, ndim: int, fault: str) -> None:
    with pytest.raises(DecodeError) as refused:
        decode_item(data, ndim)
    assert fault_of(str(refused.value)) == fault, str(refused.value)


# ------------------------------------------------------------------------------- severities and the gate


def check_of(stops_above: float | None) -> Check:
    none = Found(0, 0, "")
    return Check(
        name="x", severity="warning", meaning="m", remedy="r", find=lambda evidence: none, stops_above=stops_above
    )  # fmt: skip


@given(st.integers(1, 1000), st.integers(1, 1000), st.sampled_from([None, 1, 5]))
def test_an_error_is_a_share_above_the_limit_and_more_than_a_handful(
    count: int, of: int, limit_percent: int | None
) -> None:
    of = max(count, of)
    limit = None if limit_percent is None else limit_percent / 100
    finding = make_finding(check_of(limit), Found(count, of, "pictures"), "classification")
    grave = limit_percent is not None and 100 * count > limit_percent * of and count >= FEWEST_TO_STOP
    assert finding.severity == ("error" if grave else "warning")


@pytest.mark.parametrize(("number", "severity"), [(FEWEST_TO_STOP - 1, "warning"), (FEWEST_TO_STOP, "error")])
def test_copies_in_the_test_stop_training_when_they_are_many(
    tmp_path: Path, number: int, severity: str
) -> None:
    copies = {f"test/a/copy{i}.png": stock(i) for i in range(number)}
    dataset = dataset_of(tmp_path, "classification", classification() | copies)
    assert found(dataset)["duplicates-across-splits"].severity == severity


def test_a_few_copies_in_a_small_validation_split_do_not_hide_many_in_the_test(tmp_path: Path) -> None:
    copies = {f"val/a/copy{i}.png": stock(i) for i in range(FEWEST_TO_STOP - 1)}
    copies |= {f"test/a/copy{i}.png": stock(10 + i) for i in range(2 * FEWEST_TO_STOP)}
    finding = found(dataset_of(tmp_path, "classification", classification() | copies))[
        "duplicates-across-splits"
    ]
    assert (finding.severity, finding.count, finding.of) == ("error", 10, 114)
    assert (finding.unit, finding.detail) == ("test pictures", "4 of 10 in val")


def test_the_gate_looks_once_at_a_dataset_and_again_when_it_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def count(dataset: Dataset) -> Evidence:
        looks.append(dataset.info.num_images("test"))
        return gather(dataset)

    monkeypatch.setattr("data.findings.gather", count)
    dataset = dataset_of(tmp_path, "classification", PLANTED["class-missing"].files())
    findings, verdict = examine(dataset, ())
    assert examine(Dataset.open(dataset.path), ("class-missing",))[0] is findings
    assert len(looks) == 1
    with pytest.raises(ValueError, match="faults that stop training: class-missing"):
        obey(findings, verdict)
    files = classification() | {"test/a/more.png": stock(900)}
    replaced = dataset_of(tmp_path / "next", "classification", files)
    shutil.rmtree(dataset.path)
    shutil.copytree(replaced.path, dataset.path)
    obey(*examine(Dataset.open(dataset.path), ()))
    assert looks == [108, 105]


def test_the_gate_stops_at_errors_that_are_not_accepted_and_names_them(tmp_path: Path) -> None:
    files = PLANTED["class-missing"].files() | PLANTED["cmyk"].add
    findings = find(dataset_of(tmp_path, "classification", files))
    assert [finding.severity for finding in findings.findings] == ["error", "warning"]
    verdict = judge(findings, ())
    assert [finding.name for finding in verdict.stopped_by] == ["class-missing"]
    text = refusal(findings, verdict)
    assert "\n" not in text
    assert "class-missing: 1 of 3 classes (33%) (c)" in text
    assert "./convoy data check set --html checks.html" in text
    assert text.endswith("--accept class-missing")
    waived = judge(findings, ("alpha", "class-missing", "cmyk"))
    assert waived.stopped_by == ()
    assert [finding.name for finding in waived.accepted] == ["class-missing", "cmyk"]
    assert waived.unused == ("alpha",)


def test_accepted_names_are_split_sorted_and_unknown_ones_refused() -> None:
    assert parse_accepted([]) == ()
    assert parse_accepted(["cmyk, alpha", "cmyk", " ,"]) == ("alpha", "cmyk")
    with pytest.raises(
        ValueError,
        match=r"--accept nope: no such check; known: alpha, animated, .*wrong-extension, wrong-shape$",
    ):
        parse_accepted(["cmyk,nope"])


@pytest.mark.parametrize(
    ("share", "text"), [(0.0004, "0.04%"), (0.0285, "2.9%"), (0.0999, "10%"), (0.5, "50%"), (1, "100%")]
)
def test_a_share_is_shown_with_two_digits(share: float, text: str) -> None:
    assert percent(share) == text


# ------------------------------------------------------------------------------- real sets


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "family", "names"),
    [
        ("cifar10_mini.tar", "classification", {}),
        (
            "bccd.tar",
            "detection",
            {
                "class-imbalance": 2,
                "few-test-pictures": 72,
                "box-empty": 2,
                "near-duplicates-across-splits": 1,
            },
        ),
        ("hymenoptera_240.tar", "classification", {"few-test-pictures": 48, "extreme-aspect": 1}),
    ],
)
def test_real_sets_may_be_trained_on_and_their_faults_are_told(
    tmp_path: Path, datasets_folder: Path, file: str, family: str, names: dict[str, int]
) -> None:
    config = IngestConfig(val_fraction=0.1, test_fraction=0.2, near_duplicate_distance=11, max_source_gb=1)
    ingest(datasets_folder / file, name="set", family=family, store=tmp_path, config=config)
    findings = find(Dataset.open(tmp_path / "set"))
    assert {finding.name: finding.count for finding in findings.findings} == names
    assert judge(findings, ()).stopped_by == ()


def test_equal_texts_have_equal_codes(tmp_path: Path) -> None:
    evidence = gather(dataset_of(tmp_path, "style", SOUND["style"][1]() | {"style/copy.png": stock(0)}))
    hashes = evidence.columns["sha256"].to_pylist()
    codes = codes_of(evidence.columns["sha256"]).tolist()
    assert len(set(hashes)) == len(set(codes)) == len(set(zip(hashes, codes, strict=True))) == len(hashes) - 1
    assert faults.duplicates(evidence).count + faults.duplicates_across_splits(evidence).count == 1
