"""The list of looks for drift, after a disk that was full."""

from pathlib import Path

import numpy as np
import pytest

from tasks import driftlooks
from tasks.driftlooks import LOOKS, look, read_looks
from tasks.recordings import Recorded, folder_of
from tasks.resolution import Resolved
from tests.test_tasks_drift import CONFIG

MODEL = Resolved("models:/digits@champion", "models:/digits/1", "digits", "run", "ab" * 32, Path("model"))


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a model's looks, of which there is one; each sees the same predictions."""
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path))
    features = np.random.default_rng(0).normal(size=(20, 3))
    times = np.arange(20).astype("datetime64[ms]")
    monkeypatch.setattr(driftlooks, "reference_of", lambda *_: features[:10])
    monkeypatch.setattr(
        driftlooks, "read_recordings", lambda *_: Recorded(times[10:], [""] * 10, [""] * 10, features[10:])
    )
    look(MODEL, CONFIG)
    return folder_of(MODEL) / LOOKS


def test_a_look_that_a_full_disk_has_cut_is_none_and_the_next_is_whole(looks: Path) -> None:
    kept = looks.read_bytes()
    looks.write_bytes(kept + kept[:50])
    [first] = read_looks(MODEL)
    assert looks.read_bytes() == kept + kept[:50]  # reading changes nothing
    second = look(MODEL, CONFIG)
    assert read_looks(MODEL) == [first, second]
    assert looks.read_bytes().startswith(kept) and looks.read_bytes().count(b"\n") == 2


def test_a_damaged_look_is_one_error_that_names_it(looks: Path) -> None:
    kept = looks.read_bytes()
    looks.write_bytes(kept + kept[:50] + kept + kept)
    with pytest.raises(ValueError, match="is damaged, it is no JSON") as caught:
        read_looks(MODEL)
    told = str(caught.value)
    assert told.startswith(f"{looks}, line 2, ") and told.endswith("; remove that line") and "\n" not in told
