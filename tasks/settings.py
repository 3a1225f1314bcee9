"""Parameters that every family has: how long and where to train, how to evaluate."""

from typing import Literal

from pydantic import Field

from data.parameters import Parameters

Precision = Literal["auto", "bf16", "fp32"]
ViewName = Literal["single", "mirror", "mirror_shift", "ten_crop"]


class TrainConfig(Parameters):
    """How long, on what, and how exactly."""

    epochs: float = Field(gt=0, description="passes over the training pictures; may be fractional")
    batch_size: int = Field(ge=1, description="pictures a step, over all workers together")
    seed: int = Field(ge=0, description="decides the initial weights, the order and the augmentation")
    precision: Precision = Field(
        description="auto: bf16 where the processor or GPU computes in it, else fp32"
    )
    early_px: int = Field(ge=0, description="pictures are shrunk to this side during early_share; 0: never")
    early_share: float = Field(ge=0, le=1, description="share of the steps that see shrunk pictures")
    num_workers: int = Field(ge=1, le=4096, description="training processes, under Ray Train")
    gpus_per_worker: float = Field(ge=0, description="0: train on CPUs")
    augment_workers: int = Field(
        ge=0,
        description="Ray processes that make batches ahead of training; "
        "0: the training process makes its own",
    )
    checkpoint_every_steps: int = Field(ge=1, description="steps between two checkpoints")
    validate_every_epochs: int = Field(
        ge=0, description="epochs between two looks at the validation pictures; 0: only at the end"
    )


class EvaluateConfig(Parameters):
    """How a trained model is looked at, and which look is registered."""

    views: tuple[ViewName, ...] = Field(
        min_length=1, description="ways to look at each picture, all reported"
    )
    registered_view: ViewName = Field(description="the way that the registered model uses")
    batch_size: int = Field(ge=1, description="pictures a forward pass")
    num_worst: int = Field(ge=0, le=100, description="worst mistakes to show as a picture")
