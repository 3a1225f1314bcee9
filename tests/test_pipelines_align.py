"""`./convoy align` and `./convoy liveness`, as a person types them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.mtcnn import MTCNN
from tests.annotated import ingest_source
from tests.conftest import Run
from tests.handmade import write_model
from tests.pictures import picture, png, write_tree

CLASSES = ("real", "simulated_print", "simulated_replay")


@pytest.fixture
def people(tmp_path: Path) -> Path:
    files = {f"p{i:02d}/p{i:02d}_{j:04d}.png": png(10 * i + j) for i in range(12) for j in (1, 2)}
    return write_tree(tmp_path / "people", {**files, "pairs.txt": b"p00\t1\t2\np00\t1\tp01\t1\n"})


def test_faces_are_aligned_with_their_names_and_lists(run: Run, people: Path, tmp_path: Path) -> None:
    (people / "p03" / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "aligned"
    words = ("--method", "crop", "--crop", "4", "0", "44", "40", "--side-px", "32")
    code, stdout, err = run("align", str(people), str(out), *words, "--json")
    assert code == 0, err
    document = json.loads(stdout)
    assert (document["faces"], list(document["left_out"])) == (24, ["p03/broken.png"])
    assert (out / "pairs.txt").read_bytes() == (people / "pairs.txt").read_bytes()
    with Image.open(out / "p02" / "p02_0001.png") as face:
        wanted = picture(21).crop((4, 0, 44, 40)).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(np.asarray(face), np.asarray(wanted))
    assert json.loads((out / "alignment.json").read_text()) == document["alignment"]
    assert json.loads((out / "left_out.json").read_text()) == document["left_out"]
    code, _, err = run("align", str(people), str(out), *words)
    assert (code, "is there and not empty" in err) == (2, True)


def test_a_folder_without_faces_is_told_and_nothing_is_left(run: Run, people: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, weights = MTCNN(), tmp_path / "weights"
    weights.mkdir()
    with torch.no_grad():
        net.pnet.conv4_1.weight.zero_()
        net.pnet.conv4_1.bias.copy_(torch.tensor([9.0, -9.0]))  # nothing is a face
    for name in ("pnet", "rnet", "onet"):
        torch.save(getattr(net, name).state_dict(), weights / f"{name}.pt")
    code, _, err = run("align", str(people), str(tmp_path / "out"), "--weights", str(weights))
    assert (code, "no face in 24 pictures: no face was found" in err) == (2, True)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    code, _, err = run("align", str(people), str(tmp_path / "out"))
    assert (code, "weights (='') belong to mtcnn and landmarks68" in err) == (2, True)


def test_a_set_is_simulated_and_a_model_judged_on_it(
    run: Run, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path / "home"))
    out = tmp_path / "spoofs"
    code, stdout, err = run("liveness", "simulate", str(people), str(out), "--side-px", "16", "--json")
    assert code == 0, err
    assert "simulate 24/24" in err or "simulate 25/25" in err  # how far it was
    counts = json.loads(stdout)["counts"]
    assert sum(sum(each.values()) for each in counts.values()) == 12 * 2 * 3
    store = tmp_path / "home" / "data" / "store"
    store.mkdir(parents=True)
    _, dataset = ingest_source(tmp_path, "classification", out, "spoofs")
    dataset.path.rename(store / "spoofs")
    model = write_model(
        tmp_path / "model", CLASSES, architecture="resnet8_cifar", stored_px=16, crop_px=16, pad_px=0
    )
    words = ("liveness", "evaluate", str(model), "--dataset", "spoofs")
    code, stdout, err = run(*words, "--max-bpcer", "0.5", "--json")
    assert code == 0, err
    document = json.loads(stdout)
    assert document["fitted"]["rate"] == "bpcer" and document["fitted"]["remark"] is None
    assert document["val"]["rates"]["bpcer"]["value"] <= 0.5
    rates = document["test"]["rates"]
    assert set(rates) == {"apcer simulated_print", "apcer simulated_replay", "bpcer"}
    assert document["test"]["apcer"] == max(rates[f"apcer {kind}"]["value"] for kind in CLASSES[1:])
    assert document["test"]["acer"] == (document["test"]["apcer"] + rates["bpcer"]["value"]) / 2
    code, stdout, err = run(*words, "--max-apcer", "0.1")
    assert code == 0, err
    assert "APCER ≤ 0.1 on val" in stdout and "ACER, by simulated_" in stdout
    attacks = document["val"]["rates"]["apcer simulated_print"]["num"]
    code, stdout, err = run(*words, "--max-apcer", str(0.5 / attacks))
    said = f"is less than one of {attacks} validation faces of simulated_print"
    assert code == 0 and said in " ".join(stdout.split()), err
    code, stdout, err = run(*words, "--max-apcer", str(0.5 / attacks), "--json")
    assert said in json.loads(stdout)["fitted"]["remark"]
    strict = tmp_path / "strict"
    code, stdout, err = run(*words, "--max-apcer", "0.1", "--out", str(strict), "--json")
    assert code == 0, err
    fitted = json.loads(stdout)["fitted"]["threshold"]
    assert json.loads((strict / "model.json").read_text())["thresholds"] == {"liveness": fitted}
    code, _, err = run(*words, "--max-apcer", "0.1", "--max-bpcer", "0.1")
    assert (code, "give one" in err) == (2, True)
    code, _, err = run(*words, "--split", "val")
    assert (code, "--split (=val) is what the threshold is fitted to" in err) == (2, True)


def test_a_model_of_other_classes_is_no_liveness_check(run: Run, tmp_path: Path) -> None:
    model = write_model(
        tmp_path / "model", ("cat", "dog"), architecture="resnet8_cifar", stored_px=16, crop_px=16, pad_px=0
    )
    code, _, err = run("liveness", "evaluate", str(model), "--dataset", "digits")
    assert (code, "a liveness check needs 'real'" in err) == (2, True)
