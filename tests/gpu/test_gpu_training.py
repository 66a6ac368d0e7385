"""Training on a GPU: what a CPU cannot show. `pytest -m gpu tests/gpu`"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine", reason="tools/train.py needs mmengine: pip install metala_vision")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here"),
]
SHORT = ["train_cfg.max_epochs=2", "param_scheduler.0.end=1", "param_scheduler.1.begin=1", "param_scheduler.1.end=2"]


def train(work_dir: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> dict:
    command = [sys.executable, *launcher, str(ROOT / "tools" / "train.py")]
    command += [str(ROOT / "configs" / "digits" / "metala_vit_digits.py"), "--work-dir", str(work_dir), *arguments]
    done = subprocess.run([*command, "--cfg-options", *SHORT], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("options", [(), ("--amp",), ("--amp", "float16"), ("--amp", "--compile", "--ema", "0.9")])
def test_training_on_a_gpu(tmp_path, options):
    result = train(tmp_path / "run", *options)
    assert result["device"].startswith("cuda")
    assert result["top1"] > 15
    assert result["weights"] == ("ema" if "--ema" in options else "raw")
    dry = train(tmp_path / "dry", "--dry-run", *options)
    assert dry["memory_of"] == "GPU"


def test_processes_of_a_launcher_take_their_gpu(tmp_path):
    """By NCCL, one process for each GPU there is."""
    count = torch.cuda.device_count()
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
    result = train(tmp_path / "run", "--launcher", "pytorch", "--amp", "--ema", "0.9", launcher=launcher)
    assert result["processes"] == count
    assert result["device"] == "cuda:0"
