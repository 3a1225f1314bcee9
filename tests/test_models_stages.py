"""The stages of a network are its forward pass, cover its parameters, and stay as they are where they are frozen."""

import pytest
import torch
from torch import Tensor, nn

from models.classification import ARCHITECTURES, Classifier, arguments_of, build, least_px
from models.stages import ATOL, RTOL, parameters_of, require_composed, run_stages, stages_of
from tests.published import efficientnet_lite0


def classifier(name: str) -> Classifier:
    torch.manual_seed(0)
    return build(name, 5, 3, arguments_of(name, 32), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_stages_one_after_the_other_are_the_network(name: str) -> None:
    model, px = classifier(name).eval(), max(32, least_px(name))
    x = model.normalise(torch.randint(0, 256, (2, 3, px, px), dtype=torch.uint8))
    torch.testing.assert_close(run_stages(stages_of(model.net), x), model.net(x), rtol=RTOL, atol=ATOL)
    require_composed(model.net, x)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_belongs_to_one_stage_and_the_head_to_the_last(name: str) -> None:
    net = classifier(name).net
    parts = [parameters_of(net, [stage]) for stage in stages_of(net)]
    assert sum(len(part) for part in parts) == len(net.state_dict()) == len(set().union(*parts))
    assert any(net.state_dict()[key].shape[:1] == (5,) for key in parts[-1])


@pytest.mark.parametrize("name", ["resnet8_cifar", "efficientnet_lite0"])
def test_frozen_stages_do_not_move(name: str) -> None:
    model = classifier(name)
    num = len(stages_of(model.net)) - 2
    model.freeze(num)
    model.train()
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)).square().sum().backward()
    optimizer.step()
    frozen = parameters_of(model.net, stages_of(model.net)[:num])
    after = model.net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in frozen)
    assert not any(torch.equal(before[key], after[key]) for key in set(before) - frozen)


def test_a_network_that_is_not_its_children_in_order_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(self.first(x)))

    with pytest.raises(ValueError, match=r"Twice: its children .* transfer.cache_features=false"):
        require_composed(Twice(), torch.randn(3, 4))
    require_composed(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 4))


@pytest.mark.data
def test_efficientnet_lite0_loads_the_published_weights_strictly() -> None:
    net = ARCHITECTURES["efficientnet_lite0"](num_classes=1000, channels=3)
    kept = net.load_state_dict(torch.load(efficientnet_lite0(), weights_only=True), strict=False)
    assert (kept.missing_keys, kept.unexpected_keys) == ([], [])
