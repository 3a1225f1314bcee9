"""Liveness: rates by hand, thresholds that keep what they promise, and sets in which nobody stands on two sides."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.aligned import FaceAlignment
from data.spoofs import ATTACKS
from tasks.facealign import open_aligner
from tasks.liveness import judge, threshold_at_apcer, threshold_at_bpcer
from tasks.metrics import wilson_interval
from tasks.spoofset import PeopleSplit, SpoofSet, write_spoof_set
from tests.annotated import ingest_source, rows_of
from tests.pictures import png, write_tree

SCORES = np.array([0.9, 0.8, 0.4, 0.7, 0.95, 0.6, 0.2, 0.1, 0.3, 0.85])
KINDS = ["real"] * 5 + ["print"] * 3 + ["replay"] * 2


def test_the_rates_are_those_worked_by_hand() -> None:
    got = judge(SCORES, KINDS, 0.5)
    assert got.bpcer.value == pytest.approx(1 / 5)  # 0.4
    assert got.apcer_by_type["print"].value == pytest.approx(1 / 3)  # 0.6
    assert got.apcer_by_type["replay"].value == pytest.approx(1 / 2)  # 0.85
    assert (got.worst_type, got.apcer) == ("replay", 0.5)
    assert got.acer == pytest.approx((1 / 2 + 1 / 5) / 2)
    assert got.bpcer.interval == wilson_interval(1, 5)


def test_a_face_at_the_threshold_is_accepted() -> None:
    got = judge(np.array([0.5, 0.5]), ["real", "print"], 0.5)
    assert (got.bpcer.value, got.apcer) == (0, 1)


def test_thresholds_are_those_worked_by_hand() -> None:
    # real: 0.4 0.7 0.8 0.9 0.95; one of five may be refused: all below 0.7
    assert threshold_at_bpcer(SCORES, KINDS, 0.2) == 0.7
    assert threshold_at_bpcer(SCORES, KINDS, 0.19) == 0.4
    assert threshold_at_bpcer(SCORES, KINDS, 0.0) == 0.4
    # of replay one of two may be accepted, of print one of three: just above 0.3, and just above 0.2
    assert threshold_at_apcer(SCORES, KINDS, 0.5) == np.nextafter(0.3, 1)
    # none may: just above 0.85
    assert threshold_at_apcer(SCORES, KINDS, 0.0) == np.nextafter(0.85, 1)
    hundred = np.concatenate([np.arange(100) / 100, [0.0]])
    assert threshold_at_bpcer(hundred, ["real"] * 100 + ["print"], 0.29) == 0.29


scored = st.lists(
    st.tuples(st.sampled_from(["real", "print", "replay"]), st.integers(0, 20).map(lambda n: n / 20)),
    min_size=1,
).map(lambda rest: [("real", 0.5), ("print", 0.5), *rest])


@given(scored, st.floats(0, 0.999))
def test_a_threshold_keeps_its_promise_and_no_better_one_does(
    faces: list[tuple[str, float]], share: float
) -> None:
    kinds, scores = [kind for kind, _ in faces], np.array([score for _, score in faces])
    at_bpcer, at_apcer = (fit(scores, kinds, share) for fit in (threshold_at_bpcer, threshold_at_apcer))
    assert judge(scores, kinds, at_bpcer).bpcer.value <= share + 1e-9
    assert judge(scores, kinds, at_apcer).apcer <= share + 1e-9
    for each in {*scores, 1.1}:
        if judge(scores, kinds, each).bpcer.value <= share:
            assert each <= at_bpcer
        if judge(scores, kinds, each).apcer <= share:
            assert each >= at_apcer


@pytest.mark.parametrize(
    ("scores", "kinds", "says"),
    [
        ([0.5], ["real"], "needs faces called 'real' and attacks"),
        ([0.5], ["print"], "needs faces called 'real' and attacks"),
        ([0.5, float("nan")], ["real", "print"], "must be finite"),
        ([0.5], ["real", "print"], "one kind for each"),
    ],
)
def test_what_has_no_rates_is_refused(scores: list[float], kinds: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        judge(np.array(scores), kinds, 0.5)


def test_a_rate_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bpcer \(=1\.0\)"):
        threshold_at_bpcer(SCORES, KINDS, 1.0)
    with pytest.raises(ValueError, match=r"apcer \(=-0\.1\)"):
        threshold_at_apcer(SCORES, KINDS, -0.1)


# --- the set ---------------------------------------------------------------------------------------------------


def people(num: int, each: int = 2) -> dict[str, bytes]:
    return {
        f"lfw/p{i:02d}/p{i:02d}_{j:04d}.png": png(10 * i + j) for i in range(num) for j in range(1, each + 1)
    }


def simulate(source: Path, out: Path, seed: int = 0) -> SpoofSet:
    return write_spoof_set(
        source, out, open_aligner(FaceAlignment(method="none", side_px=32)), seed, PeopleSplit()
    )


def test_nobody_stands_on_two_sides_and_each_face_is_there_in_every_way(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "in", people(24))
    written = simulate(source, tmp_path / "out")
    files = sorted(file.relative_to(tmp_path / "out").parts for file in (tmp_path / "out").rglob("*.jpg"))
    assert len(files) == 24 * 2 * 3
    sides: dict[str, set[str]] = {}
    ways: dict[str, set[str]] = {}
    for split, kind, *_top, person, name in files:
        sides.setdefault(person, set()).add(split)
        ways.setdefault(name, set()).add(kind)
    assert all(len(split) == 1 for split in sides.values())
    assert {frozenset(kinds) for kinds in ways.values()} == {frozenset({"real", *ATTACKS})}
    assert sum(written.people.values()) == 24 and min(written.people.values()) > 0
    assert written.counts["train"]["real"] == 2 * written.people["train"]
    assert json.loads((tmp_path / "out" / "simulated.json").read_text())["simulated"] is True
    assert "No attack here was recorded" in (tmp_path / "out" / "README.txt").read_text()


def test_a_source_s_own_sides_are_kept_and_its_archive_gives_the_same(tmp_path: Path) -> None:
    lists = {"train_ids.txt": b"p00\np01\np02\np03\n", "val_ids.txt": b"p04\n", "test_ids.txt": b"p05\np06\n"}
    source = write_tree(tmp_path / "in", {**people(7), **lists})
    written = simulate(source, tmp_path / "out")
    assert written.people == {"train": 4, "val": 1, "test": 2}
    again = simulate(source, tmp_path / "again")
    assert again == written
    for file in (tmp_path / "out").rglob("*.jpg"):
        assert (tmp_path / "again" / file.relative_to(tmp_path / "out")).read_bytes() == file.read_bytes()
    other = simulate(source, tmp_path / "other", seed=1)
    assert other.counts == written.counts
    a_file = next((tmp_path / "out").rglob("*.jpg"))
    assert (tmp_path / "other" / a_file.relative_to(tmp_path / "out")).read_bytes() != a_file.read_bytes()


def test_a_picture_that_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "in", {**people(8), "lfw/p03/broken.png": b"no picture"})
    written = simulate(source, tmp_path / "out")
    assert list(written.left_out) == ["lfw/p03/broken.png"] or list(written.left_out) == ["p03/broken.png"]
    with pytest.raises(ValueError, match="is there and not empty"):
        simulate(source, tmp_path / "out")


def test_a_source_without_faces_leaves_nothing_behind(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "in", {"a/1.png": b"x", "b/1.png": b"y"})
    with pytest.raises(ValueError, match="no face in 2 pictures"):
        simulate(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_the_set_comes_in_as_classification_with_its_sides(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "in", people(40, 1))
    written = simulate(source, tmp_path / "out")
    _, dataset = ingest_source(tmp_path, "classification", tmp_path / "out")
    assert dataset.info.classes == ("real", "simulated_print", "simulated_replay")
    for split, counts in written.counts.items():
        assert dataset.info.counts[split] == counts
    [row, *_] = rows_of(dataset).values()
    assert row["format"] == "JPEG"
