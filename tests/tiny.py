"""The smallest run of each family that is still a real one: parameters, and a dataset made on the spot."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.dataset import Dataset
from data.ingest import IngestConfig, ingest
from data.syntheticfaces import synthetic_faces
from tasks.families import FAMILIES
from tasks.style import StyleSources
from tasks.stylesources import read_sources
from tests.dotfaces import write_faces
from tests.smears import write_smears
from tests.waves import write_blobs, write_tones

INGEST = {"val_fraction": 0.1, "test_fraction": 0.2, "near_duplicate_distance": 0, "max_source_gb": 1}

PLAIN: dict[str, Any] = {  # augmentation that leaves the centre crop
    "mirror": False, "random_crop": False, "crop_area": [1, 1], "crop_aspect": 1, "crop_from": "square",
    "rotation_deg": 0, "shear_deg": 0,
    "elastic_px": 0, "brightness": 0, "contrast": 0, "saturation": 0, "colour_shift": 0, "pca_colour": 0,
    "cutout_px": 0,
    "mixup_alpha": 0, "cutmix_alpha": 0, "mixing_until": 1,
}  # fmt: skip

SMALL: dict[str, Any] = {  # sections that signals and volumes share
    "optim": {
        "name": "sgd", "lr": 0.002, "momentum": 0.9, "head_lr": 0.002, "bias_lr": 0.002, "weight_decay": 1e-4,
        "schedule": "linear", "warmup_share": 0.1, "final_share": 0.0, "label_smoothing": 0.0,
        "averaging_decay": 0.0, "clip_norm": 1.0,
        "first_share": 0.0, "class_weights": "none", "lookahead": False,
    },
    "train": {
        "epochs": 1.0, "batch_size": 16, "seed": 0, "precision": "fp32", "growth": [],
        "num_workers": 1, "min_workers": 0, "cpus_per_worker": 1, "gpus_per_worker": 0.0, "augment_workers": 0,
        "data_mode": "auto", "data_gb": 1.0, "checkpoint_every_steps": 5, "validate_every_epochs": 0,
        "accumulate_batches": 1, "time_budget_s": 0.0, "patience": 0, "patience_metric": "accuracy",
    },
    "evaluate": {"views": ["single"], "registered_view": "single", "batch_size": 64, "num_worst": 4},
}  # fmt: skip

TINY: dict[str, dict[str, Any]] = {
    "classification": {
        "dataset": "digits",
        "model": {"name": "lenet5"},
        "input": {"stored_px": 16, "crop_px": 16, "pad_px": 1, "resize": "crop"},
        "augment": {**PLAIN, "random_crop": True, "cutout_px": 2, "colour_shift": 0.05},
        "transfer": {
            "weights": "", "mode": "all", "num_stages": 0, "cache_features": False, "body_lr_factor": 1.0,
        },
        "distil": {"teacher": "", "temperature": 4.0, "weight": 0.9},
        "optim": {
            "name": "sgd", "lr": 0.05, "momentum": 0.9, "head_lr": 0.05, "bias_lr": 0.05, "weight_decay": 1e-4,
            "schedule": "linear", "warmup_share": 0.1, "final_share": 0.0, "label_smoothing": 0.0,
            "averaging_decay": 0.9, "clip_norm": 1.0,
            "first_share": 0.0, "class_weights": "none", "lookahead": False,
        },
        "train": {
            "epochs": 1.0, "batch_size": 64, "seed": 0, "precision": "fp32", "growth": [],
            "num_workers": 1, "min_workers": 0, "cpus_per_worker": 1, "gpus_per_worker": 0.0, "augment_workers": 0,
            "data_mode": "auto", "data_gb": 1.0, "checkpoint_every_steps": 5,
            "validate_every_epochs": 0,
            "accumulate_batches": 1, "time_budget_s": 0.0, "patience": 0, "patience_metric": "accuracy",
        },
        "evaluate": {"views": ["single"], "registered_view": "single", "batch_size": 256, "num_worst": 4},
    },
    "detection": {
        "dataset": "digit_scenes",
        "model": {
            "name": "yolo", "body": "plain_tiny", "strides": [8, 16], "width": 16, "assignment": "task_aligned",
            "num_anchors": 2, "box_loss": "ciou", "loss": "likelihood", "pooling": "align", "crop_px": 32,
            "proposals": 200,
        },
        "input": {"stored_px": 64, "resize": "letterbox", "train_px": []},
        "augment": {
            "mirror": False, "upside_down": False, "quarter_turns": False, "scale": [0.9, 1.1], "translate": 0.05,
            "rotation_deg": 0, "brightness": 0.1, "contrast": 0.1, "saturation": 0, "colour_shift": 0,
            "pca_colour": 0, "mosaic": 0.3, "mosaic_until": 0.8, "least_seen": 0.3,
        },
        "transfer": {"weights": "", "mode": "all", "body_lr_factor": 1.0},
        "optim": {**SMALL["optim"], "lr": 0.02, "bias_lr": 0.02},
        "train": {**SMALL["train"], "patience_metric": "ap"},
        "evaluate": {
            "views": ["single"], "registered_view": "single", "batch_size": 32, "num_worst": 4, "precision": 0.5,
            "min_score": 0.01, "suppression": "hard", "nms_iou": 0.6,
            "max_detections": 50,
        },
    },
    "faces": {
        "dataset": "drawn",
        "model": {"name": "face_tiny", "dim": 16, "centre": True},
        "input": {"stored_px": 32, "crop_px": 32, "pad_px": 2, "resize": "crop"},
        "augment": {**PLAIN, "mirror": True, "random_crop": True},
        "sampling": {"pictures_per_person": 0},
        "loss": {"name": "arcface", "scale": 16.0, "margin": 0.2, "distance": "squared", "mining": "semi_hard"},
        "transfer": {"weights": "", "mode": "all"},
        "optim": {**SMALL["optim"], "lr": 0.05, "bias_lr": 0.05, "head_lr": 0.05},
        "train": {**SMALL["train"], "batch_size": 8},
        "evaluate": {
            "views": ["single"], "registered_view": "single", "batch_size": 64, "num_worst": 6,
            "false_accept_rates": [0.1, 0.01],
        },
    },
    "landmarks": {
        "dataset": "dotfaces",
        "model": {
            "name": "resnet8_cifar", "loss": "smooth_l1", "wing_px": 4, "wing_curvature_px": 1, "visibility_weight": 1,
        },
        "input": {"input_px": 24, "resize": "squash"},
        "augment": {
            "mirror": True, "mirror_pairs": [[0, 1], [3, 4]], "rotation_deg": 15, "scale": 0.1, "shift_share": 0.05,
            "brightness": 0.1, "contrast": 0.1, "saturation": 0,
        },
        "transfer": {
            "weights": "", "mode": "all", "num_stages": 0, "cache_features": False, "body_lr_factor": 1.0,
        },
        "optim": SMALL["optim"],
        "train": {**SMALL["train"], "patience_metric": "loss"},
        "evaluate": {
            "views": ["single"], "registered_view": "single", "batch_size": 64, "num_worst": 6,
            "normalise_by": "auto", "eye_corners": [0, 1],
        },
    },
    "signals": {
        "dataset": "tones",
        "model": {"name": "resnet_ts"},
        "input": {"stored_length": 64, "length": 48, "sample_rate_hz": 0, "normalise": "dataset"},
        "augment": {"random_crop": True, "shift_share": 0.1, "scale": 0.2, "noise": 0.1, "mask_share": 0.1},
        **SMALL,
    },
    "style": {
        "dataset": "smears",
        "model": {"name": "johnson", "width": 4, "num_blocks": 1, "layers": []},
        "styles": [["bricks", "skimage:brick"], ["tissue", "skimage:ihc"]],
        "style_px": 32,
        "net": {"name": "resnet8_cifar", "weights": "random", "pooling": "max", "precision": "fp32"},
        "cost": {
            "normalisation": "relative", "content_layer": "stem", "content_weight": 0.001,
            "style_layers": [["stem", 1.0], ["group1", 1.0]], "style_weight": 0.003, "variation_weight": 0.001,
        },
        "input": {"stored_px": 24, "crop_px": 24, "pad_px": 2, "resize": "crop"},
        "augment": {**PLAIN, "mirror": True, "random_crop": True},
        "optim": SMALL["optim"],
        "train": {**SMALL["train"], "batch_size": 4, "patience_metric": "loss"},
        "evaluate": {
            "views": ["single"], "registered_view": "single", "batch_size": 16, "num_worst": 4, "longer_px": 64,
            "optimise_pictures": 1, "optimise_s": 0.2,
            "optimise_by": {"name": "lbfgs", "lr": 1.0, "momentum": 0.0, "history": 5},
        },
    },
    "volumes": {
        "dataset": "blobs",
        "model": {"name": "resnet8_3d"},
        "input": {"stored_voxels": 10, "crop_voxels": 10, "spacing_mm": 0, "normalise": "dataset"},
        "augment": {
            "random_crop": True, "shift_voxels": 1, "mirror_axes": [0, 1, 2], "turn_axis": -1, "scale": 0.1,
            "noise": 0.1,
        },
        **SMALL,
    },
}  # fmt: skip

# Rate and steps to learn a batch by heart, where the usual ones do not do: a detector first learns where nothing is.
HEART = {"detection": (1e-2, 200)}


def write_people(folder: Path) -> Path:
    """Few synthetic faces."""
    for name, data in synthetic_faces(num_people=40, num_pictures=6).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# A built-in dataset, or what writes one to a new folder.
SOURCES: dict[str, str | Callable[[Path], Path]] = {
    "classification": "sklearn:digits",
    "detection": "sklearn:digit_scenes",
    "faces": write_people,
    "landmarks": write_faces,
    "signals": write_tones,
    "style": write_smears,
    "volumes": write_blobs,
}


def tiny_config(family: str, **changes: Any) -> Any:
    """The family's tiny parameters, with changes such as `train__epochs=2`."""
    values = {name: dict(part) if isinstance(part, dict) else part for name, part in TINY[family].items()}
    for name, value in changes.items():
        section, key = name.split("__")
        assert key in values[section]
        values[section][key] = value
    return FAMILIES[family].config.parse(values, family)


def tiny_weights(family: str, config: Any) -> StyleSources | None:
    """What the family's runs are given beside the dataset: a judge of chance and photographs; else nothing."""

    def nowhere(model: str) -> Path:
        raise AssertionError(f"no test's parameters name the model {model}")

    return read_sources(config, None, nowhere) if family == "style" else None


def tiny_dataset(family: str, store: Path) -> Dataset:
    """The family's tiny dataset, below `store`."""
    name, source = TINY[family]["dataset"], SOURCES[family]
    with tempfile.TemporaryDirectory(prefix="convoy-source-") as folder:
        made = source if isinstance(source, str) else source(Path(folder) / name)
        ingest(made, name=name, family=family, store=store, config=ingest_config())
    return Dataset.open(store / name)


def ingest_config() -> IngestConfig:
    return IngestConfig.parse(INGEST, "ingest")
