"""Datasets of signals and volumes: every layout comes in, an unclear one says why not, what is stored is whole."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.archive import memory_tree
from data.arrays import SIGNAL, VOLUME, decode_item
from data.checks import check
from data.dataset import SPLITS, Dataset
from data.decode import DecodeError
from data.export import export
from data.formats import list_source
from data.ingest import ingest
from data.npy import write_npy
from tests.annotated import CONFIG, ingest_source, listing_of, rows_of
from tests.pictures import png, write_tree
from tests.waves import blob, nifti, tone, wav

FAMILIES = pytest.mark.parametrize("family", ["signals", "volumes"])


def npz(**values: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **values)
    return stream.getvalue()


def two_classes(num: int = 12) -> dict[str, bytes]:
    return {
        f"{name}/{i}.wav": wav(tone(100 * len(name) + i, 3)) for name in ("on", "off") for i in range(num)
    }


def labels_of(family: str, files: dict[str, bytes]) -> dict[str, tuple[str, str | None]]:
    """Label and split of each item by its id."""
    return {item.id: (item.targets["label"], item.split) for item in listing_of(family, files).items}


# ------------------------------------------------------------------------------------- folders, tables


def test_a_folder_for_each_class_of_all_formats_becomes_a_dataset(tmp_path: Path) -> None:
    files = two_classes() | {
        "on/a.npy": write_npy(tone(901, 3)),
        "on/b.npz": npz(x=tone(902, 3)),
        "off/c.csv": b"\n".join(str(value).encode() for value in tone(903, 3)),
    }
    report, dataset = ingest_source(tmp_path, "signals", files)
    assert report.formats == {"CSV": 1, "NPY": 1, "NPZ": 1, "WAV": 24} and report.set_aside == ()
    assert (dataset.info.channels, dataset.info.axes, dataset.info.rate_hz) == (1, ((64, 64, 64),), 8000)
    assert not any("other rates" in note for note in report.notes)  # files that tell none are of none
    rows = rows_of(dataset)
    assert {name: row["image"] for name, row in rows.items()} == files  # byte for byte
    assert rows["on/1.wav"]["shape"] == [1, 64] and rows["on/1.wav"]["rate_hz"] == 8000
    assert rows["on/a.npy"]["rate_hz"] == 0 and rows["on/a.npy"]["phash"] == 0
    assert (rows["on/a.npy"]["width"], rows["on/a.npy"]["height"]) == (64, 1)
    values = [decode_item(row["image"], SIGNAL).values for row in rows.values() if row["split"] == "train"]
    together = np.concatenate(values, 1)
    assert dataset.info.channel_mean == pytest.approx(together.mean(1), abs=1e-6)
    assert dataset.info.channel_std == pytest.approx(together.std(1), rel=1e-5)
    assert check(dataset).problems == ()


def test_volumes_of_all_formats_become_a_dataset(tmp_path: Path) -> None:
    files = {f"{axis}/{i}.npy": write_npy(blob(10 * axis + i, axis)) for axis in range(2) for i in range(10)}
    files |= {"0/a.nii": nifti(blob(90, 0).astype(float), (1, 1, 2)), "1/b.npz": npz(volume=blob(91, 1))}
    report, dataset = ingest_source(tmp_path, "volumes", files)
    assert report.formats == {"NIFTI": 1, "NPY": 20, "NPZ": 1}
    assert dataset.info.axes == ((10, 10, 10),) * 3 and dataset.info.spacing_mm == (1, 1, 2)
    row = rows_of(dataset)["0/a.nii"]
    assert (row["shape"], row["spacing_mm"], row["width"], row["height"]) == (
        [1, 10, 10, 10],
        [1, 1, 2],
        10,
        10,
    )
    assert rows_of(dataset)["0/1.npy"]["spacing_mm"] == []
    assert check(dataset).problems == ()


def test_a_table_of_paths_is_read_as_for_pictures(tmp_path: Path) -> None:
    files = two_classes()
    lines = "".join(f"{name},{name.split('/')[0]},train,{i // 2}\n" for i, name in enumerate(files))
    root = write_tree(tmp_path / "t", files | {"list.csv": b"path,label,split,group\n" + lines.encode()})
    report = ingest(
        root / "list.csv", name="x", family="signals", store=tmp_path / "store", config=CONFIG, workers=1
    )
    assert report.num_images == 24 and report.source_splits == ("train",)


def test_several_processes_measure_what_one_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "source", two_classes())
    one = ingest(root, name="a", family="signals", store=tmp_path / "1", config=CONFIG, workers=1)
    monkeypatch.setattr("data.measurement.IN_PROCESS_IMAGES", 0)
    two = ingest(root, name="a", family="signals", store=tmp_path / "2", config=CONFIG, workers=2)
    assert one.counts == two.counts
    for file in (tmp_path / "1" / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "2" / "a" / file.name).read_bytes()


# ---------------------------------------------------------------------------------- what is set aside


def test_what_cannot_be_used_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    files = two_classes() | {
        "on/empty.wav": b"",
        "on/picture.wav": png(1),
        "on/short.wav": wav(tone(1, 3))[:-7],
        "on/stereo.wav": wav(np.stack([tone(1, 3), tone(2, 3)])),
        "off/infinite.npy": write_npy(np.array([1, np.inf])),
        "off/gaps.npy": write_npy(np.array([1, np.nan, 3, *tone(77, 3)])),
        "off/flat.npy": write_npy(np.ones(64)),
        "off/wrong.txt": wav(tone(55, 3)),
    }
    report, dataset = ingest_source(tmp_path, "signals", files)
    assert {item.id: item.reason for item in report.set_aside} == {
        "off/infinite.npy": "1 of 2 values are infinite",
        "on/empty.wav": "empty file",
        "on/picture.wav": "these bytes: not a signal (supported: WAV, NPY, NPZ, CSV)",
        "on/short.wav": "truncated WAV: 121 of 128 bytes of samples",
        "on/stereo.wav": "2 channels, where most have 1",
    }
    assert {what: number for what, number in report.oddities.items() if number} == {
        "with missing values, filled in": 1,
        "of one value throughout": 1,
        "with another extension than their content": 1,
    }
    assert dataset.info.set_aside == 5


def test_equal_bytes_are_one_group_and_near_duplicates_are_not_sought(tmp_path: Path) -> None:
    files = two_classes()
    files["on/copy.wav"] = files["off/0.wav"]
    report, dataset = ingest_source(tmp_path, "signals", files)
    rows = rows_of(dataset)
    assert rows["on/copy.wav"]["group"] == rows["off/0.wav"]["group"]
    assert rows["on/copy.wav"]["split"] == rows["off/0.wav"]["split"]
    assert (report.exact_duplicates, report.near_duplicate_images, report.label_conflicts) == (1, 0, 1)
    assert "near-duplicates are not sought" in report.notes[0]


def test_other_rates_are_counted_and_the_most_common_one_is_the_datasets(tmp_path: Path) -> None:
    files = two_classes() | {f"on/fast{i}.wav": wav(tone(800 + i, 3), rate_hz=16000) for i in range(3)}
    report, dataset = ingest_source(tmp_path, "signals", files)
    assert dataset.info.rate_hz == 8000
    assert any(note.startswith("3 of other rates than 8000 Hz") for note in report.notes)


def test_volumes_of_several_spacings_are_counted(tmp_path: Path) -> None:
    files = {
        f"{axis}/{i}.nii": nifti(blob(10 * axis + i, axis).astype(float) + i, (1, 1, 1 + (i == 3)))
        for axis in range(2)
        for i in range(9)
    }
    report, dataset = ingest_source(tmp_path, "volumes", files)
    assert dataset.info.spacing_mm == (1, 1, 1)
    assert any(note.startswith("2 with voxels of other sides than 1 × 1 × 1 mm") for note in report.notes)


# -------------------------------------------------------------------------------------- containers


def test_npz_of_arrays_with_splits_groups_and_names_of_classes(tmp_path: Path) -> None:
    x = np.stack([tone(i, 3) for i in range(20)])
    data = npz(
        x=x, y=np.arange(20) % 2, split=np.array(["train", "val", "test", "train"] * 5), group=np.arange(20) // 2,
        classes=np.array(["off", "on"]),
    )  # fmt: skip
    (tmp_path / "set.npz").write_bytes(data)
    report = ingest(
        tmp_path / "set.npz", name="x", family="signals", store=tmp_path / "store", config=CONFIG, workers=1
    )
    dataset = Dataset.open(tmp_path / "store" / "x")
    rows = rows_of(dataset)
    assert dataset.info.classes == ("off", "on") and report.formats == {"NPY": 20}
    assert report.oddities["with another extension than their content"] == 0
    for i in range(20):
        row = rows[f"set/{i:06d}.npy"]
        np.testing.assert_array_equal(decode_item(row["image"], SIGNAL).values[0], x[i])
        assert row["split"] == ("train", "val", "test", "train")[i % 4] and row["label"] == i % 2
        assert row["group"] == str(i // 2)


def test_npz_with_arrays_for_each_split() -> None:
    x = np.zeros((2, 5))
    found = labels_of(
        "signals", {"a.npz": npz(x_train=x, y_train=np.array([3, 4]), x_test=x[:1], y_test=np.array([4]))}
    )
    assert found == {
        "a/000000.npy": ("3", "train"), "a/000001.npy": ("4", "train"), "a-2/000000.npy": ("4", "test"),
    }  # fmt: skip


def test_npz_files_called_like_splits_are_the_splits() -> None:
    files = {f"{split}.npz": npz(X=np.zeros((1, 4)), labels=np.array(["a"])) for split in SPLITS}
    assert labels_of("signals", files) == {f"{split}/000000.npy": ("a", split) for split in SPLITS}


def test_packed_bits_become_cubes_or_the_shape_that_is_given() -> None:
    cubes = np.stack([blob(i, i, 8) for i in range(3)])
    for given in ({}, {"shape": np.array([4, 8, 16])}):
        packed = np.packbits(cubes.reshape(3, -1), axis=1)
        listing = listing_of(
            "volumes", {"a.npz": npz(x_packed=packed, y=np.arange(3), is_test=np.arange(3) > 1, **given)}
        )
        assert [item.split for item in listing.items] == ["train", "train", "test"]
        assert listing.tree is not None
        item = decode_item(listing.tree.read("a/000001.npy"), VOLUME)
        np.testing.assert_array_equal(item.values[0].ravel(), cubes[1].ravel())
        assert item.values.shape[1:] == tuple(given.get("shape", (8, 8, 8)))


def test_integers_keep_their_type_and_floats_become_float32() -> None:
    listing = listing_of("signals", {"a.npz": npz(x=np.zeros((1, 4), np.int16), y=[0])})
    assert listing.tree is not None and b"'<i2'" in listing.tree.read("a/000000.npy")
    listing = listing_of("signals", {"a.npz": npz(x=np.zeros((1, 4)), y=[0])})
    assert listing.tree is not None and b"'<f4'" in listing.tree.read("a/000000.npy")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((2, 4))}, r"it must hold x \(N, …\) with y \(N,\), .* \(it has: z\)"),
        ({"x": np.zeros((2, 4))}, "labels are missing; beside x of 2 items there must be y of as many"),
        ({"x": np.zeros((2, 4)), "y": [1]}, r"labels are of shape \(1,\)"),
        ({"x": np.zeros((2, 4)), "y": [1, 2], "split": ["train", "dev"]}, r"split \(='dev'\) must be one of"),
        ({"x": np.zeros((2, 4)), "y": [1, 2], "is_test": [True]}, "split or is_test must be"),
        ({"x": np.zeros((2, 4)), "y": [0, 2], "classes": ["a", "b"]}, "label 2 is no place in its classes"),
        ({"x_packed": np.zeros((2, 5), np.uint8), "y": [0, 1]}, "40 bits an item, which is not"),
    ],
)
def test_an_npz_that_is_no_dataset_says_what_is_missing(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        listing_of("volumes", {"a.npz": npz(**arrays)})


def test_a_table_of_values_has_a_signal_in_each_row() -> None:
    text = "id,label,t0,t1,t2,split,group\nx1,a,1,2,3,train,p\nx2,b,4,,,test,q\nx3,b,4,?,6,,\n"
    listing = listing_of("signals", {"values.csv": text.encode()})
    assert listing.tree is not None
    values = {
        item.id: decode_item(listing.tree.read(item.path), SIGNAL).values.tolist() for item in listing.items
    }
    assert values == {"values/x1.npy": [[1, 2, 3]], "values/x2.npy": [[4]], "values/x3.npy": [[4, 5, 6]]}
    assert [(item.targets["label"], item.split, item.group) for item in listing.items] == [
        ("a", "train", "p"), ("b", "test", "q"), ("b", None, None),
    ]  # fmt: skip


def test_a_value_beyond_float32_is_infinite_and_sets_its_item_aside() -> None:
    listing = listing_of("signals", {"values.csv": b"label,a,b\nx,1,1e39\n"})
    assert listing.tree is not None
    with pytest.raises(DecodeError, match="1 of 2 values are infinite"):
        decode_item(listing.tree.read(listing.items[0].path), SIGNAL)


def test_tables_called_like_splits_are_the_splits() -> None:
    files = {f"x_{split}.csv": b"label,a,b\n1,2,3\n" for split in ("train", "test")}
    assert labels_of("signals", files) == {
        "x_test/000000.npy": ("1", "test"),
        "x_train/000000.npy": ("1", "train"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "one of them `label`"),
        ("label,a\nx,hello\n", "line 2: a value is no number"),
        ("label,a\nx,1,2\n", "line 2: 3 fields, more than its 2 columns"),
        ("label,a\n,1\n", "line 2: label is empty"),
        ("label,a,split\nx,1,dev\n", r"split \(='dev'\) must be one of"),
        ("id,label,a\nx,1,2\nx,1,2\n", "an id stands there twice"),
        ("l\x1cbel,a\nx,1\n", "has control characters"),
        (f"label,{'a' * 200_000}\nx,1\n", "t.csv: not a readable CSV .field larger than field limit"),
    ],
)
def test_a_table_that_is_no_dataset_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        listing_of("signals", {"t.csv": text.encode()})


# ---------------------------------------------------------------------------------------------- .ts

TS = "# about\n@problemName X\n@timeStamps false\n@classLabel true up down\n\n@data\n"


def test_ts_cases_have_channels_lengths_and_splits_of_their_own() -> None:
    files = {
        "X_TRAIN.ts": (TS + "1,2,3:4,5,6:up\n1,?,3,4:5,6,7,8:down\n").encode(),
        "X_TEST.ts": (TS + "1,2:3:up\n").encode(),
    }
    listing = listing_of("signals", files)
    assert listing.tree is not None
    found = {
        item.id: (
            item.targets["label"],
            item.split,
            decode_item(listing.tree.read(item.path), SIGNAL).values.tolist(),
        )
        for item in listing.items
    }
    assert found == {
        # a channel that ends early goes on with its last value
        "X_TEST/000000.npy": ("up", "test", [[1, 2], [3, 3]]),
        "X_TRAIN/000000.npy": ("up", "train", [[1, 2, 3], [4, 5, 6]]),
        "X_TRAIN/000001.npy": ("down", "train", [[1, 2, 3, 4], [5, 6, 7, 8]]),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TS.replace("@data", "1,2:up"), "line 6: expected @data"),
        (TS.replace("@data", ""), "no line @data"),
        (TS.replace("timeStamps false", "timeStamps true"), "its values carry time stamps"),
        (TS.replace("classLabel true up down", "classLabel false"), "its cases have no classes"),
        (TS + "1,2:left\n", r"line 7: class 'left' is none of @classLabel \(up down\)"),
        (TS + "1,2\n", "line 7: it must be values, a colon, and a class"),
        (TS + "1,x:up\n", "line 7: a value is no number"),
    ],
)
def test_a_ts_file_that_cannot_be_read_names_the_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        listing_of("signals", {"X_TRAIN.ts": text.encode()})


def test_of_several_sets_one_must_be_chosen(tmp_path: Path) -> None:
    case = {"A": "1,2,3:up\n2,3,4:down\n", "B": "5,6:up\n6,7:down\n"}
    files = {f"{s}/{s}_{split}.ts": (TS + case[s]).encode() for s in "AB" for split in ("TRAIN", "TEST")}
    with pytest.raises(ValueError, match="2 sets in it; choose one: --subset A, B"):
        ingest_source(tmp_path, "signals", files)
    source, store = tmp_path / "source-set", tmp_path / "store"
    config = CONFIG.model_copy(update={"val_fraction": 0.0, "test_fraction": 0.0})
    report = ingest(source, name="b", family="signals", store=store, config=config, subset="B")
    assert {split: sum(of.values()) for split, of in report.counts.items()} == {
        "train": 2,
        "val": 0,
        "test": 2,
    }
    info = Dataset.open(store / "b").info
    assert info.source == "source-set/B" and info.axes == ((2, 2, 2),)
    with pytest.raises(ValueError, match="no image is left for training"):
        ingest(source, name="b", family="signals", store=store, config=config, subset="B/B_TEST.ts")
    with pytest.raises(ValueError, match="no folder or file 'C' in it; folders at its top: A, B"):
        ingest(source, name="b", family="signals", store=store, config=config, subset="C")


# --------------------------------------------------------------------------------------- recordings


def test_recordings_named_by_label_speaker_and_take_have_the_usual_split() -> None:
    names = [f"recordings/{label}_ann_{take}.wav" for label in "07" for take in (0, 4, 5, 12)]
    found = labels_of("signals", dict.fromkeys([*names, "README.txt"], b"x"))
    assert found["0_ann_4.wav"] == ("0", "test") and found["7_ann_5.wav"] == ("7", "train")
    assert len(found) == 8


@FAMILIES
def test_a_source_without_anything_to_read_says_what_to_give(family: str) -> None:
    with pytest.raises(ValueError, match="one folder per class"):
        list_source(memory_tree("empty", {}), family)


# ------------------------------------------------------------------------------------------- export


@FAMILIES
def test_folders_come_back_as_they_were(tmp_path: Path, family: str) -> None:
    files = two_classes()
    if family == "volumes":
        files = {
            f"{axis}/{i}.npy": write_npy(blob(10 * axis + i, axis)) for axis in range(2) for i in range(9)
        }
        files |= {
            f"{axis}/{i}.nii": nifti(blob(50 + 10 * axis + i, axis)) for axis in range(2) for i in range(9)
        }
    else:
        files["on/none"] = write_npy(tone(999, 3))
    _, dataset = ingest_source(tmp_path, family, files)
    export(dataset, "folders", tmp_path / "out")
    _, again = ingest_source(tmp_path, family, tmp_path / "out", "again")
    targets = [
        {row["sha256"]: (row["split"], row["label"], row["shape"]) for row in rows_of(each).values()}
        for each in (dataset, again)
    ]
    assert targets[0] == targets[1] and len(targets[0]) == len(set(files.values()))
    if family == "signals":
        assert list((tmp_path / "out").glob("*/on/none.npy"))


# ----------------------------------------------------------------------------------------- real data


@pytest.mark.data
def test_real_recordings_come_in(tmp_path: Path, datasets_folder: Path) -> None:
    report, dataset = ingest_source(tmp_path, "signals", datasets_folder / "fsdd_20.tar.xz")
    assert (report.num_images, dataset.info.num_images("test"), report.set_aside) == (1200, 300, ())
    assert (dataset.info.rate_hz, len(dataset.info.classes), report.exact_duplicates) == (8000, 10, 0)
    assert check(dataset).problems == ()


SERIES = {  # train with what is carved from it, test, channels, classes, shortest, longest
    "ArrowHead": (36, 175, 1, 3, 251, 251),
    "BasicMotions": (40, 40, 6, 4, 100, 100),
    "GunPoint": (50, 150, 1, 2, 150, 150),
    "ItalyPowerDemand": (67, 1029, 1, 2, 24, 24),
    "JapaneseVowels": (270, 370, 12, 9, 7, 29),
    "OSULeaf": (200, 242, 1, 6, 427, 427),
}


@pytest.mark.data
@pytest.mark.parametrize("subset", SERIES)
def test_real_series_come_in_with_their_splits(tmp_path: Path, datasets_folder: Path, subset: str) -> None:
    train, test, channels, classes, shortest, longest = SERIES[subset]
    ingest(
        datasets_folder / "ucr_uea_ts.tar.xz", name="x", family="signals", store=tmp_path, config=CONFIG,
        workers=1, subset=subset,
    )  # fmt: skip
    dataset = Dataset.open(tmp_path / "x")
    info = dataset.info
    assert (info.num_images("train") + info.num_images("val"), info.num_images("test")) == (train, test)
    assert (info.channels, len(info.classes)) == (channels, classes)
    assert (info.axes[0][0], info.axes[0][2]) == (shortest, longest)
    assert check(dataset).problems == ()


@pytest.mark.data
def test_real_voxels_come_in(tmp_path: Path, datasets_folder: Path) -> None:
    report, dataset = ingest_source(
        tmp_path, "volumes", datasets_folder / "modelnet10_chair_monitor_vox32.npz"
    )
    info = dataset.info
    counts = {name: sum(info.counts[split][name] for split in SPLITS) for name in info.classes}
    assert counts == {"chair": 839, "monitor": 451} and info.counts["test"] == {"chair": 153, "monitor": 82}
    assert info.axes == ((32, 32, 32),) * 3 and report.set_aside == ()
    assert check(dataset).problems == ()


@pytest.mark.data
def test_real_nifti_volumes_come_in_by_folder(tmp_path: Path, datasets_folder: Path) -> None:
    """Image and label volumes as two classes: nothing to learn, but all of the path from the files to the shards."""
    with tarfile.open(datasets_folder / "hippocampus_100.tar") as archive:
        for member in archive.getmembers()[:60]:
            if member.name.endswith(".nii.gz"):
                archive.extract(member, tmp_path / "source", filter="data")
        for member in archive.getmembers()[-60:]:
            if member.name.endswith(".nii.gz"):
                archive.extract(member, tmp_path / "source", filter="data")
    report, dataset = ingest_source(tmp_path, "volumes", tmp_path / "source")
    assert dataset.info.classes == ("images", "labels") and report.formats == {"NIFTI": report.num_images}
    assert report.set_aside == () and dataset.info.spacing_mm == (1, 1, 1)
    low, _middle, high = dataset.info.axes[1]
    assert 30 < low < high < 70
    assert check(dataset).problems == ()
