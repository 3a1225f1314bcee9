"""Features before the head, of every family."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.dataset import Dataset
from tasks.embedding import EMBEDDERS, embed, listening
from tasks.facepredict import FacePredictor
from tasks.inputs import decode_readable
from tasks.modelfile import load_model
from tasks.predictors import PREDICTORS, open_predictor
from tests.recording import make_model, pictures
from tests.saved import save_untrained, some_items
from tests.tiny import TINY, tiny_dataset


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    store = tmp_path_factory.mktemp("store")
    return {family: tiny_dataset(family, store) for family in TINY}


def test_every_family_has_features() -> None:
    assert EMBEDDERS.keys() == PREDICTORS.keys()


@pytest.mark.parametrize("family", EMBEDDERS)
def test_what_can_be_read_has_features_that_differ(
    family: str, datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    predictor = open_predictor(save_untrained(family, datasets[family], tmp_path / "model"))
    items = some_items(datasets[family], 4)
    features, errors = embed(predictor, [*items[:2], b"nothing", *items[2:]])
    assert [error is None for error in errors] == [True, True, False, True, True]
    assert features.shape[0] == 4 and features.ndim == 2 and features.shape[1] >= 8
    assert np.isfinite(features).all()
    assert np.ptp(features, axis=0).max() > 0
    alone, _errors = embed(predictor, items[3:])
    np.testing.assert_allclose(features[3:], alone, atol=1e-4)
    assert len(embed(predictor, [b"nothing"])[0]) == 0


def test_a_classifiers_features_are_what_its_head_is_given(tmp_path: Path) -> None:
    folder, blobs = make_model(tmp_path / "model"), pictures(3)
    saved = load_model(folder)
    features, _errors = embed(open_predictor(folder), blobs)
    images, _errors = decode_readable(blobs, saved.card.preprocessing)
    network = saved.members[0]
    with torch.inference_mode():
        logits = network(torch.from_numpy(images))
        again = network.net.classifier[4](torch.from_numpy(features))
    torch.testing.assert_close(again, logits)


def test_a_faces_features_are_its_embedding(datasets: dict[str, Dataset], tmp_path: Path) -> None:
    predictor = open_predictor(save_untrained("faces", datasets["faces"], tmp_path / "model"))
    assert isinstance(predictor, FacePredictor)
    items = some_items(datasets["faces"], 3)
    np.testing.assert_array_equal(embed(predictor, items)[0], predictor.embed(items)[0])


def test_only_the_own_thread_is_heard() -> None:
    module = nn.Identity()
    with listening(module) as heard:
        other = threading.Thread(target=module, args=(torch.ones(1),))
        other.start()
        other.join()
        module(torch.zeros(2))
    module(torch.zeros(3))
    assert [len(tensor) for tensor in heard] == [2]
