"""Scenes of coloured rectangles, and how well a detector finds them."""

import torch
from torch import Tensor

from data.detection import Truths
from models.detector import Detector, Found
from tasks.detection import detections_of, objects_of
from tasks.detectionmatches import match
from tasks.detectionmetrics import summarise

COLOURS = torch.tensor([[250, 20, 20], [20, 20, 250]], dtype=torch.uint8)


def truths_of(boxes: list[list[list[float]]], ignored: bool = False) -> Truths:
    """Boxes of each picture, of class 0 and 1 in turn."""
    flat = [box for each in boxes for box in each]
    labels = [n % 2 for each in boxes for n in range(len(each))]
    image = [i for i, each in enumerate(boxes) for _ in each]
    return Truths(
        torch.tensor(flat, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64),
        torch.tensor(image, dtype=torch.int64), torch.full((len(flat),), ignored),
    )  # fmt: skip


def rectangles(num: int = 8, side_px: int = 64, seed: int = 1, per_picture: int = 2) -> tuple[Tensor, Truths]:
    """A red one (class 0) on the left and a blue one (class 1) on the right, on grey; in every fourth at the border.

    One a picture is the red one.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((num, 3, side_px, side_px), 110, dtype=torch.uint8)
    boxes = []
    for i in range(num):
        own = []
        for label in range(per_picture):
            w, h = torch.randint(side_px // 6, side_px // 2 - 4, (2,), generator=generator).tolist()
            x = int(torch.randint(0, side_px // 2 - w, (1,), generator=generator)) + label * side_px // 2
            y = int(torch.randint(0, side_px - h, (1,), generator=generator))
            if i % 4 == 0:
                x, y = (0, 0) if label == 0 else (side_px - w, side_px - h)
            images[i, :, y : y + h, x : x + w] = COLOURS[label][:, None, None]
            own.append([float(x), float(y), float(x + w), float(y + h)])
        boxes.append(own)
    return images, truths_of(boxes)


def learn(model: Detector, images: Tensor, truths: Truths, steps: int, lr: float = 0.005) -> list[float]:
    """Losses of steps on one batch; the rate falls to 0."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    losses = []
    for _ in range(steps):
        loss = torch.stack(list(model.train()(images, truths).values())).sum()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def average_precision(found: Found, truths: Truths, num_images: int, name: str = "ap50") -> float:
    """COCO's, of two classes."""
    t = truths
    objects = objects_of([(0, t)])
    return summarise(match(objects, detections_of([(0, found)]), num_images=num_images, num_classes=2))[name]
