"""Signals and volumes from bytes: as independent readers have them, or a reason; never a crash."""

import gzip
import io
import itertools
import tarfile
import zipfile
from fractions import Fraction
from pathlib import Path

import nibabel
import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from data import arrays
from data.arrays import SIGNAL, VOLUME, Facts, Item, decode_item, resample
from data.decode import DecodeError
from data.npy import read_npy, read_npz, write_npy
from tests.waves import nifti, tone, wav

SCALES = {"uint8": (128, 128), "int16": (0, 2**15), "int32": (0, 2**31), "float32": (0, 1), "float64": (0, 1)}


def npz(**values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **values)
    return stream.getvalue()


# ---------------------------------------------------------------------------------------------- WAV


@pytest.mark.parametrize("dtype", SCALES)
@pytest.mark.parametrize("channels", [1, 3])
def test_wav_is_what_scipy_reads_scaled_to_one(dtype: str, channels: int) -> None:
    offset, scale = SCALES[dtype]
    generator = np.random.default_rng(0)
    signal = generator.uniform(-1, 1, (50, channels)) * 0.9 * scale + offset
    stream = io.BytesIO()
    scipy.io.wavfile.write(stream, 11025, np.squeeze(signal.astype(dtype)))
    item = decode_item(stream.getvalue(), SIGNAL)
    rate, samples = scipy.io.wavfile.read(io.BytesIO(stream.getvalue()))
    expected = (samples.reshape(50, channels).T.astype(np.float64) - offset) / scale
    assert (item.format, item.rate_hz) == ("WAV", rate) and item.values.dtype == np.float32
    np.testing.assert_allclose(item.values, expected, atol=1e-7)


def test_24_bits_have_their_sign() -> None:
    values = np.array([-1, -0.5, -(2.0**-23), 0, 2.0**-23, 0.5])
    np.testing.assert_array_equal(decode_item(wav(values, width=3), SIGNAL).values[0], values)


def test_a_wav_with_other_chunks_and_a_stream_of_unknown_length_are_read() -> None:
    plain = wav(tone(0, 3))
    start = plain.index(b"data")
    odd = plain[:start] + b"LIST\x03\0\0\0abc\0" + plain[start:]
    streamed = plain[:start] + b"data\xff\xff\xff\xff" + plain[start + 8 :]
    for data in (odd, streamed):
        np.testing.assert_array_equal(decode_item(data, SIGNAL).values, decode_item(plain, SIGNAL).values)


def test_a_wav_that_ends_early_is_refused_wherever_it_ends() -> None:
    data = wav(tone(0, 3))
    for end in range(12, len(data)):
        with pytest.raises(DecodeError, match="WAV"):
            decode_item(data[:end], SIGNAL)


def test_compressed_wav_is_named() -> None:
    data = bytearray(wav(tone(0, 3)))
    data[20:22] = (0x11).to_bytes(2, "little")  # IMA ADPCM
    with pytest.raises(DecodeError, match="unsupported WAV: encoding 17 of 16 bits"):
        decode_item(bytes(data), SIGNAL)


# --------------------------------------------------------------------------------------- NPY and NPZ


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", ">u2", "|u1", "|b1", "<f2"])
def test_npy_is_what_numpy_reads(order: str, dtype: str) -> None:
    array = np.asarray(np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(dtype), order=order)  # type: ignore[call-overload]
    stream = io.BytesIO()
    np.save(stream, array)
    np.testing.assert_array_equal(read_npy(stream.getvalue()), array)
    np.testing.assert_array_equal(read_npz(npz(a=array, b=array[0]))["b"], array[0])


def test_a_header_that_claims_more_than_there_is_takes_no_memory() -> None:
    data = write_npy(np.zeros((10, 10, 10), np.float32)).replace(b"(10, 10, 10)", b"(9999999999,)")
    with pytest.raises(DecodeError, match=r"truncated NPY: 4,\d{3} of 39,999,999,996 bytes"):
        read_npy(data)


def test_objects_are_not_unpickled() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DecodeError, match="Python objects, which are not unpickled"):
        decode_item(stream.getvalue(), SIGNAL)


def test_an_npz_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.npy.MAX_ARRAY_BYTES", 1 << 20)
    with pytest.raises(DecodeError, match="decompression bomb"):
        read_npz(npz(x=np.zeros(1 << 20, np.float64)))


