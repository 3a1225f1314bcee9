"""A source becomes a dataset that is the same each time, whole or not at all, and says what it left out."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import ingest as ingest_module
from data import measurement, storage
from data.checks import check
from data.dataset import SPLITS, Dataset, Split
from data.decode import decode_image
from data.description import channel_statistics, colour_covariance
from data.duplicates import join_groups
from data.findings import find
from data.ingest import IngestConfig, ingest
from data.measurement import measure
from data.report import IngestReport
from data.splits import assign_splits
from data.storage import plan_shards
from tests.datasets import DATASETS
from tests.pictures import class_tree, encode, picture, png, png_bomb, write_tree
from tests.platforms import wait_for
from tests.test_data_archive import pack_tar, pack_zip
from tests.test_data_decode import with_orientation

CONFIG = IngestConfig(val_fraction=0.2, test_fraction=0.2, near_duplicate_distance=3, max_source_gb=1)


def run(source: Path | str, store: Path, name: str = "set", **options: Any) -> IngestReport:
    options.setdefault("config", CONFIG)
    return ingest(source, name=name, family="classification", store=store, **options)


def ingest_files(tmp_path: Path, files: dict[str, bytes], **options: Any) -> tuple[IngestReport, Dataset]:
    source = write_tree(tmp_path / "source", files)
    report = run(source, tmp_path / "store", **options)
    return report, Dataset.open(tmp_path / "store" / "set")


def counts(dataset: Dataset) -> dict[str, int]:
    """What the checks find."""
    return {finding.name: finding.count for finding in find(dataset).findings}


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rows_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {
        row["id"]: {**row, "split": split} for split in SPLITS for row in dataset.table(split).to_pylist()
    }


# ------------------------------------------------------------------------------------- what is stored


def test_every_image_is_stored_byte_for_byte_with_its_label(tmp_path: Path) -> None:
    files = class_tree("abc", 8)
    report, dataset = ingest_files(tmp_path, files)
    rows = rows_of(dataset)
    assert {name: row["image"] for name, row in rows.items()} == files
    for name, row in rows.items():
        assert dataset.info.classes[row["label"]] == name.split("/")[0]
        assert row["sha256"] == hashlib.sha256(files[name]).hexdigest()
        assert (row["format"], row["width"], row["height"]) == ("PNG", 48, 40)
    assert report.num_images == 24
    assert report.total_bytes == sum(map(len, files.values()))
    assert sum(sum(counts.values()) for counts in report.counts.values()) == 24
    assert check(dataset).problems == ()


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", class_tree("abc", 10))
    run(source, tmp_path / "one")
    run(source, tmp_path / "two")
    time.sleep(0.01)
    run(source, tmp_path / "two")  # over the older one
    assert digests(tmp_path / "one" / "set") == digests(tmp_path / "two" / "set")
    assert names_in(tmp_path / "two") == [".set.lock", "set"]


def test_folder_tar_zip_and_table_give_the_same_shards(tmp_path: Path) -> None:
    files = class_tree("abc", 6)
    source = write_tree(tmp_path / "source", files)
    table = "path,label\n" + "".join(f"{name},{name[0]}\n" for name in reversed(files))
    (tmp_path / "source.csv").write_text(table.replace("\n", "\nsource/").removesuffix("source/"))
    sources: list[Path] = [
        source,
        pack_tar(tmp_path / "x.tar.xz", {f"wrapped/{name}": files[name] for name in reversed(files)}, "w:xz"),
        pack_zip(tmp_path / "x.zip", files),
    ]
    found = []
    for number, path in enumerate(sources):
        run(path, tmp_path / str(number))
        found.append(digests(tmp_path / str(number) / "set"))
        assert "report.json" in found[-1]
        found[-1].pop("dataset.json")  # it names the source
    assert found[0] == found[1] == found[2]
    run(tmp_path / "source.csv", tmp_path / "table")
    by_table = rows_of(Dataset.open(tmp_path / "table" / "set"))
    by_folder = rows_of(Dataset.open(tmp_path / "0" / "set"))
    assert {name.removeprefix("source/"): row["split"] for name, row in by_table.items()} == {
        name: row["split"] for name, row in by_folder.items()
    }


def test_several_processes_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = class_tree("ab", 12) | {"a/bad.png": b"no"}
    ingest_files(tmp_path / "one", files)
    monkeypatch.setattr(measurement, "IN_PROCESS_IMAGES", 0)
    monkeypatch.setattr(measurement, "CHUNK_IMAGES", 5)
    heard: list[tuple[int, int | None]] = []
    ingest_files(tmp_path / "two", files, workers=2, progress=lambda done, total: heard.append((done, total)))
    assert digests(tmp_path / "one/store/set") == digests(tmp_path / "two/store/set")
    assert heard == [(0, 25), (5, 25), (10, 25), (15, 25), (20, 25), (25, 25)]


def test_statistics_are_those_of_all_pixels(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": png(7 * i, width=20 + i, height=30) for name in "ab" for i in range(6)}
    _, dataset = ingest_files(tmp_path, files)
    train = [row["image"] for row in rows_of(dataset).values() if row["split"] == "train"]
    pixels = (
        np.concatenate([np.asarray(decode_image(data, channels=3)).reshape(-1, 3) for data in train]) / 255
    )
    assert np.allclose(dataset.info.channel_mean, pixels.mean(0), atol=1e-7)
    assert np.allclose(dataset.info.channel_std, pixels.std(0), atol=1e-7)
    assert dataset.info.channels == 3
    assert dataset.info.width_px == (20, 23, 25)


def test_a_dataset_of_grey_images_has_one_channel_and_one_coloured_image_makes_it_three(
    tmp_path: Path,
) -> None:
    files = {
        f"{name}/{i}.png": encode(picture(99 * ord(name) + i, mode="L")) for name in "ab" for i in range(6)
    }
    _, grey = ingest_files(tmp_path / "grey", files)
    _, mixed = ingest_files(tmp_path / "mixed", files | {"a/colour.png": png(5)})
    assert grey.info.channels == len(grey.info.channel_mean) == 1
    assert mixed.info.channels == len(mixed.info.channel_mean) == 3


def test_the_colour_covariance_is_that_of_the_pixels() -> None:
    images = [picture(i, 40 + i, 50) for i in range(3)]
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3) for image in images]).astype(np.float64)
    found = colour_covariance(measure([encode(image) for image in images]))
    assert np.allclose(found, np.cov(pixels.T, bias=True), atol=1e-3)
    large = picture(9, 900, 700)
    sparse, exact = colour_covariance(measure([encode(large)])), np.cov(np.asarray(large).reshape(-1, 3).T)
    assert np.allclose(sparse, exact, rtol=0.1, atol=0.02 * exact.max())
    assert colour_covariance(measure([encode(picture(1, mode="L"))])) == ()


def test_a_constant_channel_has_a_deviation_to_divide_by() -> None:
    flat = measure([encode(Image.new("RGB", (5, 5), (10, 255, 0)))])
    mean, std = channel_statistics(flat, 3)
    assert mean == (round(10 / 255, 8), 1.0, 0.0)
    assert std == (round(1 / 255, 8),) * 3


@given(st.lists(st.integers(0, 90 << 20), max_size=60), st.integers(0, 40_000))
@settings(max_examples=60, deadline=None)
def test_shards_cover_all_rows_within_their_limits(sizes: list[int], small: int) -> None:
    for case in (sizes, [100] * small):
        shards = plan_shards(case)
        assert [row for start, stop in shards for row in range(start, stop)] == list(range(len(case)))
        for start, stop in shards:
            assert 0 < stop - start <= storage.SHARD_ROWS
            assert sum(case[start:stop]) <= storage.SHARD_BYTES or stop - start == 1
        if len(case) > storage.MIN_SHARDS_FROM:
            assert len(shards) >= storage.MIN_SHARDS


def test_shards_are_read_in_runs_of_few_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ROW_GROUP_BYTES", 300)
    _, dataset = ingest_files(tmp_path, class_tree("ab", 20))
    file = pq.ParquetFile(dataset.shards("train")[0])
    groups = [file.read_row_group(i, ["image"])["image"].to_pylist() for i in range(file.num_row_groups)]
    assert [image for group in groups for image in group] == dataset.table("train")["image"].to_pylist()
    assert len(groups) > 1
    assert all(sum(map(len, group)) <= 300 or len(group) == 1 for group in groups)


# -------------------------------------------------------------------------------------------- splits

sources = st.sampled_from([None, "train", "val", "test"])
items = st.lists(st.tuples(sources, st.sampled_from("abcdefgh")), min_size=1, max_size=30)


def split_of(pairs: list[tuple[Split | None, str]]) -> list[Split] | None:
    try:
        return assign_splits([split for split, _ in pairs], [group for _, group in pairs], CONFIG)
    except ValueError as error:
        assert "no image is left for training" in str(error)  # noqa: PT017
        return None


@given(items, st.randoms())
def test_splits_do_not_depend_on_order_and_the_sources_own_stand(pairs: Any, random: Any) -> None:
    splits = split_of(pairs)
    mixed = list(range(len(pairs)))
    random.shuffle(mixed)
    again = split_of([pairs[i] for i in mixed])
    if splits is None or again is None:
        assert splits is None
        assert again is None
        return
    assert [splits[i] for i in mixed] == again
    has = {split for split, _ in pairs}
    for (given_split, _), split in zip(pairs, splits, strict=True):
        if given_split in ("val", "test"):
            assert split == given_split
        if given_split == "train":
            assert split == "train" or split not in has


@given(st.lists(st.text(max_size=5), min_size=1, max_size=60), st.lists(st.text(max_size=5), max_size=30))
def test_no_group_stands_on_two_sides_and_adding_files_moves_none(groups: list[str], more: list[str]) -> None:
    before = split_of([(None, group) for group in groups])
    after = split_of([(None, group) for group in [*more, *groups]])
    if before is None or after is None:
        return
    assert after[len(more) :] == before
    sides = dict(zip([*more, *groups], after, strict=True))
    assert all(sides[group] == side for group, side in zip(groups, before, strict=True))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=80), st.randoms())
def test_no_class_with_three_groups_or_more_is_left_out_of_a_split(pairs: Any, random: Any) -> None:
    """Unless its groups hold what is the last of another class; and order does not matter here, either."""
    groups, labels = [str(group) for group, _ in pairs], [label for _, label in pairs]
    try:
        splits = assign_splits([None] * len(pairs), groups, CONFIG, labels=labels)
        mixed = list(range(len(pairs)))
        random.shuffle(mixed)
        again = assign_splits(
            [None] * len(pairs), [groups[i] for i in mixed], CONFIG, labels=[labels[i] for i in mixed]
        )
    except ValueError as error:
        assert "no image is left for training" in str(error)  # noqa: PT017
        return
    assert again == [splits[i] for i in mixed]
    side_of_group = dict(zip(groups, splits, strict=True))
    assert [side_of_group[group] for group in groups] == splits
    alone = {
        group
        for group in groups
        if len({lb for g, lb in zip(groups, labels, strict=True) if g == group}) == 1
    }
    for label in set(labels):
        own = {group for group, lb in zip(groups, labels, strict=True) if lb == label}
        sides = [side_of_group[group] for group in own]
        if own <= alone and sides.count("train") > 1:
            assert set(sides) == {"train", "val", "test"}


def test_a_class_without_a_test_picture_gets_its_group_of_least_hash_and_known_ones_stay() -> None:
    groups = [f"g{i}" for i in range(200)]
    plain = assign_splits([None] * 200, groups, CONFIG)
    train = [group for group, side in zip(groups, plain, strict=True) if side == "train"]
    rare = set(train[:4])
    labels = [int(group in rare) for group in groups]
    filled = dict(zip(groups, assign_splits([None] * 200, groups, CONFIG, labels=labels), strict=True))
    by_hash = sorted(rare, key=lambda group: hashlib.sha256(group.encode()).digest())
    assert [filled[group] for group in by_hash] == ["test", "val", "train", "train"]
    assert all(filled[g] == side for g, side in zip(groups, plain, strict=True) if g not in rare)
    known: list[Split | None] = ["train" if group in rare else None for group in groups]
    stay = dict(zip(groups, assign_splits([None] * 200, groups, CONFIG, known, labels), strict=True))
    assert {stay[group] for group in rare} == {"train"}


def test_split_shares_are_about_what_was_asked_for() -> None:
    splits = assign_splits([None] * 20_000, [str(i) for i in range(20_000)], CONFIG)
    for split, share in (("test", 0.2), ("val", 0.2), ("train", 0.6)):
        assert abs(splits.count(split) / 20_000 - share) < 0.012  # type: ignore[arg-type]


def test_a_source_without_a_test_split_gets_one_from_train_and_keeps_its_val() -> None:
    given_splits: list[Split | None] = ["train"] * 10_000 + ["val"] * 1_000
    splits = assign_splits(given_splits, [str(i) for i in range(11_000)], CONFIG)
    assert splits[10_000:] == ["val"] * 1_000
    assert abs(splits[:10_000].count("test") / 10_000 - CONFIG.test_fraction) < 0.012
    assert "val" not in splits[:10_000]


def test_an_image_without_a_split_follows_its_group() -> None:
    given_splits: list[Split | None] = ["test", None, "train", None, "val"]
    assert assign_splits(given_splits, ["ann", "ann", "bob", "bob", "eve"], CONFIG) == [
        "test", "test", "train", "train", "val",
    ]  # fmt: skip


def test_validation_is_carved_out_of_train_and_test_stays(tmp_path: Path) -> None:
    files = class_tree("ab", 25, "train/") | {
        name.replace("train", "test"): png(9000 + i) for i, name in enumerate(class_tree("ab", 5, "train/"))
    }
    report, dataset = ingest_files(tmp_path, files)
    for name, row in rows_of(dataset).items():
        assert row["split"] in (("test",) if name.startswith("test/") else ("train", "val"))
    assert 2 <= dataset.info.num_images("val") <= 20
    assert report.source_splits == ("train", "test")
    assert check(dataset).problems == ()


def test_groups_and_duplicates_that_touch_are_one_group() -> None:
    given = ["bob", None, "ann", None, "eve", None]
    clusters = ["1", "1", "1", "2", "3", "4"]
    assert join_groups(given, clusters) == ["ann", "ann", "ann", "2", "eve", "4"]


@given(st.lists(st.tuples(st.none() | st.sampled_from("abc"), st.sampled_from("12345")), max_size=20))
def test_joined_groups_part_no_group_and_no_cluster(pairs: list[tuple[str | None, str]]) -> None:
    joined = join_groups([group for group, _ in pairs], [cluster for _, cluster in pairs])
    for i, (group, cluster) in enumerate(pairs):
        for j, (other_group, other_cluster) in enumerate(pairs):
            if cluster == other_cluster or (group and group == other_group):
                assert joined[i] == joined[j]


def test_given_groups_are_kept_together(tmp_path: Path) -> None:
    files = {f"{i}.png": png(i) for i in range(40)}
    rows = "".join(f"{i}.png,{'ab'[i % 2]},person{i // 5}\n" for i in range(40))
    write_tree(tmp_path / "source", files | {"list.csv": ("path,label,group\n" + rows).encode()})
    run(tmp_path / "source" / "list.csv", tmp_path / "store")
    sides: dict[str, set[str]] = {}
    for row in rows_of(Dataset.open(tmp_path / "store" / "set")).values():
        sides.setdefault(row["group"], set()).add(row["split"])
    assert set(sides) == {f"person{i}" for i in range(8)}
    assert all(len(side) == 1 for side in sides.values())


# ---------------------------------------------------------------------------------------- duplicates


def test_duplicates_are_counted_and_stay_on_one_side(tmp_path: Path) -> None:
    files = class_tree("ab", 15)
    for i in range(8):
        files[f"a/copy{i}.jpg"] = encode(picture(i), "JPEG", quality=80)
    files["a/again.png"] = files["a/0.png"]
    files["b/other label.png"] = files["a/1.png"]
    report, dataset = ingest_files(tmp_path, files)
    assert report.exact_duplicates == 2
    assert report.near_duplicate_clusters == 8
    assert report.near_duplicate_images == 18
    assert report.label_conflicts == 1
    assert report.label_conflict_examples == (("a/1.png", "b/other label.png"),)
    rows = rows_of(dataset)
    for i in range(8):
        assert rows[f"a/copy{i}.jpg"]["split"] == rows[f"a/{i}.png"]["split"]
        assert rows[f"a/copy{i}.jpg"]["group"] == rows[f"a/{i}.png"]["group"]
    assert rows["b/other label.png"]["split"] == rows["a/1.png"]["split"]
    assert not {name for name in counts(dataset) if name.endswith("across-splits")}


def test_duplicates_across_the_sources_splits_are_reported_and_left(tmp_path: Path) -> None:
    files = class_tree("ab", 8, "train/") | {"test/b/new.png": png(77)}
    files["test/a/same.png"] = files["train/a/3.png"]
    files["test/a/near.jpg"] = encode(picture(4), "JPEG", quality=80)
    report, dataset = ingest_files(tmp_path, files, config=CONFIG.model_copy(update={"val_fraction": 0.0}))
    rows = rows_of(dataset)
    assert rows["test/a/same.png"]["split"] == "test"
    assert rows["train/a/3.png"]["split"] == "train"
    found = {finding.name: finding for finding in find(dataset).findings}
    same, near = (found[f"{kind}duplicates-across-splits"] for kind in ("", "near-"))
    assert (same.count, same.examples) == (1, (("test/a/same.png", "train/a/3.png"),))
    assert (near.count, near.examples) == (1, (("test/a/near.jpg", "train/a/4.png"),))
    assert "no val pictures" in report.notes
    assert check(dataset).problems == ()


# ------------------------------------------------------------------------------------ what goes wrong


def test_bad_files_are_set_aside_with_a_reason_and_the_rest_is_used(tmp_path: Path) -> None:
    good = class_tree("ab", 8)
    bad = {
        "a/zero.png": (b"", "empty file"),
        "a/text.jpg": (b"this is no picture", "not an image"),
        "a/half.png": (png(50)[:900], "damaged PNG"),
        "b/bomb.png": (png_bomb(30_000, 30_000), "decompression bomb"),
        "b/paper.pdf": (b"%PDF-1.4", "unsupported format PDF"),
        "b/half.jpg": (encode(picture(51), "JPEG")[:700], "damaged JPEG"),
    }
    report, dataset = ingest_files(tmp_path, good | {name: data for name, (data, _) in bad.items()})
    assert sorted(rows_of(dataset)) == sorted(good)
    assert {entry.id for entry in report.set_aside} == set(bad)
    for entry in report.set_aside:
        data, reason = bad[entry.id]
        assert entry.reason.startswith(reason)
        assert entry.sha256 == hashlib.sha256(data).hexdigest()
    assert dataset.info.set_aside == len(bad)


def test_files_that_cannot_be_read_are_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tree(tmp_path / "source", class_tree("ab", 8))
    (source / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(source / "b" / "pipe")
    (source / "b" / "huge.png").write_bytes(bytes(90_000))
    monkeypatch.setattr(ingest_module, "MAX_IMAGE_BYTES", 80_000)
    report = run(source, tmp_path / "store")
    reasons = {entry.id: entry.reason for entry in report.set_aside}
    assert reasons["a/gone.png"] == "cannot be read: No such file or directory"
    assert reasons["b/pipe"] == "not a regular file"
    assert reasons["b/huge.png"].startswith("larger than")
    assert report.num_images == 16


def test_odd_images_are_used_and_counted(tmp_path: Path) -> None:
    frames = [picture(seed).convert("P") for seed in (61, 62)]
    deep = Image.fromarray(np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30)
    files = class_tree("ab", 5) | {
        "a/turned.jpg": with_orientation(picture(60), 6, "JPEG"),
        "a/moving.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "a/wrong.jpg": png(63),
        "a/none": png(64),
        "b/alpha.png": encode(picture(65).convert("RGBA")),
        "b/print.jpg": encode(picture(66).convert("CMYK"), "JPEG"),
        "b/deep.png": encode(deep),
    }
    report, dataset = ingest_files(tmp_path, files)
    assert report.set_aside == ()
    assert report.oddities == {
        "rotated by EXIF": 1,
        "animated, first frame used": 1,
        "with alpha, laid on white": 1,
        "CMYK": 1,
        "16-bit": 1,
        "with another extension than their content": 2,
    }
    assert report.formats == {"GIF": 1, "JPEG": 2, "PNG": 14}
    turned = rows_of(dataset)["a/turned.jpg"]
    assert (turned["width"], turned["height"]) == (40, 48)


def sources_with_faults() -> dict[str, tuple[Callable[[Path], Path | str], str]]:
    def tree(files: dict[str, bytes]) -> Callable[[Path], Path]:
        return lambda root: write_tree(root / "source", files)

    return {
        "missing": (lambda root: root / "nowhere", "no such source: .*nowhere; give a folder"),
        "unknown sample": (lambda root: "sklearn:cats", "no built-in dataset 'sklearn:cats'"),
        "empty folder": (
            lambda root: write_tree(root / "source", {"x": b""}).parent / "source",
            "no pictures found",
        ),
        "one image": (tree({"a/1.png": png(1)}), r"only one picture \(a/1\.png\)"),
        "one class": (tree(class_tree("a", 5)), "only one class"),
        "class of bad images": (
            tree(class_tree("a", 5) | {"b/1.png": b"no", "b/2.png": b""}),
            "no usable picture in the classes b; for instance b/1.png: not an image",
        ),
        "class without images": (
            tree(class_tree("ab", 5) | {"c/README": b""}),
            "no picture in the class folders c",
        ),
        "not an archive": (lambda root: write_tree(root, {"x.bin": b"hello"}) / "x.bin", "neither a folder"),
    }


@pytest.mark.parametrize("case", list(sources_with_faults()))
def test_a_source_that_cannot_work_is_one_clear_line_and_nothing_is_left(tmp_path: Path, case: str) -> None:
    make, message = sources_with_faults()[case]
    source = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        run(source, tmp_path / "store")
    assert "\n" not in str(error.value)
    assert [name for name in names_in(tmp_path / "store") if not name.endswith(".lock")] == []


@pytest.mark.parametrize("name", ["", "Cats", "a b", "../x", "-x", "x/y", ".x", "é", "x" * 65])
def test_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must be lower-case letters"):
        run("sklearn:digits", tmp_path, name)


def test_a_name_of_another_family_or_of_no_dataset_is_refused(tmp_path: Path) -> None:
    report, dataset = ingest_files(tmp_path, class_tree("ab", 5))
    file = dataset.path / "dataset.json"
    file.write_text(file.read_text().replace('"classification"', '"detection"'))
    with pytest.raises(ValueError, match=r"name \(='set'\) is taken by a dataset of family detection"):
        run(tmp_path / "source", tmp_path / "store")
    (tmp_path / "store" / "photos").mkdir()
    with pytest.raises(ValueError, match="is there but is no dataset"):
        run(tmp_path / "source", tmp_path / "store", "photos")
    with pytest.raises(ValueError, match=r"family \(='birds'\) has no reader"):
        ingest(tmp_path / "source", name="new", family="birds", store=tmp_path / "store", config=CONFIG)
    assert report.num_images == 10


@pytest.mark.parametrize(
    "values",
    [
        {"val_fraction": 0.5, "test_fraction": 0.5},
        {"val_fraction": -0.1},
        {"near_duplicate_distance": 12},
        {"max_source_gb": 0},
        {"seed": 1},
    ],
)
def test_bad_parameters_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ingest"):
        IngestConfig.parse({**CONFIG.model_dump(), **values}, "ingest")


def test_when_no_image_is_left_for_training_it_says_so() -> None:
    config = CONFIG.model_copy(update={"test_fraction": 0.999, "val_fraction": 0.0})
    with pytest.raises(ValueError, match=r"no image is left for training: 3 images in 2 groups"):
        assign_splits([None] * 3, ["a", "b", "b"], config)


# ---------------------------------------------------------------------------- interrupted, at once, later


def test_a_failed_ingest_leaves_the_older_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, dataset = ingest_files(tmp_path, class_tree("ab", 5))
    before = digests(dataset.path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.pq, "ParquetWriter", full)
    write_tree(tmp_path / "source", {"a/new.png": png(70)})
    with pytest.raises(OSError, match=r"no space left in .*; nothing was changed there"):
        run(tmp_path / "source", tmp_path / "store")
    assert digests(dataset.path) == before
    assert names_in(tmp_path / "store") == [".set.lock", "set"]


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", class_tree("ab", 5))

    def progress(done: int, total: int | None) -> None:
        if done == total:
            (source / "a" / "3.png").write_bytes(png(71))

    with pytest.raises(ValueError, match=r"a/3\.png changed while it was ingested"):
        run(source, tmp_path / "store", progress=progress)


def test_what_dead_processes_left_is_cleaned_up_and_a_dataset_moved_aside_comes_back(tmp_path: Path) -> None:
    _, dataset = ingest_files(tmp_path, class_tree("ab", 5))
    before = digests(dataset.path)
    store = dataset.path.parent
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (store / f".set.partial-{dead.pid}-x").mkdir()
    (store / f".set.partial-{os.getpid()}-other").mkdir()  # of a living process: not ours to remove
    # killed between two renames, by an earlier version
    dataset.path.rename(store / f".set.old-{dead.pid}")
    with pytest.raises(ValueError, match="only one class"):
        run(write_tree(tmp_path / "bad", class_tree("a", 3)), store)
    assert digests(dataset.path) == before
    assert names_in(store) == [".set.lock", f".set.partial-{os.getpid()}-other", "set"]


def test_a_newer_dataset_takes_the_name_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, dataset = ingest_files(tmp_path, class_tree("ab", 5))
    before = digests(dataset.path)
    rename, there = Path.rename, []

    def seen(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        there.append(dataset.path.is_dir())
        return moved

    monkeypatch.setattr(Path, "rename", seen)
    write_tree(tmp_path / "source", {"a/new.png": png(70)})
    run(tmp_path / "source", tmp_path / "store")
    assert all(there) and digests(dataset.path) != before
    assert names_in(tmp_path / "store") == [".set.lock", "set"]


@pytest.mark.parametrize(("step", "newer"), [(1, False), (2, False), (3, True), (4, True)])
def test_on_a_disk_that_cannot_do_so_a_dataset_of_before_or_after_comes_back(
    step: int, newer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, dataset = ingest_files(tmp_path, class_tree("ab", 5))
    before, store, steps = digests(dataset.path), dataset.path.parent, []

    def cannot(*_: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        steps.append(path)
        if len(steps) == step:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "_exchange", cannot)
        patched.setattr(Path, "rename", interrupted)
        write_tree(tmp_path / "source", {"a/new.png": png(70)})
        with pytest.raises(KeyboardInterrupt) if step < 4 else nullcontext():
            run(tmp_path / "source", store)
    assert len(steps) == min(step, 3)
    with pytest.raises(ValueError, match="only one class"):
        run(write_tree(tmp_path / "bad", class_tree("a", 3)), store)
    assert check(Dataset.open(dataset.path)).problems == ()
    assert (digests(dataset.path) != before) == newer
    assert names_in(store) == [".set.lock", "set"]


INGEST_SCRIPT = """
import sys
from pathlib import Path
from data import measurement
from data.ingest import IngestConfig, ingest

