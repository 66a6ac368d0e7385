"""A run that is killed, or cannot write, loses nothing: checkpoints are whole, and resuming changes no weight."""

import os
import resource
import signal
import textwrap
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from small_runs import DIGITS, assert_same_checkpoint
from tool_process import run_tool

from metala_vision.files import write_atomic, write_json

CONFIG = f"""
_base_ = {str(DIGITS)!r}
custom_imports = dict(imports=["metala_vision", "metala_vision.data", "metala_vision.engine", "killer"])
default_hooks = dict(killer=dict(type="Killer"), logger=dict(interval=1))
custom_hooks = [dict(type="ModelEmaHook", decay=0.9)]
model = dict(backbone=dict(embed_dim=32, depth=2))
train_dataloader = dict(batch_size=128, num_workers=2)
train_cfg = dict(max_epochs=3)
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=True, end=3, convert_to_iter_based=True)]
"""
# Kills its own process where KILL says: an exact place, where a signal from outside would only hit about there.
KILLER = """
import builtins, os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from metala_vision import files

KILL = os.environ.get("KILL", "")

@HOOKS.register_module()
class Killer(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if KILL == "epoch" and runner.epoch == 1 and batch_idx == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if KILL == "validation" and runner.epoch == 2 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)

class HalfWritten:
    def __init__(self, file):
        self.file = file
    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    def __enter__(self):
        return self
    def __exit__(self, *args):
        self.file.close()

def open_to_die(path, mode):
    global written
    file = builtins.open(path, mode)
    if KILL == "write" and ".last.pth." in str(path):
        written += 1
        if written == 2:
            return HalfWritten(file)
    if KILL == "between" and ".last.pth." in str(path):  # best.pth of this epoch is written, last.pth is not
        written += 1
        if written == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return file

written = 0
files.open = open_to_die
"""


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Runs tools/train.py in a process of its own: train(work_dir, *arguments, kill=...) -> CompletedProcess."""
    folder = tmp_path_factory.mktemp("interruption")
    (folder / "killer.py").write_text(KILLER)
    (folder / "config.py").write_text(textwrap.dedent(CONFIG))

    def run(work_dir: Path, *arguments: str, kill: str = "", **kwargs) -> CompletedProcess:
        command = ["train.py", str(folder / "config.py"), "--work-dir", str(work_dir), *arguments, "--device", "cpu"]
        return run_tool(*command, env={"PYTHONPATH": str(folder), "KILL": kill, "OMP_NUM_THREADS": "1"}, **kwargs)

    return run


@pytest.fixture(scope="module")
def straight(train, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp("straight") / "run"
    done = train(work_dir)
    assert done.returncode == 0, done.stderr
    return work_dir


SLOW = [pytest.param(kill, marks=pytest.mark.slow) for kill in ("epoch", "between", "validation")]


@pytest.mark.long
@pytest.mark.parametrize("kill", ["write", *SLOW])
def test_killed_run_resumes_to_the_same_weights(train, straight, tmp_path, kill):
    """With workers, augmentation, drop path and average; SIGKILL in the middle of an epoch, of writing last.pth, of a
    validation, and between the writing of best.pth and of last.pth.
    """
    killed = train(tmp_path / "run", kill=kill)
    assert killed.returncode == -signal.SIGKILL
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["meta"]["epoch"] == 1
    stale = list((tmp_path / "run").glob(".last.pth.*.tmp"))
    assert bool(stale) == (kill in ("write", "between")), "the kill came where it was meant to"
    done = train(tmp_path / "run", "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert_same_checkpoint(straight / "last.pth", tmp_path / "run" / "last.pth")
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_resume_after_the_end_changes_nothing(train, straight):
    before = (straight / "last.pth").read_bytes()
    done = train(straight, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert (straight / "last.pth").read_bytes() == before


@pytest.mark.long
def test_full_disk_keeps_the_former_checkpoint(train, straight, tmp_path):
    """A file size limit stands for the full disk: the first checkpoint fits, and the limit shrinks for the rest."""
    work_dir = tmp_path / "run"
    first = train(work_dir, "--cfg-options", "train_cfg.max_epochs=1")
    assert first.returncode == 0, first.stderr
    before = (work_dir / "last.pth").read_bytes()

    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
    failed = train(work_dir, "--resume", "auto", prepare=limit)
    assert failed.returncode == 2
    assert "could not be written after epoch 2" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (work_dir / "last.pth").read_bytes() == before
    done = train(work_dir, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert_same_checkpoint(straight / "last.pth", work_dir / "last.pth")


def test_write_atomic_keeps_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"former")
    stale = tmp_path / ".file.1.tmp"
    stale.write_bytes(b"of a process that was killed")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(path, b"latter")
    assert path.read_bytes() == b"former"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'