def test_an_npz_of_one_item_holds_one_array_or_names_it() -> None:
    signal = tone(0, 3)
    for data in (
        npz(any=signal),
        npz(x=signal, about=np.array("made by us")),
        npz(data=signal, y=np.array(1)),
    ):
        np.testing.assert_array_equal(decode_item(data, SIGNAL).values[0], signal)
    with pytest.raises(
        DecodeError, match=r"NPZ must hold one array, or one called x or data \(it has: a, b\)"
    ):
        decode_item(npz(a=signal, b=signal), SIGNAL)


@pytest.mark.parametrize(
    ("array", "ndim", "message"),
    [
        (np.zeros((2, 3, 4)), SIGNAL, r"not a signal: shape \(2, 3, 4\), not \(L,\) or \(C, L\)"),
        (np.zeros((8000, 2)), SIGNAL, "8,000 channels, more than 512: channels come first"),
        (np.zeros((4, 4)), VOLUME, r"not a volume: shape \(4, 4\), not \(D, H, W\)"),
        (np.zeros((4, 0)), SIGNAL, r"no values: shape \(4, 0\)"),
        (np.zeros(4, np.complex64), SIGNAL, "not numbers: data type complex64"),
        (np.array(["a", "b"]), SIGNAL, "not numbers: data type <U1"),
        (np.array([1, np.inf, 2, -np.inf]), SIGNAL, "2 of 4 values are infinite"),
        (np.array([1e300, 0]), SIGNAL, "1 of 2 values are infinite"),
        (np.array([[1, 2], [np.nan, np.nan]]), SIGNAL, "channel 1 has no value"),
        (np.full((2, 2, 2), np.nan), VOLUME, "8 of 8 values are missing"),
    ],
)
def test_what_is_no_usable_array_gets_a_reason(array: np.ndarray, ndim: int, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode_item(write_npy(array), ndim)


def test_missing_values_lie_on_the_line_between_their_neighbours() -> None:
    nan = np.nan
    item = decode_item(write_npy(np.array([[nan, 1, nan, nan, 4, nan], [0, 1, 2, 3, 4, 5]])), SIGNAL)
    assert item.values[0].tolist() == [1, 1, 2, 3, 4, 4] and item.num_missing == 4
    assert arrays.oddities_of(item) == 1


# ---------------------------------------------------------------------------------------------- CSV


@pytest.mark.parametrize(
    "text",
    [
        "x,y\n1,2\n3,4\n5,6\n",
        "1,2\n3,4\n5,6",
        "1;2\n3;4\n5;6\n",
        "1 2\n3 4\n\n5 6\n",
        "\ufeff1\t2\n3\t4\n5\t6\n",
    ],
)
def test_columns_of_a_csv_are_channels(text: str) -> None:
    assert decode_item(text.encode(), SIGNAL).values.tolist() == [[1, 3, 5], [2, 4, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3\n", "rows of different length"),
        ("1\nx\n", "a cell that is no number"),
        ("hello world\n", "neither WAV, NPY nor NPZ, nor a CSV of numbers"),
    ],
)
def test_a_csv_that_is_no_signal_gets_a_reason(text: str, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode_item(text.encode(), SIGNAL)


def test_an_empty_cell_is_a_missing_value() -> None:
    item = decode_item(b"1,5\n,6\n3,?\n", SIGNAL)
    assert item.values.tolist() == [[1, 2, 3], [5, 6, 6]] and item.num_missing == 2


# ------------------------------------------------------------------------------------------- NIfTI


def by_nibabel(data: np.ndarray, affine: np.ndarray, codes: str = "s") -> tuple[bytes, np.ndarray]:
    """The bytes of a NIfTI file, and its values as nibabel turns them to RAS."""
    image = nibabel.Nifti1Image(data, affine)
    image.set_sform(affine, 1 if "s" in codes else 0)
    image.set_qform(affine, 1 if "q" in codes else 0, strip_shears=True)
    blob = image.to_bytes()
    again = nibabel.Nifti1Image.from_bytes(blob)
    return blob, np.asarray(nibabel.as_closest_canonical(again).dataobj)


@pytest.mark.parametrize("codes", ["s", "q", "sq"])
def test_every_orientation_becomes_what_nibabel_makes_of_it(codes: str) -> None:
    generator = np.random.default_rng(0)
    data = generator.normal(size=(3, 4, 5)).astype(np.float32)
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[list(axes)] * signs * (1.0, 1.5, 2.5)
            affine[:3, :3] = _slightly_turned(generator) @ affine[:3, :3]
            blob, expected = by_nibabel(data, affine, codes=codes)
            item = decode_item(gzip.compress(blob), VOLUME)
            np.testing.assert_array_equal(item.values[0], expected)
            zooms = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(blob)).header.get_zooms()
            assert item.spacing_mm == pytest.approx(zooms, rel=1e-4)


def _slightly_turned(generator: np.random.Generator) -> np.ndarray:
    rotation, _ = np.linalg.qr(np.eye(3) + generator.normal(0, 0.1, (3, 3)))
    return rotation * np.sign(np.diag(rotation))


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i4", "u4", "i8", "f4", ">f4", "f8"])
def test_every_data_type_and_scale_is_what_nibabel_reads(dtype: str) -> None:
    data = np.random.default_rng(0).integers(0, 100, (3, 4, 5)).astype(dtype)
    for slope in (np.nan, 0.25):
        header = nibabel.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
        header.set_data_dtype(data.dtype)
        header.set_slope_inter(slope, 3 if np.isfinite(slope) else np.nan)
        image = nibabel.Nifti1Image(data, np.diag([-2, 2, 2, 1]), header)
        image.header.set_slope_inter(slope, 3 if np.isfinite(slope) else np.nan)
        blob = image.to_bytes()
        expected = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(blob)).get_fdata()
        np.testing.assert_allclose(decode_item(blob, VOLUME).values[0], expected, rtol=1e-6)


