"""Several processes: how they find each other, and the model that averages over them."""

import datetime
import os
import subprocess
import warnings

import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn
from torch import distributed as dist

from metala_vision.errors import InputError

LAUNCHERS = ("none", "pytorch", "slurm")
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODELIST")


def join_processes(config: Config, launcher: str, timeout: float = 1800.0) -> None:
    """Joins the processes of a launcher: NCCL where each has a GPU, gloo on CPUs. Writes `launcher` into the config.

    Args:
        config: with `device`, "auto", "cpu" or "cuda".
        launcher: "none", "pytorch" (torchrun) or "slurm" (srun).
        timeout: seconds that a process waits for the others in one exchange before it gives up.

    Raises:
        InputError: an unknown launcher, a launcher whose variables are not set, no launcher in one of several
            processes, a GPU by number, more processes than GPUs on a machine.
    """
    if launcher not in LAUNCHERS:
        raise InputError(f"--launcher: got {launcher!r}, expected one of {LAUNCHERS}")
    if launcher == "none":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, so this is one of several processes: add --launcher pytorch"
            )
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # set by srun, not in the shell of a job
            raise InputError(
                f"SLURM_STEP_NUM_TASKS is {os.environ['SLURM_STEP_NUM_TASKS']}, so this is one of several processes: "
                f"add --launcher slurm"
            )
        return
    needed, how = (
        (TORCHRUN, "torchrun --nproc-per-node N")
        if launcher == "pytorch"
        else (SLURM, "srun --kill-on-bad-exit=1 python")
    )
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise InputError(f"--launcher {launcher}: {missing[0]} is not set; start with `{how} tools/train.py ...`")
    if launcher == "slurm":
        _translate_slurm()
    device = config.get("device", "auto")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device: got {device!r} with --launcher {launcher}, expected auto, cpu or cuda")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    local_rank = int(os.environ["LOCAL_RANK"])
    if on_gpu:
        if launcher == "slurm" and torch.cuda.device_count() == 1:
            local_rank = 0  # srun --gpus-per-task=1 shows each process only its own GPU
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"--launcher {launcher}: process {local_rank} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank)
    if not on_gpu and device == "auto":
        warnings.warn("no GPU was found: the processes train on CPUs (--device cuda refuses to)", stacklevel=2)
    config.device = f"cuda:{local_rank}" if on_gpu else "cpu"
    config.launcher = launcher
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=datetime.timedelta(seconds=timeout))


def leave_processes() -> None:
    """Leaves the process group after a run. After an error it is not called, so that the other processes end too."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _translate_slurm() -> None:
    """Sets the variables of torchrun from those of srun."""
    if "MASTER_ADDR" not in os.environ:
        command = ["scontrol", "show", "hostnames", os.environ["SLURM_NODELIST"]]
        try:
            hosts = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(
                f"--launcher slurm: `{' '.join(command)}` fails ({error}); set MASTER_ADDR to the first node"
            ) from error
        os.environ["MASTER_ADDR"] = hosts.stdout.split()[0]
    # Each job and step gets a port of its own: two of them may share a node.
    number = 7 * int(os.environ.get("SLURM_JOB_ID", "0")) + int(os.environ.get("SLURM_STEP_ID", "0"))
    os.environ.setdefault("MASTER_PORT", str(20000 + number % 20000))
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]


def share_buffers(module: nn.Module) -> None:
    """Gives every process the buffers of the first one, such as the running means of BatchNorm."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


@MODEL_WRAPPERS.register_module()
class DistributedTask(MMDistributedDataParallel):
    """DistributedDataParallel whose reported loss is the mean over all processes, the same in each."""

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """One training step. Every process sees a loss that is not finite in any of them, so that all end together.

        The parts of a loss are those of this process; a process without a readable image has none.
        """
        losses = super().train_step(data, optim_wrapper)
        loss = losses["loss"].detach().float()
        dist.all_reduce(loss)
        return {**losses, "loss": loss / dist.get_world_size()}
