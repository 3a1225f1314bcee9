"""Parameters that every family has: how long and where to train, how to evaluate."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from data.address import has_secret
from data.parameters import Parameters

Precision = Literal["auto", "bf16", "fp32"]
DataMode = Literal["auto", "resident", "streaming"]
ViewName = Literal["single", "mirror", "mirror_shift", "five_crop", "ten_crop", "multi_scale"]


SECRET_IN_URL = (
    "parameters are recorded with the run, so this URL may hold neither user and password nor a signature: put user "
    "and password into ~/.netrc where this runs, or fetch the file and give its path"
)


def without_secret(source: str) -> str:
    """A source as it may stand in parameters, which are recorded; a ValueError for a URL that opens a door."""
    if has_secret(source):
        raise ValueError(SECRET_IN_URL)
    return source


WeightsSource = Annotated[str, AfterValidator(without_secret)]


class TrainConfig(Parameters):
    """How long, on what, and how exactly."""

    epochs: float = Field(gt=0, description="passes over the training pictures; may be fractional")
    batch_size: int = Field(
        ge=1,
        description="pictures a step, over all workers together; at most the training pictures there are",
    )
    accumulate_batches: int = Field(
        ge=1,
        description="parts that a step's batch is computed in, to save memory; must divide batch_size",
    )
    time_budget_s: float = Field(
        ge=0,
        description="seconds of training and validation after which the run ends; rates, growth and augmentation that "
        "ends before training does go by the time, too. 0: none",
    )
    seed: int = Field(ge=0, description="decides the initial weights, the order and the augmentation")
    precision: Precision = Field(
        description="auto: bf16 where the processor or GPU computes in it, else fp32"
    )
    growth: tuple[tuple[int, float], ...] = Field(
        description="progressive resizing: [side in pixels, share of the training up to which pictures are shrunk to "
        "it], of the steps or of the time budget, whichever is further"
    )
    num_workers: int = Field(ge=1, le=4096, description="training processes, under Ray Train")
    min_workers: int = Field(
        ge=0,
        description="go on with fewer training processes, down to so many, where the cluster has no room for all, and "
        "with more again once it has; the weights then depend on when that was. 0: always num_workers",
    )
    cpus_per_worker: int = Field(
        ge=0,
        description="threads of each worker; 0: an even share of the cluster. Sums depend on it in the last bits",
    )
    gpus_per_worker: float = Field(ge=0, description="0: train on CPUs")
    augment_workers: int = Field(
        ge=0,
        description="Ray processes that make batches ahead of training; "
        "0: the training process makes its own",
    )
    data_mode: DataMode = Field(
        description="resident: decoded once, all in memory; streaming: read, decoded and augmented ahead of training; "
        "auto: resident where data_gb suffices. Both give the same batches"
    )
    data_gb: float = Field(
        gt=0,
        description="memory for pictures, in 10^9 bytes. What does not fit as files is mixed in windows of 0.4 of it",
    )
    checkpoint_every_steps: int = Field(ge=1, description="steps between two checkpoints")
    validate_every_epochs: int = Field(
        ge=0, description="epochs between two looks at the validation pictures; 0: only at the end"
    )
    patience: int = Field(
        ge=0,
        description="validations in a row without a better one after which the run ends; the best weights are the "
        "result. The rates still fall over all epochs. 0: train to the end, the last weights are the result",
    )
    patience_metric: Literal["accuracy", "loss", "ap"] = Field(
        description="what a better validation is: higher accuracy (of detectors ap) or lower loss"
    )

    @model_validator(mode="after")
    def _patience_sees_validations(self) -> Self:
        if self.patience and not self.validate_every_epochs:
            raise ValueError(
                f"train.patience (={self.patience}) counts validations: set train.validate_every_epochs to at least 1"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % (self.num_workers * self.accumulate_batches):
            times = (
                f" times accumulate_batches (={self.accumulate_batches})"
                if self.accumulate_batches > 1
                else ""
            )
            raise ValueError(
                f"batch_size (={self.batch_size}) must be divisible by num_workers (={self.num_workers}){times}"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides_at_every_size(self) -> Self:
        if self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers (={self.min_workers}) must be at most num_workers (={self.num_workers})"
            )
        odd = [n for n in self.world_sizes if self.batch_size % (n * self.accumulate_batches)]
        if odd:
            raise ValueError(
                f"batch_size (={self.batch_size}) must be divisible by every number of workers from min_workers "
                f"(={self.min_workers}) to num_workers (={self.num_workers}), times accumulate_batches "
                f"(={self.accumulate_batches}), so that it stays the same: it is not by {odd[0]}"
            )
        return self

    @field_validator("gpus_per_worker")
    @classmethod
    def _gpus_are_whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("must be a whole number, or less than one: Ray shares out parts of one GPU only")
        return gpus

    @property
    def world_sizes(self) -> range:
        """How many training processes there may be."""
        return range(self.min_workers or self.num_workers, self.num_workers + 1)

    @field_validator("growth")
    @classmethod
    def _in_order(cls, growth: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
        shares = [share for _px, share in growth]
        if (
            any(px < 1 for px, _share in growth)
            or shares != sorted(shares)
            or not all(0 < s <= 1 for s in shares)
        ):
            raise ValueError(
                "sides must be at least 1 px, shares must rise and lie in (0, 1], as in [[20, 0.4], [24, 0.7]]"
            )
        return growth


class EvaluateConfig(Parameters):
    """How a trained model is looked at, and which look is registered."""

    views: tuple[ViewName, ...] = Field(
        min_length=1, description="ways to look at each picture, all reported"
    )
    registered_view: ViewName = Field(description="the way that the registered model uses")
    batch_size: int = Field(ge=1, description="pictures a forward pass")
    num_worst: int = Field(ge=0, le=100, description="worst mistakes to show as a picture")