if __name__ == "__main__":
    source, store, workers = sys.argv[1:]
    measurement.IN_PROCESS_IMAGES, measurement.CHUNK_IMAGES = 10, 4
    config = IngestConfig(val_fraction=0.2, test_fraction=0.2, near_duplicate_distance=3, max_source_gb=1)
    show = lambda done, total: print(done, flush=True)
    ingest(source, name="set", family="classification", store=Path(store), config=config, workers=int(workers),
           progress=show)
"""


def start_ingest(tmp_path: Path, source: Path, workers: int) -> "subprocess.Popen[str]":
    script = tmp_path / "script.py"
    script.write_text(INGEST_SCRIPT)
    command = [sys.executable, str(script), str(source), str(tmp_path / "store"), str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_of_two_at_once_one_whole_dataset_stays(tmp_path: Path) -> None:
    # the classes tell which one it is
    sources = [write_tree(tmp_path / name, class_tree(name, 12)) for name in ("ab", "cd")]
    processes = [start_ingest(tmp_path, source, 1) for source in sources]
    for process in processes:
        assert process.wait(60) == 0, process.communicate()
        process.communicate()
    dataset = Dataset.open(tmp_path / "store" / "set")
    assert dataset.info.classes in (("a", "b"), ("c", "d"))
    assert check(dataset).problems == ()
    assert names_in(tmp_path / "store") == [".set.lock", "set"]


def children_of(pid: int) -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.add(int(entry.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def long_ingest(tmp_path: Path) -> "tuple[subprocess.Popen[str], set[int]]":
    """An ingest of seconds whose workers are at it, and the ids of its children."""
    blob = encode(picture(1, 1200, 900), "JPEG", quality=95)
    files = {f"{name}/{i}.jpg": blob + bytes([i]) for name in "ab" for i in range(150)}
    process = start_ingest(tmp_path, write_tree(tmp_path / "source", files), 2)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 8:
        pass
    children = children_of(process.pid)
    assert len(children) >= 2
    return process, children


@pytest.mark.chaos
def test_an_ingest_whose_worker_alone_is_killed_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    process, children = long_ingest(tmp_path)
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("RuntimeError: a process that decoded images died: ")
    wait_for(lambda: not any(map(is_running, children)), 20, "its children end too", 0.1)
    assert names_in(tmp_path / "store") == [".set.lock"]


@pytest.mark.chaos
def test_killed_it_leaves_no_process_and_the_next_ingest_cleans_up(tmp_path: Path) -> None:
    process, children = long_ingest(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not any(map(is_running, children)), 20, "its children end too", 0.1)
    store = tmp_path / "store"
    assert any(".partial-" in name for name in names_in(store))
    run(write_tree(tmp_path / "small", class_tree("ab", 5)), store)
    assert names_in(store) == [".set.lock", "set"]


# --------------------------------------------------------------------------------------------- check


def test_check_finds_what_was_done_to_a_dataset(tmp_path: Path) -> None:
    _, dataset = ingest_files(tmp_path, class_tree("ab", 10))
    shard = dataset.shards("train")[0]
    whole = shard.read_bytes()

    def problems() -> str:
        return "\n".join(check(Dataset.open(dataset.path)).problems)

    assert problems() == ""
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    shard.write_bytes(flipped)
    assert "train-00000.parquet: its bytes have changed" in problems()
    shard.unlink()
    assert "train-00000.parquet: is missing" in problems()
    shard.write_bytes(whole)
    assert problems() == ""
    (dataset.path / "report.json").unlink()
    assert problems() == "report.json is missing"


def test_check_looks_into_the_rows_too(tmp_path: Path) -> None:
    _, dataset = ingest_files(tmp_path, class_tree("ab", 10))
    file = dataset.shards("train")[0]
    rows = pq.read_table(file).to_pylist()
    rows[0]["image"] = rows[0]["image"][:500]
    rows[1]["image"] = rows[2]["image"]
    rows[3]["label"] = 7
    rows[4]["id"] = rows[5]["id"]
    rows[6]["group"] = dataset.table("test")["group"][0].as_py()
    pq.write_table(dataset.table("train").from_pylist(rows, dataset.table("train").schema), file)
    values = json.loads((dataset.path / "dataset.json").read_text())
    for shard in values["shards"]:
        if shard["file"] == file.name:
            shard["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()  # a forger who knows the format
    (dataset.path / "dataset.json").write_text(json.dumps(values))
    found = check(Dataset.open(dataset.path)).problems
    for part in (
        "does not decode: damaged PNG",
        "is not the image that its columns describe",
        "has label 7, not one of 0 to 1",
        f"id {rows[5]['id']!r} stands in train-00000.parquet too",
        f"group {rows[6]['group']} stands in test and train",
    ):
        assert any(part in problem for problem in found), part


# ------------------------------------------------------------------------------------------ real data


def test_the_digits_become_a_dataset(tmp_path: Path) -> None:
    report = run("sklearn:digits", tmp_path, config=CONFIG.model_copy(update={"near_duplicate_distance": 0}))
    info = Dataset.open(tmp_path / "set").info
    assert info.classes == tuple("0123456789")
    assert info.channels == 1
    assert info.licence.startswith("CC BY 4.0")
    assert info.source == "sklearn:digits"
    assert report.num_images == 1797
    assert report.exact_duplicates == report.near_duplicate_images == 0
    assert report.set_aside == ()
    assert all(0.12 < info.num_images(split) / 1797 < 0.28 for split in ("val", "test"))


@pytest.mark.data
def test_the_small_cifar10_archive_becomes_a_dataset(tmp_path: Path) -> None:
    archive = DATASETS / "cifar10_mini.tar"
    if not archive.is_file():
        pytest.skip(f"{archive} is not there; set CONVOY_DATASETS")
    report = run(archive, tmp_path)
    dataset = Dataset.open(tmp_path / "set")
    info = dataset.info
    assert len(info.classes) == 10
    assert (info.classes[0], info.classes[-1]) == ("airplane", "truck")
    assert info.num_images("train") + info.num_images("val") == 600
    assert info.counts["test"] == dict.fromkeys(info.classes, 20)
    assert info.width_px == info.height_px == (32, 32, 32)
    assert report.ignored == {"readme or licence": 1}
    assert report.formats == {"JPEG": 800}
    assert np.allclose(info.channel_mean, (0.49, 0.48, 0.45), atol=0.03)
    assert np.allclose(info.channel_std, (0.25, 0.24, 0.26), atol=0.03)
    assert check(dataset).problems == ()