def test_a_fourth_axis_becomes_channels_and_a_lone_one_goes() -> None:
    data = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32)
    for part in (data, data[..., :1]):
        blob, expected = by_nibabel(part, np.diag([1, -1, 1, 1]))
        np.testing.assert_array_equal(decode_item(blob, VOLUME).values, np.moveaxis(expected, 3, 0))


def test_a_volume_without_orientation_stays_as_it_is() -> None:
    data = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    blob = bytearray(nifti(data, (1, 2, 3)))
    blob[252:256] = bytes(4)
    item = decode_item(bytes(blob), VOLUME)
    np.testing.assert_array_equal(item.values[0], data)
    assert item.spacing_mm == (1, 2, 3)


@pytest.mark.parametrize("packed", [False, True])
def test_a_nifti_that_ends_early_is_refused(packed: bool) -> None:
    data = nifti(np.random.default_rng(0).normal(size=(4, 4, 4)))
    data = gzip.compress(data) if packed else data
    for end in range(1, len(data), 3):
        with pytest.raises(DecodeError):
            decode_item(data[:end], VOLUME)


def test_a_packed_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.nifti.MAX_UNPACKED_BYTES", 1 << 16)
    with pytest.raises(DecodeError, match="decompression bomb"):
        decode_item(gzip.compress(nifti(np.zeros((64, 64, 64)))), VOLUME)


@pytest.mark.data
def test_real_volumes_are_what_nibabel_reads(datasets_folder: Path) -> None:
    shapes = set()
    with tarfile.open(datasets_folder / "hippocampus_100.tar") as archive:
        for member in archive.getmembers():
            if not member.name.endswith(".nii.gz"):
                continue
            stream = archive.extractfile(member)
            assert stream is not None
            data = stream.read()
            item = decode_item(data, VOLUME)
            image = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(gzip.decompress(data)))
            np.testing.assert_allclose(item.values[0], image.get_fdata(), rtol=1e-6)
            assert item.spacing_mm == pytest.approx(image.header.get_zooms(), rel=1e-5)
            shapes.add(item.values.shape)
            if member.name.startswith("labels"):
                assert set(np.unique(item.values)) <= {0, 1, 2}
    assert len(shapes) > 50


# --------------------------------------------------------------------------------------- any bytes


WHOLE = {
    "wav": (wav(tone(0, 3)), SIGNAL),
    "npy": (write_npy(tone(0, 3)), SIGNAL),
    "npz": (npz(x=tone(0, 3)), SIGNAL),
    "csv": (b"a,b\n1,2\n3,4\n5.5,6e3\n", SIGNAL),
    "volume": (write_npy(np.ones((3, 3, 3), np.int16)), VOLUME),
    "nifti": (nifti(np.ones((3, 3, 3))), VOLUME),
    "packed": (gzip.compress(nifti(np.ones((3, 3, 3)))), VOLUME),
}


