"""Two workers that compare the pictures of both: the gradient, the loss and the figures of one with the whole batch."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from data.people import People, people_order
from data.random import SampleGenerator
from data.records import Batch
from models.faces import Embedded, FaceLoss
from tasks.faces import loss
from tasks.wholebatch import as_the_first_has, gathered, workers_of
from tests.ranks import run_two

P, K = 6, 3  # people of a batch, pictures of each
LABELS = np.repeat(np.arange(10), [2, 3, 4, 5, 2, 3, 4, 5, 2, 3])  # of some, pictures come twice
PICTURES = torch.randn(len(LABELS), 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
TRIPLET = {"name": "triplet", "scale": 16.0, "margin": 0.3, "distance": "squared", "mining": "semi_hard"}
CASES: dict[str, dict[str, Any]] = {
    "random": {**TRIPLET, "mining": "random"},
    "semi_hard": TRIPLET,
    "batch_hard": {**TRIPLET, "mining": "batch_hard", "distance": "plain"},
    "contrastive": {**TRIPLET, "name": "contrastive", "margin": 1.0},
    "cosface": {**TRIPLET, "name": "cosface"},
    # the second worker's pictures are all alike
    "half_collapsed": {**TRIPLET, "mining": "batch_hard"},
}
COMPARING = [case for case in CASES if case != "cosface"]


class Embedder(nn.Module):
    """Two dense layers in float64, without statistics of the batch: (B, 12) → unit vectors (B, 8)."""

    def __init__(self, num_people: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).double()
        self.people = nn.Parameter(torch.randn(num_people, 8).double()) if num_people else None

    def forward(self, images: Tensor, labels: Tensor) -> Embedded:
        embeddings = F.normalize(self.body(images))
        if self.people is None:
            return Embedded(embeddings)
        return Embedded(embeddings, embeddings @ F.normalize(self.people).T, labels)


def places_of(rank: int, num_workers: int) -> np.ndarray:
    """The pictures that a worker sees in the first step of an epoch, as tasks.batches has it."""
    order = people_order(SampleGenerator(0, 0), People(LABELS, K), 1, P, num_workers)
    return order[rank::num_workers]


def step(case: str, rank: int = 0, num_workers: int = 1, places: np.ndarray | None = None) -> dict[str, Any]:
    """One step of a worker: gradients by name, and what is logged; of other `places` where they are given."""
    model = Embedder(len(set(LABELS)) if case == "cosface" else 0)
    network = DistributedDataParallel(model) if num_workers > 1 else model
    pictures = PICTURES.clone()
    if case == "half_collapsed":
        pictures[places_of(1, 2)] = 1.0
    places = places_of(rank, num_workers) if places is None else places
    batch = Batch(pictures[places], torch.from_numpy(LABELS[places]), places)
    torch.manual_seed(1 + rank)  # as the loop has it: only the first worker's dice are a lone one's
    value, logged = loss(network, batch, SimpleNamespace(loss=FaceLoss.parse(CASES[case], "loss")))  # type: ignore[arg-type]
    value.backward()
    gradients = {name: each.grad for name, each in model.named_parameters()}
    return {"gradients": gradients, "logged": logged, "descended": value.detach()}


def worker(rank: int, folder: Path) -> None:
    """One of two: all cases, one after the other; then what a gathering gives."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found: dict[str, Any] = {case: step(case, rank, 2) for case in CASES}
    workers = workers_of(DistributedDataParallel(nn.Linear(1, 1)))
    rows = (torch.arange(6.0).view(3, 2) + 10 * rank).T.requires_grad_()  # not contiguous
    whole = gathered(rows, workers)
    (whole * torch.arange(8.0).view(4, 2)[:, :1]).sum().backward()
    found["gathered"] = {"whole": whole.detach(), "grad": rows.grad}
    found["first"] = as_the_first_has(torch.tensor([rank, 5 - rank]), workers)
    torch.save(found, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, that trained side by side."""
    folder = tmp_path_factory.mktemp("workers")
    run_two(worker, folder)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_one_worker_with_the_whole_batch(
    both: list[dict[str, Any]], case: str
) -> None:
    wanted = step(case)["gradients"]
    # the softmax over people is in float32
    near: dict[str, Any] = (
        {"rtol": 1e-4, "atol": 1e-6} if case == "cosface" else {"rtol": 1e-9, "atol": 1e-12}
    )
    for found in both:
        assert found[case]["gradients"].keys() == wanted.keys()
        for name, gradient in found[case]["gradients"].items():
            torch.testing.assert_close(
                gradient, wanted[name], **near, msg=lambda text, at=name: f"{at}: {text}"
            )


@pytest.mark.parametrize("case", ["random", "semi_hard", "batch_hard", "contrastive"])
def test_it_is_not_the_mean_of_what_each_finds_among_its_own(case: str) -> None:
    """Or the test above would tell nothing."""
    whole = step(case)["gradients"]
    halves = [step(case, places=places_of(rank, 2))["gradients"] for rank in range(2)]
    apart = max(
        float((whole[name] - (halves[0][name] + halves[1][name]) / 2).abs().max() / whole[name].abs().max())
        for name in whole
    )
    assert apart > 0.01


@pytest.mark.parametrize("case", COMPARING)
def test_loss_and_figures_are_those_of_the_whole_batch_on_each(both: list[dict[str, Any]], case: str) -> None:
    wanted = step(case)
    assert wanted["logged"]["active"] > 0
    for found in both:
        assert found[case]["logged"].keys() == wanted["logged"].keys()
        for name, value in wanted["logged"].items():
            # the root of a distance that rounding alone makes more than zero has half of its digits
            torch.testing.assert_close(found[case]["logged"][name], value, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found[case]["descended"], wanted["descended"])


def test_people_are_told_apart_by_each_and_distances_are_those_of_all(both: list[dict[str, Any]]) -> None:
    wanted, (one, other) = step("cosface")["logged"], (found["cosface"]["logged"] for found in both)
    for name in ("loss", "accuracy"):
        torch.testing.assert_close((one[name] + other[name]) / 2, wanted[name])
    assert one["loss"] != other["loss"]
    for found in (one, other):
        torch.testing.assert_close(found["pair_distance"], wanted["pair_distance"])


def test_a_batch_has_collapsed_only_if_that_of_all_has(both: list[dict[str, Any]]) -> None:
    alone = step("half_collapsed", places=places_of(1, 2))["logged"]
    assert alone["collapsed"] == 1
    assert [float(found["half_collapsed"]["logged"]["collapsed"]) for found in both] == [0, 0]


def test_rows_come_in_order_of_rank_and_their_gradient_goes_back_times_the_workers(
    both: list[dict[str, Any]],
) -> None:
    rows = [(torch.arange(6.0).view(3, 2) + 10 * rank).T for rank in range(2)]
    for rank, found in enumerate(both):
        assert torch.equal(found["gathered"]["whole"], torch.cat(rows))
        own = torch.tensor([[0.0], [2.0], [4.0], [6.0]])[2 * rank : 2 * rank + 2]
        assert torch.equal(found["gathered"]["grad"], 2 * own.expand(2, 3))
        assert found["first"].tolist() == [0, 5]


def test_a_lone_worker_has_what_it_has() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert workers_of(nn.Linear(1, 1)) is None
    assert gathered(rows, None) is rows and as_the_first_has(rows, None) is rows
