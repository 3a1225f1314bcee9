"""Simulated presentation attacks: what a camera sees of a face printed on paper, or shown on a screen.

For training and testing liveness where no recorded attacks are at hand. They are simulations, and called so in every
file that comes of them: how a detector does on them says little about real prints and screens, and nothing about masks.

A print is made of dots: cyan, magenta and yellow screens at 15°, 75° and 0°, whose thresholds are uniform, so that the
inked share of the paper is the ink wanted (clustered-dot halftone, Ulichney 1987). Ink and paper have less range than a
face, and the paper ends in a white border. A screen glows bluish through stripes of red, green and blue, which beat
with the camera's own pixels (moiré); it has a bezel, and glass that mirrors a lamp (glare). Both stand in
perspective before a plain background. Everything is a function of the place on the medium, sampled at `SAMPLES`² places
in each camera pixel; then the camera adds blur, exposure and noise, which it adds to real faces too.

Pictures are (B, 3, S, S) uint8 squares; every choice is drawn by the sample's index (data.augment.Draws).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from data.augment import Draws
from data.colour import to_levels

SAMPLES = 3  # along each side of a camera pixel
# what cyan, magenta, yellow let through
INK_RGB = ((0.12, 0.60, 0.85), (0.85, 0.16, 0.48), (0.98, 0.90, 0.20))
INK_ANGLES_DEG = (15.0, 75.0, 0.0)
DOT_GAIN = 0.06  # softness of a dot's edge, as a share of ink
PITCH = (0.008, 0.016)  # of the halftone's dots, as shares of the face's side: coarse, as office printers
STRIPES_PX = (0.82, 1.25)  # of a screen, in camera pixels
TILT = 0.16  # greatest move of a corner of the medium, as a share of the side
SCALE = (0.80, 1.20)  # of the face on the medium, beside the camera's picture


def simulated_print(faces: Tensor, draws: Draws) -> Tensor:
    """Faces (B, 3, S, S) uint8 printed, and taken again by a camera: the same shape and type."""
    return _presented(faces, draws, _paper)


def simulated_replay(faces: Tensor, draws: Draws) -> Tensor:
    """Faces (B, 3, S, S) uint8 shown on a screen, and taken again by a camera: the same shape and type."""
    return _presented(faces, draws, _screen)


def captured(faces: Tensor, draws: Draws) -> Tensor:
    """Faces (B, 3, S, S) uint8 taken by the same camera without an attack: so that it gives nothing away."""
    return camera(faces.float() / 255, draws)


ATTACKS: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "simulated_print": simulated_print,
    "simulated_replay": simulated_replay,
}


def _presented(
    faces: Tensor, draws: Draws, medium: Callable[[Tensor, Tensor, int, Draws], tuple[Tensor, Tensor]]
) -> Tensor:
    """A medium with the face on it, in perspective before a background."""
    B, _, S, _ = faces.shape
    places = medium_places(perspectives(draws), S * SAMPLES)  # the face covers [0, 1] x [0, 1] of them
    shown = F.grid_sample(
        faces.float() / 255, places * 2 - 1, mode="bilinear", padding_mode="border", align_corners=False
    )
    light, covered = medium(shown, places.permute(0, 3, 1, 2), S, draws)
    scene = torch.where(covered, light, _background(draws, S * SAMPLES))
    return camera(F.avg_pool2d(scene, SAMPLES), draws)


def perspectives(draws: Draws) -> Tensor:
    """Maps (B, 3, 3) from the camera's picture, [0, 1] x [0, 1], to the medium's, on which that is the face."""
    B = len(draws.indices)
    low, high = SCALE
    half = (low + draws.uniform("attack.scale") * (high - low))[:, :, None] / 2  # (B, 1, 1)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], device=draws.device)
    moves = (
        draws.around("attack.corners", TILT, 8).view(B, 4, 2)
        + draws.around("attack.shift", TILT / 2, 2)[:, None]
    )
    return homography(0.5 + corners * half + moves, (corners + 1) / 2)


def homography(old_xy: Tensor, new_xy: Tensor) -> Tensor:
    """The perspective map (B, 3, 3) that takes four places (B, 4, 2) to four (4, 2).

    Two linear equations a place, h₃₃ = 1 (Hartley and Zisserman 2004, section 4.1).
    """
    B = len(old_xy)
    x, y = old_xy.unbind(2)
    u, v = new_xy.unbind(1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    of_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 2)
    of_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 2)
    wanted = torch.cat([u, v]).expand(B, 8)
    solved = torch.linalg.solve(torch.cat([of_u, of_v], 1), wanted)
    return torch.cat([solved, torch.ones(B, 1, device=old_xy.device)], 1).view(B, 3, 3)


def medium_places(maps: Tensor, side: int) -> Tensor:
    """Where `side`² places of the camera's picture lie on the medium: (B, side, side, 2)."""
    step = (torch.arange(side, device=maps.device) + 0.5) / side
    y, x = torch.meshgrid(step, step, indexing="ij")
    seen = torch.stack([x, y, torch.ones_like(x)], 2)  # (side, side, 3)
    moved = torch.einsum("bij,yxj->byxi", maps, seen)
    return moved[..., :2] / moved[..., 2:]