def decoded(data: bytes, ndim: int) -> tuple[Item | None, str]:
    """The item, or why there is none."""
    try:
        return decode_item(data, ndim), ""
    except DecodeError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_file_is_an_array_of_numbers_or_a_reason(kind: str, data: st.DataObject) -> None:
    whole, ndim = WHOLE[kind]
    blob = bytearray(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    for _ in range(data.draw(st.integers(0, 8)) if blob else 0):
        blob[data.draw(st.integers(0, min(len(blob), 400) - 1))] = data.draw(st.integers(0, 255))
    item, reason = decoded(bytes(blob), ndim)
    if item is None:
        assert reason and "\n" not in reason
    else:
        assert np.isfinite(item.values).all() and item.values.ndim == ndim + 1


@given(blob=st.binary(max_size=200), ndim=st.sampled_from([SIGNAL, VOLUME]))
def test_any_bytes_are_an_array_or_a_reason(blob: bytes, ndim: int) -> None:
    item, reason = decoded(blob, ndim)
    assert reason if item is None else np.isfinite(item.values).all()


def test_a_zip_of_other_things_is_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(DecodeError, match="it has: none"):
        decode_item(stream.getvalue(), SIGNAL)


# -------------------------------------------------------------------------------------- statistics


def test_channel_statistics_are_those_of_all_values_together() -> None:
    generator = np.random.default_rng(0)
    items = [generator.normal(5e4, 3, (2, length)).astype(np.float32) for length in (3, 50, 17)]
    facts = [arrays.measure_item(decode_item(write_npy(values), SIGNAL)) for values in items]
    mean, std = arrays.channel_statistics(facts)
    together = np.concatenate(items, 1).astype(np.float64)
    assert mean == pytest.approx(together.mean(1), rel=1e-7)
    assert std == pytest.approx(together.std(1), rel=1e-4)
    assert arrays.spreads(facts) == ((3, 17, 50),)


def test_the_same_value_throughout_can_be_divided_by() -> None:
    facts = [arrays.measure_item(decode_item(write_npy(np.full(9, 7.0)), SIGNAL))]
    assert arrays.channel_statistics(facts) == ((7.0,), (1.0,))


def test_of_several_numbers_of_channels_the_most_common_counts() -> None:
    def fact(channels: int) -> Facts:
        return Facts((channels, 5), 0, (), (0.0,) * channels, (0.0,) * channels)

    assert arrays.other_channels([fact(2), None, fact(1), fact(2)]) == {2: "1 channels, where most have 2"}
    assert list(arrays.other_channels([fact(2), fact(1)])) == [0]


# -------------------------------------------------------------------------------------- resampling


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16000), (16000, 8000), (44100, 16000), (8000, 11025)])
def test_resampling_agrees_with_scipys_where_there_is_no_edge(rate: int, wanted: int) -> None:
    place = np.arange(rate // 10) / rate
    signal = np.sin(2 * np.pi * 440 * place) + 0.5 * np.sin(2 * np.pi * 1333 * place + 1)
    ours = resample(signal[None].astype(np.float32), rate, wanted)[0]
    ratio = Fraction(wanted, rate)
    theirs = scipy.signal.resample_poly(signal, ratio.numerator, ratio.denominator)
    assert len(ours) == round(len(signal) * wanted / rate)
    inner = slice(len(ours) // 5, -len(ours) // 5)
    exact = np.sin(2 * np.pi * 440 * np.arange(len(ours)) / wanted)
    exact += 0.5 * np.sin(2 * np.pi * 1333 * np.arange(len(ours)) / wanted + 1)
    np.testing.assert_allclose(ours[inner], exact[inner], atol=5e-3)
    np.testing.assert_allclose(ours[inner], theirs[: len(ours)][inner], atol=1e-2)


def test_a_tone_that_the_lower_rate_cannot_hold_is_gone() -> None:
    signal = np.sin(2 * np.pi * 3600 * np.arange(1600) / 8000).astype(np.float32)
    assert np.abs(resample(signal[None], 8000, 4000)[0, 100:-100]).max() < 0.01


def test_the_same_rate_changes_nothing_and_a_constant_stays_one() -> None:
    signal = tone(0, 3)[None]
    assert resample(signal, 8000, 8000) is signal
    np.testing.assert_allclose(resample(np.full((2, 50), 3.0, np.float32), 8000, 9000), 3.0, rtol=1e-6)
