"""Liveness: rates by hand, thresholds that keep what they promise, and sets in which nobody stands on two sides."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.aligned import FaceAlignment
from data.dataset import Dataset
from data.spoofs import ATTACKS
from tasks.calibrate import calibrate
from tasks.ensemble import combine
from tasks.facealign import open_aligner
from tasks.facepredict import FACE_SCHEMA
from tasks.liveness import LIVENESS, MAX_BPCER, judge, threshold_at_apcer, threshold_at_bpcer
from tasks.livenessmodel import (
    LivenessTest,
    Rate,
    answer_real,
    keep_threshold,
    open_liveness,
    scores_of,
    too_fine,
)
from tasks.metrics import wilson_interval
from tasks.modelfile import load_card, write_card
from tasks.predict import load_predictor
from tasks.spoofset import PeopleSplit, SpoofSet, write_spoof_set
from tests.annotated import ingest_source, rows_of
from tests.handmade import write_dataset, write_model
from tests.pictures import picture, png, write_tree

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
    ("rate", "at", "says"),
    [
        ("apcer", 0.5, ""),  # one of two replays, the fewest
        (
            "apcer",
            0.4,
            "a rate of 0.4 is less than one of 2 validation faces of replay (1/2 = 0.5): the threshold accepts",
        ),
        ("bpcer", 0.2, ""),
        (
            "bpcer",
            0.1,
            "a rate of 0.1 is less than one of 5 real faces of validation (1/5 = 0.2): the threshold refuses",
        ),
    ],
)
def test_a_rate_finer_than_the_faces_that_it_was_fitted_to_is_told(rate: Rate, at: float, says: str) -> None:
    judged = judge(SCORES, KINDS, 0.99)
    told = too_fine(LivenessTest(rate, at, judged, judged, "test"))
    assert told.startswith(says) and bool(told) == bool(says)
    if says:
        _low, high = wilson_interval(0, 2 if rate == "apcer" else 5)
        assert told.endswith(f"a rate of up to {high:.2g}")


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


@pytest.mark.parametrize("last", ["lfw/p07/p07_0002.png", "lfw/p09/broken.png"])
def test_how_far_a_simulation_is_is_told_to_the_end_once(tmp_path: Path, last: str) -> None:
    source = write_tree(tmp_path / "in", {**people(8), last: people(8).get(last, b"no picture")})
    num, told = len(list(source.rglob("*.png"))), []
    aligner = open_aligner(FaceAlignment(method="none", side_px=32))
    write_spoof_set(
        source, tmp_path / "out", aligner, 0, PeopleSplit(), on_progress=lambda *so_far: told.append(so_far)
    )
    assert told[-1] == (num, num) and told == sorted(told) and told.count((num, num)) == 1


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


# --- a model as a check ----------------------------------------------------------------------------------------

CLASSES = ("real", "simulated_print", "simulated_replay")


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A random classifier of faces and attacks with its threshold fitted, and what it was fitted to."""
    home = tmp_path_factory.mktemp("liveness")
    pixels = [np.asarray(picture(number, 16, 16).convert("L")) for number in range(90)]
    labels = [number % 3 for number in range(90)]
    dataset = write_dataset(home / "spoofs", pixels, labels, CLASSES, num_val=60)
    folder = write_model(home / "model", CLASSES, stored_px=16, crop_px=16, pad_px=0, sharpness=5)
    calibrate(folder, dataset)
    return folder, dataset


def test_training_fits_the_threshold_to_what_prediction_gives(checked: tuple[Path, Dataset]) -> None:
    folder, dataset = checked
    threshold = load_card(folder).thresholds[LIVENESS]
    scores, kinds = scores_of(load_predictor(folder), dataset, "val")
    assert threshold == pytest.approx(threshold_at_bpcer(scores, kinds, MAX_BPCER), abs=1e-5)
    assert judge(scores, kinds, threshold - 1e-5).bpcer.value <= MAX_BPCER
    others = write_model(folder.parent / "others", ("cat", "dog", "fish"), stored_px=16, crop_px=16, pad_px=0)
    renamed = Dataset(
        dataset.path,
        dataset.info.model_copy(
            update={
                "classes": ("cat", "dog", "fish"),
                "counts": {"val": {"cat": 20, "dog": 20, "fish": 20}, "test": {}},
            }
        ),
    )
    assert calibrate(others, renamed).thresholds == {}


