"""What signals and volumes go through on the way to a network: cut, filled up, normalised, augmented."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data import fitting, signals, volumes
from data.dataset import SCHEMA_VERSION, DatasetInfo
from data.decode import DecodeError
from data.fitting import (
    ArrayPreprocessing,
    crop_at,
    crop_middle,
    cut_middle,
    decode_all,
    decode_fitted,
    fit,
    pad,
)
from data.npy import write_npy
from data.random import SampleGenerator
from data.records import Records
from data.signals import SignalAugment, SignalInput
from data.volumes import VolumeAugment, VolumeInput
from tests.waves import nifti, tone, wav

INFO = DatasetInfo(
    schema_version=SCHEMA_VERSION, name="x", family="signals", classes=("a", "b"), channels=2, counts={},
    width_px=(1, 1, 1), height_px=(1, 1, 1), channel_mean=(5.0, -3.0), channel_std=(2.0, 0.5), source="",
    source_sha256="", licence="", set_aside=0, shards=(), rate_hz=8000,
)  # fmt: skip
SIGNALS = SignalInput(stored_length=40, length=32, sample_rate_hz=0, normalise="dataset")
VOLUMES = VolumeInput(stored_voxels=8, crop_voxels=6, spacing_mm=0, normalise="dataset")
STILL: dict[str, Any] = {"random_crop": False, "scale": 0, "noise": 0}


def preprocessing(**changes: Any) -> ArrayPreprocessing:
    values = {
        "channels": 1,
        "stored": (6,),
        "crop": (6,),
        "rate_hz": 0,
        "spacing_mm": 0,
        "normalise": "dataset",
    }
    return ArrayPreprocessing.parse({**values, "fill": (0.0,), **changes}, "")


# ------------------------------------------------------------------------------------- to one size


@given(have=st.integers(1, 12), want=st.integers(1, 12))
def test_the_middle_is_kept_and_what_is_short_stands_in_the_middle(have: int, want: int) -> None:
    values = np.arange(1, have + 1, dtype=np.float32)[None]
    fitted = fit(values, (want,), (-1.0,))[0]
    inside = fitted[fitted != -1]
    assert len(fitted) == want and len(inside) == min(have, want)
    assert (np.diff(inside) == 1).all()
    left = int(np.argmax(fitted != -1)) if have < want else int(inside[0]) - 1
    right = want - left - have if have < want else have - int(inside[-1])
    assert abs(left - right) <= 1


def test_volumes_are_fitted_axis_by_axis() -> None:
    values = np.random.default_rng(0).normal(size=(2, 4, 5, 9)).astype(np.float32)
    fitted = fit(values, (6, 5, 3), (7.0, 8.0))
    np.testing.assert_array_equal(fitted[:, 1:5], values[:, :, :, 3:6])
    assert (fitted[0, [0, 5]] == 7).all() and (fitted[1, [0, 5]] == 8).all()
    np.testing.assert_array_equal(cut_middle(values, (99, 99, 99)), values)


def test_an_item_is_normalised_by_its_own_figures_before_it_is_filled_up() -> None:
    blob = write_npy(np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    fitted = decode_fitted(blob, preprocessing(channels=2, stored=(5,), normalise="item", fill=(0.0, 0.0)))
    spread = (1.5) ** 0.5
    np.testing.assert_allclose(fitted, [[0, -spread, 0, spread, 0], [0, 0, 0, 0, 0]], atol=1e-6)


def test_signals_of_another_rate_are_resampled_and_those_without_one_are_not() -> None:
    place = np.arange(1600) / 16000
    fast, slow = (np.sin(2 * np.pi * 200 * place[::step]) * 0.5 for step in (1, 2))
    want = preprocessing(stored=(400,), crop=(400,), rate_hz=8000)
    ours = decode_fitted(wav(fast, 16000), want)
    exact = decode_fitted(wav(slow, 8000), want)
    np.testing.assert_allclose(ours, exact, atol=2e-3)
    np.testing.assert_array_equal(decode_fitted(write_npy(slow), want)[0], slow[200:600].astype(np.float32))


def test_cutting_before_resampling_changes_nothing_but_saves_the_work() -> None:
    long = tone(0, 300, 40_000)
    whole = fitting.resample(long[None], 16000, 8000)
    ours = decode_fitted(wav(long, 16000), preprocessing(stored=(500,), crop=(500,), rate_hz=8000))
    np.testing.assert_allclose(ours, cut_middle(whole, (500,)), atol=1e-3)


def test_volumes_are_resampled_to_the_spacing_asked_for() -> None:
    ramp = np.broadcast_to(np.arange(10.0)[:, None, None], (10, 8, 6))
    want = preprocessing(stored=(20, 8, 12), crop=(20, 8, 12), spacing_mm=1.0)
    fitted = decode_fitted(nifti(ramp, (2.0, 1.0, 2.0)), want)
    assert fitted.shape == (1, 20, 8, 12)
    np.testing.assert_allclose(fitted[0, 1:-1, 4, 6], np.arange(0.25, 9, 0.5), atol=1e-6)
    same = decode_fitted(nifti(ramp, (1.0, 1.0, 1.0)), preprocessing(stored=(10, 8, 6), spacing_mm=1.0))
    np.testing.assert_array_equal(same[0], ramp)


def test_another_number_of_channels_is_refused_and_a_shard_names_the_place() -> None:
    good, bad = write_npy(np.zeros((1, 6))), write_npy(np.zeros((2, 6)))
    with pytest.raises(DecodeError, match=r"^2 channels, where 1 are expected$"):
        decode_fitted(bad, preprocessing())
    with pytest.raises(DecodeError, match=r"^signal 1 of 2: 2 channels"):
        decode_all([good, bad], preprocessing())
    assert decode_all([], preprocessing()).shape == (0, 1, 6)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (SignalInput, {"length": 41}, r"length \(=41\) must not exceed stored_length \(=40\)"),
        (VolumeInput, {"crop_voxels": 9}, r"crop_voxels \(=9\) must not exceed stored_voxels \(=8\)"),
    ],
)
def test_a_crop_larger_than_what_is_kept_is_refused(
    model: Any, changes: dict[str, int], message: str
) -> None:
    base = (SIGNALS if model is SignalInput else VOLUMES).model_dump()
    with pytest.raises(ValueError, match=message):
        model.parse({**base, **changes}, "input")


# ---------------------------------------------------------------------------------------- pieces


def arrays(num: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(num, *shape)).astype(np.float32))


def test_crops_begin_where_they_should() -> None:
    volume = arrays(3, 2, 5, 6, 7)
    starts = torch.tensor([[0, 0, 0], [2, 1, 3], [1, 3, 2]])
    cropped = crop_at(volume, starts, (3, 3, 4))
    for i, (a, b, c) in enumerate(starts.tolist()):
        assert torch.equal(cropped[i], volume[i, :, a : a + 3, b : b + 3, c : c + 4])
    assert torch.equal(crop_middle(volume, (3, 2, 7)), volume[:, :, 1:4, 2:4])


def test_padding_is_the_fill_of_each_channel() -> None:
    padded = pad(torch.zeros(1, 2, 3), 2, (5.0, -3.0))
    assert padded.tolist() == [[[5, 5, 0, 0, 0, 5, 5], [-3, -3, 0, 0, 0, -3, -3]]]


def test_scaling_keeps_the_level_where_it_is() -> None:
    scaled = fitting.scale(torch.tensor([[[5.0, 7.0]], [[5.0, 7.0]]]), torch.tensor([0.5, 2.0]), (5.0,))
    assert scaled.tolist() == [[[5, 6]], [[5, 9]]]


def test_noise_has_the_deviation_asked_for_and_no_mean() -> None:
    noisy = fitting.add_noise(torch.zeros(4, 2, 5000), (2.0, 0.5), np.arange(4), SampleGenerator(0, 0))
    assert noisy.mean((0, 2)).tolist() == pytest.approx([0, 0], abs=0.05)
    assert noisy.std((0, 2)).tolist() == pytest.approx([2, 0.5], rel=0.02)
    flat = noisy[:, 0].flatten()
    assert abs(float((flat[1:] * flat[:-1]).mean())) < 0.1  # white


def test_a_masked_stretch_is_the_fill_and_nothing_else_changes() -> None:
    signal = arrays(3, 2, 10)
    masked = signals.mask(signal, torch.tensor([0, 4, 9]), torch.tensor([3, 0, 1]), (5.0, -3.0))
    assert masked[0, :, :3].tolist() == [[5] * 3, [-3] * 3] and torch.equal(
        masked[0, :, 3:], signal[0, :, 3:]
    )
    assert torch.equal(masked[1], signal[1])
    assert masked[2, :, 9].tolist() == [5, -3] and torch.equal(masked[2, :, :9], signal[2, :, :9])


def test_mirroring_twice_is_nothing_and_once_reverses_an_axis() -> None:
    volume = arrays(2, 1, 3, 4, 5)
    flip = torch.tensor([True, False])
    for axis in (0, 1, 2):
        once = volumes.mirror(volume, flip, axis)  # type: ignore[arg-type]
        assert torch.equal(once[0], volume[0].flip(axis + 1)) and torch.equal(once[1], volume[1])
        assert torch.equal(volumes.mirror(once, flip, axis), volume)  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_four_quarter_turns_are_none_and_the_axis_stays(axis: Any) -> None:
    volume = arrays(4, 2, 5, 5, 5)
    turned = volumes.turn(volume, torch.arange(4), axis)
    assert torch.equal(turned[0], volume[0])
    again = volume
    for _ in range(4):
        again = volumes.turn(again, torch.ones(4, dtype=torch.int64), axis)
    assert torch.equal(again, volume)
    others = [other + 2 for other in range(3) if other != axis]
    # slices across the axis keep their values
    torch.testing.assert_close(turned.sum(others), volume.sum(others))
    assert not torch.equal(turned[1], volume[1])


def test_a_quarter_turn_by_hand() -> None:
    volume = torch.zeros(1, 1, 3, 3, 3)
    volume[0, 0, 1, 0, 2] = 1  # beside the middle along axis 1, at the end of axis 2
    turned = volumes.turn(volume, torch.tensor([1]), 0)
    assert turned.nonzero().tolist() == [[0, 0, 1, 0, 0]]


# -------------------------------------------------------------------------------------- batches


def signal_batch(indices: list[int], generator: SampleGenerator | None, **changes: Any) -> Any:
    config = SignalAugment.parse({**STILL, "shift_share": 0, "mask_share": 0, **changes}, "")
    records = Records(arrays(20, 2, 40), torch.arange(20))
    return signals.make_batch(records, np.array(indices), INFO, SIGNALS, config, generator)


def volume_batch(indices: list[int], generator: SampleGenerator | None, **changes: Any) -> Any:
    off = {"shift_voxels": 0, "mirror_axes": (), "turn_axis": -1}
    config = VolumeAugment.parse({**STILL, **off, **changes}, "")
    records = Records(arrays(20, 2, 8, 8, 8), torch.arange(20))
    return volumes.make_batch(records, np.array(indices), INFO, VOLUMES, config, generator)


ALL = {
    "signals": (signal_batch, {"random_crop": True, "shift_share": 0.2, "scale": 0.3, "noise": 0.2, "mask_share": 0.3}),
    "volumes": (
        volume_batch,
        {"random_crop": True, "shift_voxels": 2, "mirror_axes": (0, 1), "turn_axis": 2, "scale": 0.3, "noise": 0.2},
    ),
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", ALL)


@kinds
def test_a_sample_is_augmented_alike_in_any_batch_and_differently_in_another_epoch(kind: str) -> None:
    make, everything = ALL[kind]
    whole = make(list(range(20)), SampleGenerator(3, 1), **everything)
    for indices in ([7], [19, 7, 0], [3, 7]):
        part = make(indices, SampleGenerator(3, 1), **everything)
        assert torch.equal(part.images, whole.images[indices]) and part.labels.tolist() == indices
    other = make(list(range(20)), SampleGenerator(3, 2), **everything)
    assert not torch.equal(other.images, whole.images)
    assert whole.images.dtype == torch.float32 and whole.images.isfinite().all()


@kinds
def test_with_everything_off_training_sees_what_evaluation_sees(kind: str) -> None:
    make, _ = ALL[kind]
    assert torch.equal(make([4, 2], SampleGenerator(0, 0)).images, make([4, 2], None).images)


@kinds
def test_every_augmentation_alone_changes_something(kind: str) -> None:
    make, everything = ALL[kind]
    plain = make(list(range(20)), None).images
    for name, value in everything.items():
        if name in ("shift_share", "shift_voxels"):
            continue  # of random crops
        changed = make(list(range(20)), SampleGenerator(0, 0), **{name: value}).images
        assert changed.shape == plain.shape and not torch.equal(changed, plain), name


def test_random_crops_reach_as_far_as_they_may_and_no_farther() -> None:
    config = SignalAugment.parse({**STILL, "random_crop": True, "shift_share": 0.25, "mask_share": 0}, "")
    records = Records(torch.arange(40.0).expand(1, 2, 40) + 100, torch.zeros(1, dtype=torch.int64))
    first = set()
    for epoch in range(400):
        batch = signals.make_batch(records, np.array([0]), INFO, SIGNALS, config, SampleGenerator(0, epoch))
        seen = batch.images[0, 0]
        start = int(seen[16]) - 116
        first.add(start)
        beyond = (torch.arange(32) + start < 0) | (torch.arange(32) + start >= 40)
        assert (seen[beyond] == 5).all() and (seen[~beyond] >= 100).all()
    assert first == set(range(-8, 17))


def test_rows_say_where_samples_lie_in_records_of_a_part_of_the_split() -> None:
    config = SignalAugment.parse({**STILL, "random_crop": True, "shift_share": 0, "mask_share": 0}, "")
    whole = Records(arrays(20, 2, 40), torch.arange(20))
    part = Records(whole.images[10:], whole.labels[10:])
    generator = SampleGenerator(0, 0)
    want = signals.make_batch(whole, np.array([12, 17]), INFO, SIGNALS, config, generator)
    got = signals.make_batch(part, np.array([12, 17]), INFO, SIGNALS, config, generator, np.array([2, 7]))
    assert torch.equal(want.images, got.images) and torch.equal(want.labels, got.labels)


@pytest.mark.parametrize(
    ("longest", "stored", "length", "expected"),
    [(100, 0, 0, (100, 100)), (100, 0, 60, (100, 60)), (100, 0, 120, (120, 120)), (9999, 0, 0, (4096, 4096)),
     (100, 50, 0, (50, 50)), (100, 50, 40, (50, 40))],
)  # fmt: skip
def test_lengths_that_nobody_told_are_the_datasets(
    longest: int, stored: int, length: int, expected: tuple[int, int]
) -> None:
    info = INFO.model_copy(update={"axes": ((5, 50, longest),)})
    found = signals.preprocessing(
        info, SIGNALS.model_copy(update={"stored_length": stored, "length": length})
    )
    assert (found.stored, found.crop) == ((expected[0],), (expected[1],))
    config = SIGNALS.model_copy(update={"stored_length": stored, "length": length})
    records = Records(arrays(3, 2, expected[0]), torch.arange(3))
    still = SignalAugment.parse({**STILL, "random_crop": True, "shift_share": 0.1, "mask_share": 0}, "")
    for generator in (None, SampleGenerator(0, 0)):
        batch = signals.make_batch(records, np.arange(3), info, config, still, generator)
        assert batch.images.shape == (3, 2, expected[1])


def test_items_that_are_normalised_alone_are_filled_up_with_zero() -> None:
    config = SIGNALS.model_copy(update={"normalise": "item"})
    assert signals.preprocessing(INFO, SIGNALS).fill == INFO.channel_mean
    assert signals.preprocessing(INFO, config).fill == (0, 0)
    assert signals.preprocessing(INFO, SIGNALS).rate_hz == 8000
    assert (
        signals.preprocessing(INFO, SIGNALS.model_copy(update={"sample_rate_hz": 16000.0})).rate_hz == 16000
    )
