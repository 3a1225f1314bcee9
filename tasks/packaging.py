"""What travels with a registered model: its weights, the code that prediction needs, and the versions it needs.

The code is found by following imports from tasks/pyfunc.py through our own packages. Only source files are copied:
`data/store`, the orchestrators and training stay behind.
"""

import ast
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pandas as pd
import pyarrow as pa
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import save_model
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from data.files import scratch
from tasks.modelfile import load_card, model_files
from tasks.paths import ROOT
from tasks.predictors import SCHEMAS

ENTRY = ROOT / "tasks" / "pyfunc.py"
OURS = ("data", "models", "tasks")

# imported module → the distribution that brings it
DISTRIBUTIONS = {
    "PIL": "pillow",
    "mlflow": "mlflow",
    "numpy": "numpy",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "simplejpeg": "simplejpeg",
    "skimage": "scikit-image",
    "torch": "torch",
}

COLUMN_TYPES: dict[pa.DataType, DataType] = {
    pa.string(): DataType.string,
    pa.binary(): DataType.binary,
    pa.float32(): DataType.double,
    pa.bool_(): DataType.boolean,
}


def signature_of(family: str) -> ModelSignature:
    """What goes into a registered model of the family, and what comes out: its predictor's schema."""
    outputs = [ColSpec(column_type(field.type), field.name, required=False) for field in SCHEMAS[family]]
    return ModelSignature(Schema([ColSpec(DataType.binary, "image")]), Schema(outputs))


def column_type(arrow: pa.DataType) -> DataType | Array:
    """MLflow's name of a column's type; lists may be nested."""
    return Array(column_type(arrow.value_type)) if pa.types.is_list(arrow) else COLUMN_TYPES[arrow]


def save_package(folder: Path, model: Path, example: Sequence[bytes], run_id: str, model_id: str) -> None:
    """Write the model in `model` to the new `folder` as MLflow loads it: with code, signature, example, versions."""
    with scratch("code") as staging:
        code, weights = staging / "code", staging / "model"
        copy_model(model, weights)
        save_model(
            folder,
            python_model=str(ENTRY),
            artifacts={"model": str(weights)},
            code_paths=copy_code(code),
            signature=signature_of(load_card(model).family),
            input_example=pd.DataFrame({"image": list(example)}),
            pip_requirements=requirements(),
            mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
        )


def closure(entry: Path = ENTRY) -> list[Path]:
    """The files of ours that `entry` needs to be imported, itself included: relative to the checkout, sorted."""
    found: set[Path] = set()
    waiting = [entry]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting.extend(path for module in imported(file) for path in _files_of(module))
    return sorted(file.relative_to(ROOT) for file in found)


def imported(file: Path) -> set[str]:
    """Dotted names that a source file imports, inside functions too; `from a import b` gives both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{file} has a relative import; ours are absolute"
            names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    return names


def _files_of(module: str) -> list[Path]:
    """Source files of a module of ours, with the `__init__.py` of the packages around it; none for another's."""
    parts = module.split(".")
    if parts[0] not in OURS:
        return []
    path = ROOT.joinpath(*parts)
    packages = [ROOT.joinpath(*parts[: i + 1]) / "__init__.py" for i in range(len(parts))]
    return [file for file in (*packages, path.with_suffix(".py")) if file.is_file()]


def copy_code(folder: Path) -> list[str]:
    """Copy the closure into `folder`; returns the paths to give MLflow as `code_paths`, one a package."""
    for file in closure():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, folder / file)
    return [str(path) for path in sorted(folder.iterdir())]


def copy_model(model: Path, folder: Path) -> None:
    """Copy the card and the weights it names, and nothing else that may lie beside them, to the new `folder`."""
    folder.mkdir(parents=True)
    for name in model_files(load_card(model)):
        shutil.copyfile(model / name, folder / name)


def requirements() -> list[str]:
    """Pinned requirements of the copied code, as installed here."""
    modules = {name.split(".")[0] for file in closure() for name in imported(ROOT / file)}
    # A local version (torch 2.13.0+cpu) is one build of the public version, and is on no index.
    pins = {
        DISTRIBUTIONS[name]: metadata.version(DISTRIBUTIONS[name])
        for name in modules
        if name in DISTRIBUTIONS
    }
    return [f"{name}=={version.split('+')[0]}" for name, version in sorted(pins.items())]
