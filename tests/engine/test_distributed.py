"""Two processes on gloo: they train as one, end together, and resume together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from small_runs import DIGITS, ROOT, assert_same_checkpoint
from tool_process import run_tool

from metala_vision.engine import join_processes
from metala_vision.engine.run.distributed import LAUNCHERS
from metala_vision.errors import InputError

# No randomness that depends on the process: no drop path, and the augmentation is the sampler's.
CONFIG = f"""
_base_ = {str(DIGITS)!r}
custom_imports = dict(imports=["metala_vision", "metala_vision.data", "metala_vision.engine", "killer"])
default_hooks = dict(killer=dict(type="RankKiller"), logger=dict(interval=1))
model = dict(backbone=dict(embed_dim=32, depth=2, drop_path_rate=0.0))
train_dataloader = dict(batch_size=64, num_workers=1)
train_cfg = dict(max_epochs=3)
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
optim_wrapper = dict(optimizer=dict(lr=1e-2))
param_scheduler = [dict(type="LinearLR", start_factor=0.3, by_epoch=True, end=3, convert_to_iter_based=True)]
"""
CROPS = """
_base_ = "config.py"
crops = dict(_delete_=True, type="TrainTransform", img_size=8, scale=(0.5, 1.0))
train_dataloader = dict(dataset=dict(transform=crops))
"""
KILLER = """
import os, signal
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from metala_vision.errors import InputError

@HOOKS.register_module()
class RankKiller(Hook):
    priority = "VERY_HIGH"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        how, rank = os.environ.get("KILL", "no:9").split(":")
        if get_rank() == int(rank) and runner.epoch == 1 and batch_idx == 3:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "error":
                raise InputError("this process alone has a problem")
            if how == "nan":
                data_batch["inputs"] = data_batch["inputs"].float() * float("nan")
"""
ALL_ON = ["--amp", "--ema", "0.9", "--cfg-options", "model.backbone.drop_path_rate=0.1"]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """train(work_dir, *arguments, processes=2, kill="no:9", config="config.py", torchrun=True) -> CompletedProcess.

    Without torchrun the processes are copies of one that has imported it all: half the time.
    """
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "killer.py").write_text(KILLER)
    (folder / "config.py").write_text(CONFIG)
    (folder / "crops.py").write_text(CROPS)

    def run(
        work_dir: Path,
        *arguments: str,
        processes: int = 2,
        kill: str = "no:9",
        config: str = "config.py",
        torchrun: bool = True,
    ) -> subprocess.CompletedProcess:
        arguments = (str(folder / config), "--work-dir", str(work_dir), *arguments, "--device", "cpu")
        if processes > 1:
            arguments += ("--launcher", "pytorch")
        environment = {"PYTHONPATH": f"{folder}:{ROOT}", "KILL": kill, "OMP_NUM_THREADS": "1"}
        if not torchrun:
            return run_tool("train.py", *arguments, env=environment, processes=processes)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return subprocess.run(
            [*launcher, str(ROOT / "tools" / "train.py"), *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


def step_losses(work_dir: Path) -> list[float]:
    (scalars,) = work_dir.glob("*/vis_data/scalars.json")
    records = [json.loads(line) for line in scalars.read_text().splitlines()]
    return [record["steps/loss"] for record in records if "steps/loss" in record]


@pytest.fixture(scope="module")
def two(train, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("two") / "run"
    done = train(work_dir)
    assert done.returncode == 0, done.stderr
    return work_dir, done


@pytest.mark.long
def test_two_processes_train_as_one_with_the_doubled_batch(train, two, tmp_path):
    """Losses of every step, weights, validation and test result, all within float noise."""
    work_dir, done = two
    one = train(tmp_path / "one", "--cfg-options", "train_dataloader.batch_size=128", processes=1, torchrun=False)
    assert one.returncode == 0, one.stderr
    alone, together = step_losses(tmp_path / "one"), step_losses(work_dir)
    assert len(alone) == len(together) == 3 * 10
    assert max(abs(a - b) for a, b in zip(alone, together)) < 2e-4
    assert alone[0] > 2
    assert alone[-1] < alone[0] - 0.3, "it learned: a loss that stands still would be equal too"
    weights = [
        torch.load(folder / "last.pth", weights_only=True)["state_dict"] for folder in (tmp_path / "one", work_dir)
    ]
    for key in weights[0]:
        torch.testing.assert_close(weights[0][key], weights[1][key], rtol=0, atol=2e-3)
    results = [json.loads(run.stdout.splitlines()[-1]) for run in (one, done)]
    assert results[1]["processes"] == 2
    assert results[0]["images"] == results[1]["images"] == 359
    assert results[0]["top1"] == pytest.approx(results[1]["top1"], abs=1.0)
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], abs=2e-3)
    assert done.stdout.count('{"model"') == 1, "one process speaks for all"
    assert "MKL_NUM_THREADS" not in done.stderr, "what torchrun says of OMP_NUM_THREADS, again by every process"
    history = [json.loads((folder / "history.json").read_text()) for folder in (tmp_path / "one", work_dir)]
    for left, right in zip(*history):
        assert left["train/loss"] == pytest.approx(right["train/loss"], abs=2e-4)
        assert left["val/loss"] == pytest.approx(right["val/loss"], abs=2e-3)


@pytest.mark.slow
def test_two_processes_train_at_the_same_sizes(train, tmp_path):
    """As one with the doubled batch, step by step: catches ranks that draw sizes of their own."""
    options = ["--multi-scale", "6", "8", "12"]
    forked = dict(config="crops.py", torchrun=False)
    two = train(tmp_path / "two", *options, **forked)
    doubled = ["--cfg-options", "train_dataloader.batch_size=128"]
    one = train(tmp_path / "one", *options, *doubled, processes=1, **forked)
    assert (two.returncode, one.returncode) == (0, 0), two.stderr + one.stderr
    alone, together = step_losses(tmp_path / "one"), step_losses(tmp_path / "two")
    assert len(alone) == len(together) == 3 * 10
    assert max(abs(a - b) for a, b in zip(alone, together)) < 5e-4
    other = train(tmp_path / "other", *options, "--seed", "7", processes=1, **forked)
    assert other.returncode == 0, other.stderr
    different = step_losses(tmp_path / "other")
    assert max(abs(a - b) for a, b in zip(alone, different)) > 5e-3, "the comparison can fail"


@pytest.fixture(scope="module")
def all_on(train, tmp_path_factory) -> Path:
    """A run that nobody kills, with average, drop path and bfloat16."""
    work_dir = tmp_path_factory.mktemp("all_on") / "run"
    done = train(work_dir, *ALL_ON, torchrun=False)
    assert done.returncode == 0, done.stderr
    return work_dir


@pytest.mark.long
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_killed_process_ends_the_run_and_it_resumes(train, all_on, tmp_path, rank):
    """An error within a minute, not a hang; and with average, drop path and bfloat16 on, resuming changes no weight."""
    start = time.perf_counter()
    killed = train(tmp_path / "run", *ALL_ON, kill=f"kill:{rank}")
    assert killed.returncode not in (0, -signal.SIGKILL)
    assert time.perf_counter() - start < 120
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["meta"]["epoch"] == 1
    resumed = train(tmp_path / "run", "--resume", "auto", *ALL_ON, torchrun=False)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_checkpoint(all_on / "last.pth", tmp_path / "run" / "last.pth")


@pytest.mark.long
@pytest.mark.parametrize(
    ("kill", "message"),
    [
        pytest.param("error:1", "this process alone has a problem", marks=pytest.mark.slow),
        ("nan:1", "the loss is nan at step 14 (epoch 2)"),
    ],
)
def test_trouble_of_one_process_ends_all(train, tmp_path, kill, message):
    failed = train(tmp_path / "run", kill=kill)
    assert failed.returncode != 0
    assert message in failed.stderr
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["meta"]["epoch"] == 1


SHARING = """
import torch
from metala_vision.engine.run.distributed import share_buffers

