"""Style transfer by optimisation: it lowers its cost, goes on where it stopped, keeps colours, and refuses nonsense."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from data.palette import from_yiq, luminance, match_colours, match_luminance, to_yiq, with_colours_of
from models.efficientnet_lite import EfficientNetLite
from models.style import Objective, Style, gram_matrix
from tasks import stylize as loop
from tasks.featurenet import StyleNet
from tasks.precision import resolve_precision
from tasks.stopping import Interrupted
from tasks.styleconfig import StylizeConfig
from tasks.stylegrid import SHEET, GridConfig, cells_of, contact_sheet, render_grid
from tasks.stylenet import read_style_net
from tasks.stylepictures import Pictures, at_scale, read_picture, read_pictures, size_at, to_image
from tasks.stylize import Step, stylize

CONFIG: dict[str, Any] = {
    "net": {"name": "vgg11", "weights": "random", "pooling": "average", "precision": "fp32"},
    "cost": {
        "normalisation": "relative", "content_layer": "relu2_1", "content_weight": 1.0,
        "style_layers": [["relu1_1", 1.0], ["relu2_1", 1.0]], "style_weight": 10.0, "variation_weight": 0.1,
    },
    "optim": {"name": "lbfgs", "lr": 1.0, "momentum": 0.5, "history": 5},
    "scales": [[24, 6], [32, 6]], "style_px": 0, "noise": 0.0, "seed": 3, "colour": "style",
    "picture_every": 4, "checkpoint_every": 5,
}  # fmt: skip
RATES = {"lbfgs": 1.0, "adam": 0.02, "sgd": 0.5}


def config(**changes: Any) -> StylizeConfig:
    values = {name: dict(part) if isinstance(part, dict) else part for name, part in CONFIG.items()}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values[section][key] = value
        else:
            values[section] = value
    return StylizeConfig.parse(values, "test")


def photo(seed: int, height: int = 40, width: int = 48) -> Tensor:
    """Smooth random colours."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def pictures(**changes: Any) -> Pictures:
    return Pictures(photo(0), (Style(photo(1, 50, 40), **changes),))


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def no_model(_name: str) -> Path:
    raise AssertionError("no model was asked for")


def net(of: StylizeConfig) -> StyleNet:
    return read_style_net(of.net, no_model)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("stop_after", [3, 6, 9])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(name: str, stop_after: int, tmp_path: Path) -> None:
    own = config(optim__name=name, optim__lr=RATES[name])
    straight = stylize(own, pictures(), net(own), tmp_path / "straight")
    heard: list[Step] = []

    def hear(step: Step, _file: Path | None) -> None:
        heard.append(step)

    with pytest.raises(Interrupted, match=f"after step {stop_after}"):
        stylize(own, pictures(), net(own), tmp_path / "cut", hear, lambda: len(heard) == stop_after - 1)
    resumed = stylize(own, pictures(), net(own), tmp_path / "cut", hear)
    assert [step.iteration for step in heard] == list(range(12))
    assert torch.equal(resumed.picture, straight.picture) and resumed.final == straight.final
    assert [step.total for step in resumed.steps] == [step.total for step in straight.steps]


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    own = config()
    straight = stylize(own, pictures(), net(own), tmp_path / "straight")

    def die(step: Step, _file: Path | None) -> None:
        if step.iteration == 8:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        stylize(own, pictures(), net(own), tmp_path / "cut", die)
    assert len(loop.load_state(tmp_path / "cut").steps) == 6  # the end of the first scale
    resumed = stylize(own, pictures(), net(own), tmp_path / "cut")
    assert torch.equal(resumed.picture, straight.picture)


@pytest.mark.parametrize("name", RATES)
def test_every_optimizer_lowers_the_cost(name: str, tmp_path: Path) -> None:
    own = config(optim__name=name, optim__lr=RATES[name], scales=[[32, 25]])
    result = stylize(own, pictures(), net(own), tmp_path)
    assert result.final["total"] < 0.7 * result.steps[0].total
    assert result.picture.min() >= 0 and result.picture.max() <= 1 and result.picture.shape == (1, 3, 27, 32)


