"""Convoy's recipe `cifar10` beside airbench94 as it was published, on the same pictures, device and run.

    PYTHONPATH=. .venv/bin/python benchmarks/airbench.py [--dataset cifar10] [--epochs 9.9 20] [--repeats 3]

airbench94 is written out below as one plain loop, after https://arxiv.org/abs/2404.00498: nothing is checkpointed,
validated, logged or resumed. Both train on the train split, and are tested on the test split by the average of mirror
images and shifts. Time is that of training, from pictures in the device's memory to the last step.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipelines.environment import SETTINGS
from tasks.memory import ALLOCATOR

if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # glibc reads them at the start
    os.execve(sys.executable, [sys.executable, *sys.argv], {**SETTINGS, **os.environ, **ALLOCATOR})

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.dataset import Dataset, Split
from models.airnet import AirNet, BiasBatchNorm
from pipelines.configuration import configuration
from tasks.evaluate import evaluate
from tasks.families import FAMILIES
from tasks.paths import store
from tasks.train import decode_here, train

BATCH = 1024
LR, BIAS_FACTOR, DECAY, MOMENTUM = 11.5, 64.0, 0.0153, 0.85  # rates per 1,024 examples, decoupled
WHITENING_EPOCHS = 3  # in which the bias of the whitening convolution is trained
SHARE = 1024 * (1 + 1 / (1 - MOMENTUM))


def pictures_of(dataset: Dataset, split: Split, config: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    records = decode_here(FAMILIES["classification"], dataset, split, config).to(device)
    batch = FAMILIES["classification"].batch(records, np.arange(len(records)), dataset.info, config, None)
    return batch.images, batch.labels


def triangle(step: int, num_steps: int) -> float:
    peak = int(0.23 * num_steps)
    return float(np.interp(step, [0, peak, num_steps], [0.2, 1.0, 0.07]))


def shifted(images: Tensor) -> Tensor:
    """Each picture (B, C, 36, 36), padded by 2, cut at a random place to 32."""
    B = len(images)
    windows = images.unfold(2, 32, 1).unfold(3, 32, 1)
    top, left = torch.randint(0, 5, (2, B), device=images.device)
    return windows[torch.arange(B, device=images.device), :, top, left]


def published(images: Tensor, labels: Tensor, epochs: float, seed: int, dtype: torch.dtype) -> AirNet:
    """airbench94: `images` (N, 3, 32, 32) normalised float32, on the device that computes."""
    device = images.device
    torch.manual_seed(seed)
    net = AirNet(10, 3).to(device, memory_format=torch.channels_last)
    net.fit_whitening(images[:5000])
    net = net.to(dtype)
    for module in net.modules():
        if isinstance(module, BiasBatchNorm):
            module.float()
    biases = [p for name, p in net.named_parameters() if "norm" in name and p.requires_grad]
    others = [p for name, p in net.named_parameters() if "norm" not in name and p.requires_grad]
    lr, decay = LR / SHARE, DECAY * 1024 / SHARE
    optimizer = torch.optim.SGD(
        [{"params": biases, "lr": lr * BIAS_FACTOR, "weight_decay": decay / (lr * BIAS_FACTOR)},
         {"params": others, "lr": lr, "weight_decay": decay / lr}],
        momentum=MOMENTUM, nesterov=True,
    )  # fmt: skip
    rates = [group["lr"] for group in optimizer.param_groups]
    per_epoch = len(images) // BATCH
    num_steps = int(per_epoch * epochs)
    slow = [p.detach().clone().float() for p in net.state_dict().values()]
    padded = F.pad(images.to(dtype), (2,) * 4, mode="reflect").contiguous(memory_format=torch.channels_last)
    first_flip = torch.rand(len(images), device=device) < 0.5
    step, net = 0, net.train()
    for epoch in range(-(-num_steps // per_epoch)):
        net.whiten.bias.requires_grad = epoch < WHITENING_EPOCHS
        order = torch.randperm(len(images), device=device)
        flip = first_flip if epoch % 2 == 0 else ~first_flip
        for places in order[: per_epoch * BATCH].split(BATCH):
            if step == num_steps:
                break
            batch = shifted(padded[places])
            batch = torch.where(flip[places, None, None, None], batch.flip(3), batch)
            factor = triangle(step, num_steps)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            batch = batch.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(batch).float(), labels[places], label_smoothing=0.2, reduction="sum")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            if step % 5 == 0 or step == num_steps:
                keep = 1.0 if step == num_steps else 0.95**5 * (step / num_steps) ** 3
                _look_ahead(slow, net, keep)
    return net.eval()


@torch.no_grad()
def _look_ahead(slow: list[Tensor], net: nn.Module, keep: float) -> None:
    """Move the slow weights towards the fast ones by 1 - keep, and set the fast ones to them."""
    for old, fast in zip(slow, net.state_dict().values(), strict=True):
        if fast.is_floating_point():
            old.lerp_(fast.float(), 1 - keep)
            fast.copy_(old)


@torch.inference_mode()
def accuracy(net: AirNet, images: Tensor, labels: Tensor, dtype: torch.dtype) -> float:
    """By mirror images and two shifts by one pixel, as airbench94 tests."""
    padded = F.pad(images, (1,) * 4, mode="reflect")
    views = [(images, 0.5), (padded[:, :, :32, :32], 0.25), (padded[:, :, 2:, 2:], 0.25)]
    right = 0
    for first in range(0, len(images), 2000):
        rows = slice(first, first + 2000)
        logits = sum(
            share * (net(view[rows].to(dtype)).float() + net(view[rows].flip(3).to(dtype)).float()) / 2
            for view, share in views
        )
        assert isinstance(logits, Tensor)
        right += int((logits.argmax(1) == labels[rows]).sum())
    return right / len(labels)


def ours(config: Any, dataset: Dataset, device: torch.device) -> tuple[float, float]:
    """Seconds of training and test accuracy, through tasks.train and tasks.evaluate."""
    folder = Path(tempfile.mkdtemp(prefix="convoy-airbench-"))
    try:
        result = train(
            "classification",
            config,
            dataset,
            folder=folder,
            key="benchmark",
            digest="",
            executor="in_process",
        )
        report = evaluate([result.model_folder], dataset, config=config.evaluate, device=device)
        return result.train_time_s, report.metrics["accuracy"]
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--epochs", type=float, nargs="+", default=[9.9])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    dataset = Dataset.open(store() / given.dataset)
    plain = configuration("classification", given.dataset, given.recipe, {})
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (dataset.info.channel_mean, dataset.info.channel_std)
    )
    (images, labels), (test_images, test_labels) = (
        ((pictures.float() / 255 - mean) / std, labels)
        for pictures, labels in (pictures_of(dataset, split, plain, device) for split in ("train", "test"))
    )
    published(images, labels, 0.3, 0, dtype)  # the first steps find algorithms and fill caches
    print(
        f"{device.type}, {len(images)} pictures\n{'way':24}{'epochs':>8}{'seed':>6}{'seconds':>9}{'accuracy':>10}"
    )
    for epochs in given.epochs:
        for seed in range(given.repeats):
            _wait(device)
            began = time.perf_counter()
            net = published(images, labels, epochs, seed, dtype)
            _wait(device)
            taken = time.perf_counter() - began
            found = accuracy(net, test_images, test_labels, dtype)
            print(f"{'airbench94, plain loop':24}{epochs:8g}{seed:6}{taken:9.2f}{found:10.4f}", flush=True)
            gpus = float(device.type == "cuda")
            changes = {"epochs": epochs, "seed": seed, "gpus_per_worker": gpus, "validate_every_epochs": 0}
            config = configuration("classification", given.dataset, given.recipe, {"train": changes})
            taken, found = ours(config, dataset, device)
            print(f"{'Convoy, ' + given.recipe:24}{epochs:8g}{seed:6}{taken:9.2f}{found:10.4f}", flush=True)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
