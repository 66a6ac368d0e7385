"""What other programs take of a machine, and that a dry run says so."""

import os
import subprocess
import sys
import time

import pytest

from metala_vision.engine import busy
from metala_vision.engine.dry_run import describe

RESULT = dict(
    model="m",
    parameters=1e6,
    trainable=1e6,
    images=1,
    classes=2,
    input=[3, 8, 8],
    images_per_step=1,
    processes=1,
    device="cpu",
    lr=0.1,
    seconds_per_batch_model=1.0,
    seconds_per_batch_data=0.1,
    data_workers=1,
    peak_memory_gb=1.0,
    memory_of="process",
    seconds_per_epoch=1.0,
    epochs=1,
    hours=0.1,
)


@pytest.mark.skipif(not busy.STATISTICS.exists(), reason="this system does not count what its cores do")
def test_other_programs_are_counted_and_own_work_is_not():
    """Catches a share that counts this process, or misses another one."""
    cores = len(busy._cores())
    others = busy.Others()
    end = time.perf_counter() + 1
    while time.perf_counter() < end:  # busy itself
        pass
    before = others.share()
    loop = "import time\nprint(flush=True)\nend = time.perf_counter() + 20\nwhile time.perf_counter() < end: pass"
    with subprocess.Popen([sys.executable, "-c", loop], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        others = busy.Others()
        time.sleep(1)
        beside = others.share()
        other.kill()
    assert beside > 0.5 / cores
    assert before < 0.5 / cores or beside > 0.9, "own work, unless the machine has no core left"


def test_where_nobody_counts(monkeypatch, tmp_path):
    """Catches a system without /proc, where a dry run would fail for a remark."""
    monkeypatch.setattr(busy, "STATISTICS", tmp_path / "stat")
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0 + len(busy._cores()), 0.0, 0.0))
    assert busy.Others().share() == 1.0


@pytest.mark.parametrize(("share", "said"), [(0.1, False), (0.4, True)])
def test_a_dry_run_says_so(share, said):
    """Catches estimates for a busy machine that are taken for those of an idle one."""
    assert ("other programs took 40% of the processor" in describe({**RESULT, "others_share": share})) == said