def test_the_folder_keeps_pictures_and_costs(tmp_path: Path) -> None:
    own, files = config(), []
    result = stylize(own, pictures(), net(own), tmp_path, lambda _step, file: files.append(file))
    kept = [file for file in files if file]
    assert [file.name for file in kept] == ["00004.png", "00008.png", "00012.png"]
    assert size_of(kept[0]) == (24, 20) and size_of(tmp_path / "result.png") == (32, 27)
    lines = (tmp_path / "costs.csv").read_text().splitlines()
    assert lines[0].startswith("iteration,longer_px,content,style") and len(lines) == 13
    assert lines[1].split(",")[2] == str(result.steps[0].content)


def test_the_seed_decides_the_noise(tmp_path: Path) -> None:
    first, again, other = (
        stylize(
            config(noise=1.0, seed=seed, net__name="vgg11"), pictures(), net(config()), tmp_path / str(i)
        ).picture
        for i, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    content = photo(0)
    assert torch.equal(loop.first_picture(content, 0.0, 0), content)
    assert abs(float(loop.first_picture(content, 1.0, 0).mean()) - 0.5) < 0.02


def test_moments_are_carried_to_more_pixels_as_their_gradients_fall() -> None:
    before = {"exp_avg": torch.full((1, 3, 4, 4), 2.0), "exp_avg_sq": torch.full((1, 3, 4, 4), 4.0)}
    after = loop.carry_up({**before, "step": torch.tensor(5.0)}, (8, 8))
    assert after["exp_avg"].shape == (1, 3, 8, 8) and float(after["exp_avg"].max()) == 0.5
    assert float(after["exp_avg_sq"].min()) == 0.25 and float(after["step"]) == 5


def test_bfloat16_comes_to_the_cost_of_float32(tmp_path: Path) -> None:
    finals = {}
    for precision in ("fp32", "bf16"):
        own = config(net__precision=precision, scales=[[32, 150]])
        result = stylize(own, pictures(), net(own), tmp_path / precision)
        exact = net(config()).build(own.cost.weights().layers, own.seed)
        scale = at_scale(pictures(), 32, own)
        objective = Objective(exact, scale.seen, scale.styles, own.cost.weights(), "relative")
        finals[precision] = float(objective(result.picture)["total"])
    assert finals["bf16"] == pytest.approx(finals["fp32"], rel=0.1)
    assert resolve_precision("bf16", torch.device("cpu")) == torch.bfloat16


def test_luminance_keeps_the_content_s_colours(tmp_path: Path) -> None:
    own = config(colour="luminance", scales=[[32, 10]])
    result = stylize(own, pictures(), net(own), tmp_path)
    content = at_scale(pictures(), 32, own).content
    inside = (result.picture > 0.01).all(1) & (result.picture < 0.99).all(1)
    difference = (to_yiq(result.picture) - to_yiq(content)).abs()
    assert float(difference[:, 1:].amax(1)[inside].max()) < 1e-5 < float(difference[:, 0].max())


def test_of_luminance_the_cost_is_that_of_what_is_shown(tmp_path: Path) -> None:
    """Noise has colours; those of the picture that is optimised are not shown, so nothing may be gained by them."""
    own = config(colour="luminance", noise=0.5, scales=[[32, 10]])
    result = stylize(own, pictures(), net(own), tmp_path)
    scale = at_scale(pictures(), 32, own)
    feature = net(own).build(own.cost.weights().layers, own.seed)
    objective = Objective(feature, scale.seen, scale.styles, own.cost.weights(), "relative")
    optimised = loop.load_state(tmp_path).picture
    assert optimised is not None and float(to_yiq(optimised)[:, 1:].abs().max()) > 0.01
    assert float(objective(luminance(optimised))["total"]) == pytest.approx(result.final["total"], rel=1e-5)


def test_histogram_gives_styles_the_content_s_mean_and_covariance() -> None:
    style, content = 0.3 * photo(1) + 0.3, 0.3 * photo(0) + 0.4
    matched = match_colours(style, content)[0].flatten(1)
    wanted = content[0].flatten(1)
    torch.testing.assert_close(matched.mean(1), wanted.mean(1), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.cov(matched), torch.cov(wanted), rtol=0.05, atol=1e-4)


def test_colours_go_to_yiq_and_back() -> None:
    picture = photo(2)
    torch.testing.assert_close(from_yiq(to_yiq(picture)), picture, rtol=1e-4, atol=1e-5)
    grey = luminance(picture)
    torch.testing.assert_close(with_colours_of(grey, picture), picture, rtol=1e-4, atol=1e-5)
    assert float(to_yiq(grey)[:, 1:].abs().max()) < 1e-5
    matched = match_luminance(0.2 * luminance(photo(1)) + 0.4, grey)
    assert abs(float(matched.mean() - grey.mean())) < 0.02


def test_a_blend_lies_between_its_styles(tmp_path: Path) -> None:
    own = config(cost__content_weight=0.0, scales=[[32, 30]], noise=1.0)
    both = Pictures(photo(0), (Style(photo(1), 3.0), Style(photo(2), 1.0)))
    result = stylize(own, both, net(own), tmp_path).picture
    feature = net(own).build(["relu1_1"], own.seed)
    gram = gram_matrix(feature(result)["relu1_1"])
    near, far = (float((gram - gram_matrix(feature(photo(i, 27, 32))["relu1_1"])).norm()) for i in (1, 2))
    assert near < far


def test_a_trained_network_of_ours_gives_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "lite.safetensors"
    state = {f"net.{name}": value for name, value in EfficientNetLite(7, 3).state_dict().items()}
    statistics = {"mean": torch.tensor([0.4, 0.5, 0.6]), "std": torch.tensor([0.2, 0.2, 0.3])}
    save_file({**state, **statistics}, file)
    own = config(
        net={"name": "efficientnet_lite0", "weights": str(file), "pooling": "max", "precision": "auto"},
        cost__content_layer="group2", cost__style_layers=[["stem", 1.0], ["group1", 1.0]], scales=[[64, 3]],
    )  # fmt: skip
    source = net(own)
    assert source.mean == pytest.approx((0.4, 0.5, 0.6))
    result = stylize(own, pictures(), source, tmp_path / "run")
    assert result.final["total"] < result.steps[0].total
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    save_file(old | statistics, tmp_path / "old.safetensors")  # as torch kept them before 0.4.1
    same = config(net={**own.net.model_dump(), "weights": str(tmp_path / "old.safetensors")})
    names = own.cost.weights().layers
    again, wanted = (each.build(names, 0)(photo(0)) for each in (net(same), source))
    assert all(torch.equal(again[name], wanted[name]) for name in names)
    with pytest.raises(ValueError, match=r"net.weights \(=.*\) are not of resnet18: .* set net.name"):
        net(config(net={**own.net.model_dump(), "name": "resnet18"})).build(["stem"], 0)


def test_a_cost_that_is_no_number_is_told_at_its_iteration(tmp_path: Path) -> None:
    own = config(cost__style_weight=1e39)
    with pytest.raises(
        FloatingPointError, match=r"J is no number at iteration 1: lower .* \(style_weight =1e\+39\)"
    ):
        stylize(own, pictures(), net(own), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": [[64, 5], [32, 5]]}, "sides must be at least 16 px and not fall"),
        ({"cost__style_layers": [["relu1_1", 1.0], ["relu1_1", 2.0]]}, "each layer may stand once"),
        ({"cost__content_weight": 0.0, "cost__style_weight": 0.0}, "content_weight or style_weight"),
        ({"net__weights": "none.pth"}, r"net.weights \(=none.pth\): there is no such file"),
        ({"net__weights": "package:nobody_has_this"}, r"install it .*nobody-has-this"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        net(config(**changes))


def test_pictures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"x.png: not an image"):
        read_picture(tmp_path / "x.png")
    with pytest.raises(ValueError, match="at least one style"):
        read_pictures("skimage:chelsea", (), (), ())
    with pytest.raises(ValueError, match="2 weights for 1 style"):
        read_pictures("skimage:chelsea", ("skimage:ihc",), (1.0, 2.0), ())
    with pytest.raises(ValueError, match="must be above 0"):
        read_pictures("skimage:chelsea", ("skimage:ihc",), (0.0,), ())
    with pytest.raises(ValueError, match="400x20 px has 2 px across"):
        size_at(torch.zeros(1, 3, 20, 400), 32)
    Image.new("L", (300, 451), 255).save(tmp_path / "mask.png")
    with pytest.raises(
        ValueError, match=r"mask.png is 300x451 px and the content 451x300: a mask lies on the content"
    ):
        read_pictures("skimage:chelsea", ("skimage:ihc",), (), (str(tmp_path / "mask.png"),))
    Image.new("L", (451, 300)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match=r"black.png is black everywhere, and its style would come nowhere"):
        read_pictures("skimage:chelsea", ("skimage:ihc",), (), (str(tmp_path / "black.png"),))
    Image.new("L", (150, 100), 255).save(tmp_path / "small.png")  # a third as large, rounded
    [style] = read_pictures("skimage:chelsea", ("skimage:ihc",), (), (str(tmp_path / "small.png"),)).styles
    assert style.mask is not None and style.mask.shape == (1, 1, 100, 150)


def test_each_style_comes_where_its_mask_is_white(tmp_path: Path) -> None:
    """A red style on the left half, a blue one on the right."""
    red, blue = (torch.zeros(1, 3, 40, 40) for _ in range(2))
    red[:, 0], blue[:, 2] = 0.9, 0.9
    left = torch.zeros(1, 1, 40, 48)
    left[..., :24] = 1
    asked = Pictures(torch.full((1, 3, 40, 48), 0.5), (Style(red, 1.0, left), Style(blue, 1.0, 1 - left)))
    own = config(cost__content_weight=0.0, cost__variation_weight=0.0, scales=[[32, 150]])
    made = stylize(own, asked, net(own), tmp_path).picture
    halves = [part.mean((0, 2, 3)) for part in (made[..., :12], made[..., -12:])]
    assert halves[0][0] > halves[0][2] + 0.5 and halves[1][2] > halves[1][0] + 0.5


def grid(**changes: Any) -> GridConfig:
    return GridConfig.parse(
        {"ratios": [1, 100], "depths": [1, 0], "seeds": [0], "threads": 1, **changes}, "grid"
    )


def test_a_grid_renders_what_is_left_and_lays_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = config(scales=[[24, 2]])
    cells, rendered = cells_of(grid(), own), []
    assert [(cell.depth, cell.ratio) for cell in cells] == [(1, 1), (1, 100), (2, 1), (2, 100)]

    def here(function: Any, jobs: Any, _threads: int, _gpus: float) -> Any:
        for place, job in enumerate(jobs):
            rendered.append(job[0])
            yield place, function(*job)

    monkeypatch.setattr("tasks.calls.call_each", here)
    monkeypatch.setattr("tasks.calls.share", lambda value: value)
    done = render_grid(own, grid(), pictures(), net(own), tmp_path, lambda *_: None)
    assert done == tmp_path / SHEET and len(rendered) == 4
    assert [(c.cost.style_weight, len(c.cost.style_layers)) for c in rendered] == [
        (1, 1),
        (100, 1),
        (1, 2),
        (100, 2),
    ]
    (tmp_path / cells[1].name / "result.png").unlink()
    render_grid(own, grid(), pictures(), net(own), tmp_path, lambda *_: None)
    assert len(rendered) == 5 and rendered[4].cost.style_weight == 100
    sheet = np.asarray(contact_sheet(cells, grid(), pictures(), tmp_path))
    assert sheet.shape == (6 + 3 * (213 + 22 + 6), 6 + 2 * (256 + 6), 3)


def test_a_grid_that_would_vary_nothing_is_refused() -> None:
    own = config()
    with pytest.raises(ValueError, match=r"depths \(=3\) must be at most 2"):
        cells_of(grid(depths=[3]), own)
    with pytest.raises(ValueError, match="name all 2 style layers twice: 0 is all"):
        cells_of(grid(depths=[2, 0]), own)
    with pytest.raises(ValueError, match=r"cost\.content_weight must be above 0"):
        cells_of(grid(), config(cost__content_weight=0.0))
    several, trained = grid(seeds=[0, 1]), config(net__weights="file.pth")
    with pytest.raises(ValueError, match=r"seeds \(=\(0, 1\)\) are of the noise.* set noise above 0"):
        cells_of(several, trained)
    assert len(cells_of(several, own)) == 8  # there the seed decides the filters
    assert len(cells_of(several, config(net__weights="file.pth", noise=0.5))) == 8


@pytest.mark.data
def test_real_weights_bring_a_photograph_near_a_painting(datasets_folder: Path, tmp_path: Path) -> None:
    own = config(
        net={
            "name": "vgg16", "weights": str(datasets_folder / "weights" / "vgg16_hed_fp16.safetensors"),
            "pooling": "average", "precision": "auto",
        },
        cost__style_layers=[["relu1_1", 1.0], ["relu2_1", 1.0], ["relu3_1", 1.0]], cost__content_layer="relu3_1",
        scales=[[64, 30]],
    )  # fmt: skip
    asked = read_pictures("skimage:chelsea", ("skimage:ihc",), (), ())
    result = stylize(own, asked, net(own), tmp_path)
    assert result.final["style"] < 0.1 * result.steps[0].style
    assert to_image(result.picture).size == (64, 43)
