"""Slices: each kind parts the split, and the worst come first."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from tasks.metrics import exact_interval
from tasks.slices import FEW, Slice, find_slices, group_sizes, measure, size_names, source_of

SHA = "0123456789abcdef" * 4


def rows(num: int, **columns: list[Any]) -> pa.Table:
    values: dict[str, list[Any]] = {
        "id": [f"{i}.png" for i in range(num)], "group": [SHA[:-4] + f"{i:04x}" for i in range(num)],
        "width": [8] * num, "height": [8] * num,
    }  # fmt: skip
    return pa.table(values | columns)


def slices_of(about: pa.Table, labels: list[int], right: list[bool], classes: str = "ab") -> list[Slice]:
    return find_slices(about, "classification", list(classes), np.array(labels), np.array(right))


@given(
    st.lists(
        st.tuples(
            st.integers(1, 50), st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 2), st.booleans()
        ),
        min_size=2,
        max_size=60,
    )
)
def test_the_slices_of_a_kind_hold_every_image_once(
    images: list[tuple[int, str, int, int, bool]],
) -> None:
    widths, folders, groups, labels, right = map(list, zip(*images, strict=True))
    about = rows(
        len(images),
        id=[f"{folder}/{i}.png" for i, folder in enumerate(folders)],
        width=widths,
        group=[f"person {group}" for group in groups],
    )
    found = slices_of(about, labels, right, "xyz")
    for kind in {each.kind for each in found}:
        inside = [each for each in found if each.kind == kind]
        assert len(inside) > 1
        assert sum(each.num_images for each in inside) == len(images)
        assert sum(each.num_images * each.accuracy for each in inside) == pytest.approx(sum(right))


def test_the_worst_come_first_and_are_marked() -> None:
    labels = [0] * 200 + [1] * 40
    right = [True] * 190 + [False] * 10 + [True] * 20 + [False] * 20
    worse, better = slices_of(rows(240), labels, right)
    assert (worse.name, worse.num_images, worse.accuracy) == ("b", 40, 0.5)
    assert (worse.accuracy_low, worse.accuracy_high) == exact_interval(20, 40)
    assert (worse.below, worse.few) == (True, False)  # up to 66.2%, of all 87.5% are right
    assert (better.name, better.accuracy, better.below) == ("a", 0.95, False)


@pytest.mark.parametrize("n", [30, 40, 100])
@pytest.mark.parametrize("accuracy", [0.98, 0.99, 0.9948])
def test_of_forty_slices_as_good_as_the_whole_at_most_one_is_marked(n: int, accuracy: float) -> None:
    """The exact rate: the probability of every number right that is marked."""

    def marked(num_right: int) -> bool:
        return measure("class", "a", list(range(n)), np.arange(n) < num_right, accuracy).below

    rate = sum(float(binom.pmf(k, n, accuracy)) for k in range(n + 1) if marked(k))
    assert 0 < rate <= 1 / 40
    assert marked(n * 8 // 10)
    assert not marked(n)


def test_a_slice_of_few_images_is_flagged_and_shown() -> None:
    found = slices_of(rows(FEW + 4), [0] * (FEW + 1) + [1] * 3, [True] * (FEW + 4))
    assert {each.name: each.few for each in found if each.kind == "class"} == {"a": False, "b": True}


def test_sizes_are_thirds_with_their_limits() -> None:
    about = rows(6, width=[10, 20, 30, 40, 50, 1000], height=[1] * 6)
    assert size_names(about, "classification") == (
        ["10 to 20 px"] * 2 + ["30 to 40 px"] * 2 + ["50 to 1,000 px"] * 2
    )
    two = rows(6, width=[8, 8, 8, 8, 8, 9])
    assert size_names(two, "classification") == ["64 px"] * 5 + ["72 px"]


def test_pictures_of_one_size_have_no_slices_by_size() -> None:
    assert {each.kind for each in slices_of(rows(4), [0, 0, 1, 1], [True] * 4)} == {"class"}


def test_signals_are_as_large_as_long_and_volumes_as_their_voxels() -> None:
    about = pa.table({"shape": [[2, 100], [1, 100], [1, 300]]})
    assert size_names(about, "signals") == ["100 samples", "100 samples", "300 samples"]
    about = pa.table({"shape": [[1, 2, 3, 4], [1, 5, 5, 5]]})
    assert size_names(about, "volumes") == ["24 voxels", "125 voxels"]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("7.png", ""),
        ("cat/7.png", ""),
        ("test/cat/7.png", ""),
        ("Training/cat/phone/7.png", "phone"),
        ("cat/phone/old/7.png", "phone"),
        ("clinic_b/7.png", "clinic_b"),
        ("clinic_b/cat/7.png", "clinic_b"),
    ],
)
def test_the_source_is_the_first_folder_that_is_neither_split_nor_class(name: str, source: str) -> None:
    assert source_of(name, "cat") == source


def test_groups_that_the_source_names_are_slices_and_near_duplicates_are_not() -> None:
    about = rows(6, group=["anna", "anna", "ben", "ben", "ben", "cleo"])
    kinds = {(each.kind, each.name) for each in slices_of(about, [0] * 6, [True] * 6)}
    assert kinds == {
        ("group", "anna"), ("group", "ben"), ("group", "cleo"),
        ("group size", "alone"), ("group size", "2 alike"), ("group size", "3 to 5 alike"),
    }  # fmt: skip
    alike = rows(6, group=[SHA, SHA, *(SHA[:-4] + f"{i:04x}" for i in range(4))])
    assert {(each.kind, each.name) for each in slices_of(alike, [0] * 6, [True] * 6)} == {
        ("group size", "alone"), ("group size", "2 alike")
    }  # fmt: skip
    assert group_sizes(["x"] * 9) == ["more than 5 alike"] * 9
