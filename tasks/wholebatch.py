"""The batch of all workers, on each of them: for losses that compare pictures with each other.

DistributedDataParallel takes the mean of the workers' gradients, which is right for a loss that is a mean over
pictures. A loss of pairs or triplets is none: most of what there is to compare lies between two workers' parts. So each
worker gathers the embeddings of all, and computes the loss of the whole batch, the same number on each. Its part of the
gradient is that by its own rows. The whole gradient is the sum of these parts, and their mean is taken: so what goes
back to a row is multiplied by the number of workers, and need not be sent to anybody.

Each worker must give as many rows: plans of batches (tasks/batches.py) see to that.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel


def workers_of(model: nn.Module) -> ProcessGroup | None:
    """Those that train a network together, by the mean of their gradients; None for a lone one."""
    return model.process_group if isinstance(model, DistributedDataParallel) else None


class _Gathered(torch.autograd.Function):
    """`gathered` by several workers."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, workers: ProcessGroup) -> Tensor:
        rows = rows.contiguous()
        pieces = [torch.empty_like(rows) for _ in range(workers.size())]
        distributed.all_gather(pieces, rows, group=workers)
        first = workers.rank() * len(rows)
        ctx.own, ctx.num_workers = slice(first, first + len(rows)), workers.size()
        return torch.cat(pieces)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.num_workers * grad[ctx.own], None


def gathered(rows: Tensor, workers: ProcessGroup | None) -> Tensor:
    """The rows of W workers in order of rank: (N, …) of each → (W * N, …).

    The gradient is right for what all workers compute alike of them, where the mean of the workers' gradients is taken.
    """
    if workers is None:
        return rows
    whole: Tensor = _Gathered.apply(rows, workers)
    return whole


def as_the_first_has(values: Tensor, workers: ProcessGroup | None) -> Tensor:
    """The values of the first worker, on all: of what each has drawn by dice of its own, in one shape."""
    if workers is not None:
        distributed.broadcast(values, group=workers, group_src=0)  # in place
    return values
