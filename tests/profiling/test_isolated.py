"""Processes of their own: how they end, and that nobody else does with them."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from metala_vision.errors import InputError
from metala_vision.profiling.speed.isolated import Ended, is_out_of_memory, stream


def count_to(send, number: int) -> None:
    for value in range(number):
        send({"value": value})


def allocate(send, size: int) -> None:
    send({"elements": torch.zeros(size // 4).numel()})


def die(send, how: int) -> None:
    os.kill(os.getpid(), how)


def sleep(send, seconds: float) -> None:
    send({"asleep": os.getpid()})
    time.sleep(seconds)


def fail(send) -> None:
    raise KeyError("nothing here")


def test_a_process_of_its_own():
    assert [m["value"] for m in stream(count_to, {"number": 3}, 60, None)] == [0, 1, 2]


@pytest.mark.long
@pytest.mark.parametrize(
    ("function", "arguments", "limit", "reason", "memory"),
    [
        (allocate, {"size": 4 << 30}, 2 << 30, "can't allocate memory", True),
        (die, {"how": signal.SIGKILL}, None, "killed by the system: out of memory, most likely", True),
        (die, {"how": signal.SIGSEGV}, None, "died of signal 11 (Segmentation fault)", False),
        (fail, {}, None, "KeyError: 'nothing here'", False),
        (sleep, {"seconds": 600.0}, None, "nothing came back within 5 s", False),
    ],
    ids=["memory", "killed", "crashed", "raised", "stuck"],
)
def test_what_ends_a_process_is_told(function, arguments, limit, reason, memory):
    """Catches a sweep that dies, or waits for ever, with the cell that it measures."""
    with pytest.raises(Ended) as ended:
        list(stream(function, arguments, 5 if function is sleep else 60, limit))
    assert reason in ended.value.reason
    assert ended.value.memory == memory


def test_a_process_does_not_outlive_who_reads_it():
    messages = stream(sleep, {"seconds": 600.0}, 60, None)
    process = next(messages)["asleep"]
    messages.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 4 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (InputError("images: the file does not take (1, 3, 64, 64): Failed to allocate memory for 8 bytes"), True),
        (InputError("images: the file does not take (1, 3, 64, 64): std::bad_alloc"), True),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) == expected


@pytest.mark.long
def test_a_script_without_a_main_guard(tmp_path):
    """Catches a child that runs the user's script again; and what a child prints is not on standard output."""
    script = tmp_path / "script.py"
    script.write_text(
        "from metala_vision.profiling.speed.isolated import stream\n"
        "import json\n"
        "print('begun')\n"
        "print([m for m in stream(json.dump, {'obj': 1, 'fp': None}, 60, None)])\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout.count("begun") == 1
    assert "Ended: " in done.stderr  # json.dump took none of it, in its own process
    assert "bootstrapping" not in done.stderr
