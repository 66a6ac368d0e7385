"""A detector and a segmenter in two processes on gloo: they train, one that is killed ends both, and they resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import ROOT, assert_same_checkpoint
from test_dense_training import SHAPES, SMALL
from test_distributed import KILLER

pytest.importorskip("pycocotools")
pytest.importorskip("segmentation_models_pytorch")
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=[*{imports!r}, "killer"])
default_hooks = dict(killer=dict(type="RankKiller"))
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""
IMPORTS = (
    "metala_vision",
    "metala_vision.data",
    "metala_vision.engine",
    "metala_vision.engine.dense_models",
    "metala_vision.engine.dense_metrics",
)


def train(folder: Path, task: str, work_dir: Path, *arguments: str, kill: str = "no:9") -> subprocess.CompletedProcess:
    (folder / "killer.py").write_text(KILLER.replace("batch_idx == 3", "batch_idx == 1"))
    (folder / f"{task}.py").write_text(CONFIG.format(base=str(SHAPES[task]), imports=list(IMPORTS)))
    own = {"model.min_size": 64, "model.max_size": 64} if task == "detection" else {"model.decoder_channels": 16}
    options = [f"{key}={value}" for key, value in {**SMALL, **own, "model.backbone.drop_path_rate": 0.1}.items()]
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(str(ROOT / "tools" / "train.py"), str(folder / f"{task}.py"), "--work-dir", str(work_dir)),
            *("--launcher", "pytorch", "--device", "cpu", "--ema", "0.9", *arguments, "--cfg-options", *options),
        ],
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "KILL": kill, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow  # classifiers do the same by default, in test_distributed.py
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_two_processes_train_and_resume(task, tmp_path):
    """A straight run and one whose second process is killed in its second epoch end with the same weights."""
    straight = train(tmp_path, task, tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    result = json.loads(straight.stdout.splitlines()[-1])
    assert result["processes"] == 2
    assert result["images"] == 5, "each image once, in whichever process"
    assert train(tmp_path, task, tmp_path / "run", kill="kill:1").returncode != 0
    resumed = train(tmp_path, task, tmp_path / "run", "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_checkpoint(tmp_path / "straight" / "last.pth", tmp_path / "run" / "last.pth")
