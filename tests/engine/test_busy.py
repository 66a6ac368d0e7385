"""What other programs take of a machine, and that a dry run says so."""

import os
import signal
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
    """Catches a share that counts this process, or misses another one, which no process of the run has started."""
    own, start = busy._own_seconds(), time.process_time()
    while time.process_time() < start + 0.3:  # busy itself
        pass
    assert busy._own_seconds() - own == pytest.approx(0.3, abs=0.1)
    loop = "import time\nend = time.perf_counter() + 20\nwhile time.perf_counter() < end: pass"
    quiet = "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"
    apart = f"import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {loop!r}], {quiet}).pid)"
    other = int(subprocess.run([sys.executable, "-c", apart], capture_output=True, check=True).stdout)
    try:
        own, others = busy._own_seconds(), busy.Others()
        time.sleep(1)
        beside, own = others.share(), busy._own_seconds() - own
    finally:
        os.kill(other, signal.SIGKILL)
    assert own < 0.3
    assert beside > 0.5 / len(busy._cores())


@pytest.mark.skipif(not busy.STATISTICS.exists(), reason="this system does not count what its cores do")
def test_workers_and_other_processes_of_the_run_are_its_own(monkeypatch):
    """Catches a loader's workers and torchrun's other processes that are taken for other programs.

    The machine is as busy as three seconds of work say; a worker and another process of the run have done it all.
    """
    busy_seconds = iter([100.0, 103.0])
    monkeypatch.setattr(busy, "_busy_seconds", lambda: next(busy_seconds))
    others = busy.Others()
    loop = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(20)"
    with subprocess.Popen([sys.executable, "-c", loop], stdout=subprocess.PIPE) as worker:
        worker.stdout.readline()
        spent = []

        def gather(own):
            place, seconds = own
            spent.append(seconds)
            return [own, (place, 3.0 - seconds), (("another machine", [0]), 50.0)]

        monkeypatch.setattr(busy, "all_gather_object", gather)
        share = others.share()
        worker.kill()
    assert spent[0] >= 0.25
    assert share == pytest.approx(0.0, abs=1e-9)


def test_where_nobody_counts(monkeypatch, tmp_path):
    """Catches a system without /proc, where a dry run would fail for a remark."""
    monkeypatch.setattr(busy, "STATISTICS", tmp_path / "stat")
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0 + len(busy._cores()), 0.0, 0.0))
    assert busy.Others().share() == 1.0


@pytest.mark.parametrize(("share", "said"), [(0.1, False), (0.4, True)])
def test_a_dry_run_says_so(share, said):
    """Catches estimates for a busy machine that are taken for those of an idle one."""
    assert ("other programs took 40% of the processor" in describe({**RESULT, "others_share": share})) == said