torch.distributed.init_process_group("gloo")
module = torch.nn.BatchNorm1d(2)
for buffer in module.buffers():
    buffer.fill_(3 + torch.distributed.get_rank())
share_buffers(module)
assert all((buffer == 3).all() for buffer in module.buffers())

# a folder that all see, and one that each node has of its own
import sys, tempfile
from metala_vision.engine.run.work_dir import check_shared
from metala_vision.errors import InputError

check_shared(sys.argv[1], patience=0)
with tempfile.TemporaryDirectory() as folder:
    try:
        check_shared(folder, patience=0)
    except InputError as error:
        assert "is not there for process 1; it must be on a disk that all nodes share" in str(error), error
    else:
        raise AssertionError("nothing was said")
"""


@pytest.mark.long
def test_what_processes_share(tmp_path):
    """Buffers come from the first one, and a folder of a node's own is found out."""
    (tmp_path / "sharing.py").write_text(SHARING)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(tmp_path / "sharing.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sharing.py"]


def test_launchers_are_checked(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    config = Config(dict(device="cpu"))
    with pytest.raises(InputError, match="--launcher: got 'mpi', expected one of"):
        join_processes(config, "mpi")
    with pytest.raises(InputError, match="RANK is not set; start with `torchrun --nproc-per-node N tools/train.py"):
        join_processes(config, "pytorch")
    with pytest.raises(InputError, match="SLURM_PROCID is not set; start with `srun --kill-on-bad-exit=1 python"):
        join_processes(config, "slurm")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(InputError, match="SLURM_STEP_NUM_TASKS is 8, .*add --launcher slurm"):
        join_processes(config, "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE is 2, .*add --launcher pytorch"):
        join_processes(config, "none")
    for name, value in dict(RANK="0", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="--device: got 'cuda:1' with --launcher pytorch"):
        join_processes(Config(dict(device="cuda:1")), "pytorch")
    assert LAUNCHERS[0] == "none"


def test_slurm_is_translated(monkeypatch):
    """As srun starts them: one process per task, the first node is where they meet."""
    started = {}
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, **kwargs: started.update(b=backend))
    monkeypatch.setattr(
        "subprocess.run", lambda *args, **kwargs: subprocess.CompletedProcess(args, 0, stdout="node7\nnode8\n")
    )
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "to be put back")
        monkeypatch.delenv(name)
    slurm = dict(PROCID="3", NTASKS="4", LOCALID="1", NODELIST="node[7-8]", JOB_ID="3456", STEP_ID="2")
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    config = Config(dict(device="cpu"))
    join_processes(config, "slurm")
    expected = dict(
        RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", MASTER_ADDR="node7", MASTER_PORT=str(20000 + (7 * 3456 + 2) % 20000)
    )
    assert {name: os.environ[name] for name in expected} == expected
    assert started == dict(b="gloo")
    assert config.launcher == "slurm"