def test_spoofs_are_told_and_never_reach_the_embedder(checked: tuple[Path, Dataset], tmp_path: Path) -> None:
    folder, dataset = checked
    check = open_liveness(folder)
    blobs = [b"no picture", *dataset.table("test", ["image"])["image"].to_pylist()]
    looks = check.look(blobs)
    assert np.isnan(looks.scores[0]) and looks.faults[0] is not None and "not an image" in looks.faults[0]
    assert 0 < sum(fault is None for fault in looks.faults[1:]) < 30  # some of both
    reached: list[bytes] = []

    def embed(some: Sequence[bytes]) -> pa.Table:
        reached.extend(some)
        rows = [[float(len(blob)), 0.0] for blob in some]
        return pa.table([rows, [None] * len(some)], schema=FACE_SCHEMA)

    rows = answer_real(check, embed, blobs).to_pylist()
    assert reached == [blob for blob, fault in zip(blobs, looks.faults, strict=True) if fault is None]
    for blob, score, row in zip(blobs[1:], looks.scores[1:], rows[1:], strict=True):
        assert row[LIVENESS] == pytest.approx(score)
        if score >= check.threshold:
            assert row["embedding"] == [len(blob), 0] and row["error"] is None
        else:
            assert row["embedding"] is None and row["error"].startswith("judged a spoof: it looks real to ")
    assert rows[0]["embedding"] is None and rows[0][LIVENESS] is None
    nobody = answer_real(open_liveness(folder, threshold=1.0), embed, blobs[:1]).to_pylist()
    assert nobody[0]["embedding"] is None  # no face at all is embedded, and that is no fault
    assert answer_real(check, embed, []).num_rows == 0 and not any(tmp_path.iterdir())


def test_a_threshold_is_kept_in_a_copy_of_the_model(checked: tuple[Path, Dataset], tmp_path: Path) -> None:
    folder, _dataset = checked
    before = load_card(folder)
    keep_threshold(folder, tmp_path / "strict", 0.75, "by hand")
    assert open_liveness(tmp_path / "strict").threshold == 0.75
    after = load_card(tmp_path / "strict")
    assert after.calibrated_on == f"{before.calibrated_on}; by hand" and load_card(folder) == before
    with pytest.raises(ValueError, match="is there and not empty"):
        keep_threshold(folder, tmp_path / "strict", 0.5, "again")
    # thresholds of members do not hold for both
    alone = combine([folder, tmp_path / "strict"], tmp_path / "pair")
    assert LIVENESS not in alone.thresholds


def test_what_is_no_liveness_check_is_refused(checked: tuple[Path, Dataset], tmp_path: Path) -> None:
    folder, _dataset = checked
    sizes: Any = {"stored_px": 16, "crop_px": 16, "pad_px": 0}
    with pytest.raises(ValueError, match="the classes of MODEL are cat, dog: a liveness check needs 'real'"):
        open_liveness(write_model(tmp_path / "pets", ("cat", "dog"), **sizes), "MODEL")
    unfitted = write_model(tmp_path / "unfitted", CLASSES, **sizes)
    with pytest.raises(
        ValueError, match=r"MODEL has no threshold of liveness: .*liveness evaluate MODEL --out"
    ):
        open_liveness(unfitted, "MODEL")
    card = load_card(folder).model_copy(update={"family": "faces"})
    write_card(unfitted, card)
    with pytest.raises(ValueError, match="MODEL is a model for faces; a liveness check is a classifier"):
        open_liveness(unfitted, "MODEL")
