"""What works where no engine is installed: training in one process, as on a lone GPU machine."""

import subprocess
import sys
from pathlib import Path

from tasks.paths import ROOT

ENGINES = ("ray", "prefect", "mlflow", "dvc", "optuna")
SCRIPT = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {engines}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
from pathlib import Path
from tasks.evaluate import evaluate
from tasks.train import train
from tests.tiny import tiny_config, tiny_dataset

folder = Path(sys.argv[1])
config = tiny_config("classification", train__epochs=6.0, optim__name="adamw", optim__lr=0.01)
dataset = tiny_dataset("classification", folder / "store")
result = train(
    "classification", config, dataset, folder=folder / "run", key="run", digest="d" * 32, executor="in_process"
)
report = evaluate([result.model_folder], dataset, config=config.evaluate)
print(report.metrics["num_images"], report.metrics["accuracy"])
"""


def test_a_run_in_one_process_needs_no_engine(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(engines=set(ENGINES)), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    num_images, accuracy = map(float, done.stdout.split())
    assert num_images > 300
    assert accuracy > 0.5  # of ten digits