def _paper(face: Tensor, places: Tensor, _side_px: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Light (B, 3, H, W) that comes from inked paper, and where there is paper."""
    pitch = _between(draws, "print.pitch", PITCH)
    gamma = _between(draws, "print.gamma", (0.75, 1.15))
    face = torch.where(_inside(places, 0.0), face.clamp(1e-3, 1) ** gamma, 1.0)
    turn = draws.around("print.turn", 10)[:, :, None]
    light = torch.ones_like(face)
    for number, (through, angle_deg) in enumerate(zip(INK_RGB, INK_ANGLES_DEG, strict=True)):
        threshold = halftone_threshold(places, pitch[:, 0], (angle_deg + turn) * (math.pi / 180))
        wanted = 0.92 * (1 - face[:, number])
        inked = ((wanted - threshold) / DOT_GAIN + 0.5).clamp(0, 1)[:, None]
        light = light * (1 - inked * (1 - face.new_tensor(through).view(1, 3, 1, 1)))
    white = 0.88 + 0.10 * draws.uniform("print.white", 3)[:, :, None, None]
    border = _between(draws, "print.border", (0.03, 0.12))
    x = places[:, :1] - 0.5
    bend = 1 - 0.15 * draws.uniform("print.bend")[:, :, None, None] * (1 - torch.cos(3 * x))
    light = light * white * bend + _glare(places, draws, "print", 0.15)
    return light, _inside(places, border)


def halftone_threshold(places: Tensor, pitch: Tensor, angle_rad: Tensor) -> Tensor:
    """How much ink it takes to ink a place (B, 2, H, W): (B, H, W), uniform in [0, 1] over any whole dots.

    `pitch` (B, 1, 1) between dots, `angle_rad` (B, 1, 1) of their rows. The mean of two triangle waves has a
    triangular distribution; its own distribution function makes it uniform.
    """
    x, y = places.unbind(1)
    cos, sin = torch.cos(angle_rad), torch.sin(angle_rad)
    along, across = (cos * x + sin * y) / pitch, (cos * y - sin * x) / pitch
    wave = ((along % 1 * 2 - 1).abs() + (across % 1 * 2 - 1).abs()) / 2
    return torch.where(wave < 0.5, 2 * wave**2, 1 - 2 * (1 - wave) ** 2)


def _screen(face: Tensor, places: Tensor, side_px: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Light (B, 3, H, W) that comes from a screen and its bezel, and where they are."""
    gamma = _between(draws, "replay.gamma", (0.8, 1.3))
    cold = _between(draws, "replay.cold", (0.0, 0.16))
    tint = torch.cat([1 - cold, 1 - cold / 2, 1 + cold / 2], 1)
    light = 0.03 + 0.97 * face.clamp(1e-3, 1) ** gamma * tint
    light = light * stripes(places, _between(draws, "replay.stripes", STRIPES_PX)[:, 0] / side_px, draws)
    bezel = 0.02 + 0.10 * draws.uniform("replay.bezel", 1)[:, :, None, None]
    light = torch.where(_inside(places, 0.0), light, bezel) + _glare(places, draws, "replay", 0.55)
    return light, _inside(places, _between(draws, "replay.width", (0.03, 0.09)))


def stripes(places: Tensor, pitch: Tensor, draws: Draws) -> Tensor:
    """What a screen's pixels let through at places (B, 2, H, W): (B, 3, H, W) about 1; `pitch` (B, 1, 1).

    The camera's pixel is taken to see its middle alone, as one behind a colour filter nearly does; so the stripes are
    not averaged away where they are as narrow as it, but beat.
    """
    H, W = places.shape[2:]
    middle = places[:, :, SAMPLES // 2 :: SAMPLES, SAMPLES // 2 :: SAMPLES]
    x, y = (middle / pitch[:, None]).unbind(1)
    strength = 0.08 + 0.20 * draws.uniform("replay.moire")[:, :, None]
    columns = [1 + strength * torch.cos(2 * math.pi * (x - number / 3)) for number in range(3)]
    rows = 1 + 0.6 * strength * torch.cos(2 * math.pi * y)
    return F.interpolate(torch.stack(columns, 1) * rows[:, None], (H, W), mode="nearest")


def _glare(places: Tensor, draws: Draws, name: str, strength: float) -> Tensor:
    """The image of a lamp in glass or gloss: a soft, turned ellipse (B, 1, H, W) of up to `strength`."""
    centre = draws.uniform(f"{name}.glare", 2)[:, :, None, None]
    length, width = (
        _between(draws, f"{name}.length", (0.15, 0.6)),
        _between(draws, f"{name}.thick", (0.04, 0.15)),
    )
    angle = draws.around(f"{name}.angle", math.pi / 2)[:, :, None]
    x, y = (places - centre).unbind(1)
    along = (torch.cos(angle) * x + torch.sin(angle) * y) / length[:, 0]
    across = (torch.cos(angle) * y - torch.sin(angle) * x) / width[:, 0]
    bright = strength * draws.uniform(f"{name}.bright")[:, :, None, None]
    return bright * torch.exp(-(along**2 + across**2))[:, None]


def _background(draws: Draws, side: int) -> Tensor:
    """A plain wall or table in uneven light: (B, 3, side, side)."""
    colour = (
        0.15
        + 0.7 * draws.uniform("attack.wall")[:, :, None, None]
        + draws.around("attack.tint", 0.08, 3)[:, :, None, None]
    )
    slope = draws.around("attack.slope", 0.25, 2)[:, :, None, None]
    step = torch.linspace(-1, 1, side, device=draws.device)
    return (colour * (1 + slope[:, :1] * step + slope[:, 1:] * step[:, None])).clamp(0, 1)


def camera(light: Tensor, draws: Draws) -> Tensor:
    """What a small camera makes of light (B, 3, S, S) in 0…1: uneven, blurred, exposed, balanced, noisy; uint8."""
    B, _, S, _ = light.shape
    step = torch.linspace(-1, 1, S, device=light.device)
    slope = draws.around("camera.slope", 0.15, 2)[:, :, None, None]
    exposure = 1 + draws.around("camera.exposure", 0.15)[:, :, None, None]
    balance = 1 + draws.around("camera.balance", 0.05, 3)[:, :, None, None]
    lit = light * (1 + slope[:, :1] * step + slope[:, 1:] * step[:, None]) * exposure * balance
    blurred = _blurred(lit, _between(draws, "camera.blur", (0.3, 0.9))[:, 0, 0, 0])
    deviation = 1 + 3 * draws.uniform("camera.grain")[:, :, None, None]
    noise = draws.normal("camera.noise", 3 * S * S).view(B, 3, S, S) * deviation
    return to_levels(blurred * 255 + noise)


def _blurred(light: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur of each picture (B, 3, S, S) by its own deviation (B,)."""
    B, C, H, W = light.shape
    reach = 3
    steps = torch.arange(-reach, reach + 1, device=light.device)
    kernel = torch.exp(-(steps**2) / (2 * sigma_px[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(C, 0)  # (B C, 7)
    flat = F.pad(light.reshape(1, B * C, H, W), (reach,) * 4, mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=B * C)
    return F.conv2d(flat, kernel[:, None, None, :], groups=B * C).view(B, C, H, W)


def _inside(places: Tensor, border: float | Tensor) -> Tensor:
    """Which places (B, 2, H, W) lie on the face, or up to `border` beyond it: (B, 1, H, W) bool."""
    return ((places > -border) & (places < 1 + border)).all(1, keepdim=True)


def _between(draws: Draws, name: str, reach: tuple[float, float]) -> Tensor:
    """A number a sample: (B, 1, 1, 1)."""
    return (reach[0] + draws.uniform(name) * (reach[1] - reach[0]))[:, :, None, None]
