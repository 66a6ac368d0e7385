"""Models in several runtimes: what is timed, in whose turn, and what one that fails does to the others."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from tolerances import FLOAT32, relative_rms
from tool_process import run_tool

from metala_vision.deploy import model_of, runtime
from metala_vision.deploy.runtimes import RUNTIMES as PACKAGES
from metala_vision.errors import InputError
from metala_vision.profiling.speed import bench_runtimes as bench
from metala_vision.profiling.speed import in_turn
from metala_vision.profiling.speed.bench import render
from metala_vision.profiling.speed.files import Files
from metala_vision.profiling.speed.in_turn import Entry, race, serve
from metala_vision.profiling.speed.isolated import Worker
from metala_vision.profiling.speed.runtimes import check_runtimes, exported, prepare, step_of_file
from metala_vision.profiling.speed.steps import Cell, split_arguments
from metala_vision.profiling.speed.timing import Spread
from metala_vision.profiling.speed.workers import Candidate, Setting
from metala_vision.profiling.sweep.throughput import Request, measure

NANO = "metala_vit_nano:embed_dim=32,depth=1,num_heads=1"
VIT = "deit_tiny_patch16_224:embed_dim=48,depth=1,num_heads=3"
ONE_SIZE = "inline_deit_tiny_patch16_224:embed_dim=48,depth=1,num_heads=3"
CELL = Cell(64, 1, "float32", "infer")
ALL = ("eager", "compile", "onnxruntime", "openvino")
installed = pytest.mark.skipif(
    any(package.reason for package in PACKAGES.values()), reason="needs onnx, onnxscript, onnxruntime and openvino"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> str:
    """A folder of exported files, which is slow to fill."""
    return str(tmp_path_factory.mktemp("files"))


def of_seed_0(name: str) -> torch.nn.Module:
    architecture, arguments = split_arguments(name)
    torch.manual_seed(0)
    return model_of(architecture, **arguments)[0]


# --- what is timed


@installed
@pytest.mark.long
@pytest.mark.parametrize("name", [NANO, VIT])
@pytest.mark.parametrize("of", ["onnxruntime", "openvino"])
def test_a_step_gives_the_numbers_of_its_model(name, of, files, monkeypatch):
    """Catches the file of another model, and images of another shape than the cell's."""
    images = torch.randn(3, 3, 96, 96)
    exported(name, 224, of, "float32", files)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn", lambda *shape: images if shape == images.shape else pytest.fail(str(shape)))
        step = step_of_file(name, Cell(96, 3, "float32", "infer"), of, 2, files)
    model = of_seed_0(name)
    with torch.no_grad():
        assert relative_rms(step()[0], model(images)) <= FLOAT32
    assert len(list(Path(files).glob(f"{name[:8]}*"))) == 1  # for both runtimes and all sizes


@installed
@pytest.mark.long
def test_a_kept_file_of_another_model_is_refused(files, tmp_path):
    """Catches weights, or a version of the model, that are not what the other runtimes are timed with."""
    sent = []
    prepare(sent.append, NANO, 64, "onnxruntime", "float32", files)
    assert sent == [{"any_size": True}]
    right = exported(NANO, 64, "onnxruntime", "float32", files)
    other = NANO + ",mixer=gla"
    wrong = tmp_path / right.name.replace("num_heads=1", "num_heads=1,mixer=gla")
    wrong.write_bytes(right.read_bytes())
    with pytest.raises(InputError, match=r"^--files: .*gla.* gives other numbers than .*gla has now; delete it"):
        prepare(sent.append, other, 64, "onnxruntime", "float32", str(tmp_path))


@installed
@pytest.mark.long
def test_a_model_of_one_size_has_a_file_for_each_size(tmp_path):
    """Catches a file of 64 pixels that is found again for 96, and one that has been checked for it."""
    folder = Files(tmp_path, 300.0)
    for size in (64, 96):
        assert folder.reason_against(Candidate(ONE_SIZE, runtime="openvino"), CELL._replace(size=size)) == ""
    assert sorted(path.name.rpartition("_")[0] for path in tmp_path.iterdir()) == [
        f"{ONE_SIZE.replace(':', '_')}_{n}_float32" for n in (64, 96)
    ]
    run = step_of_file(ONE_SIZE, CELL._replace(size=96, batch=2), "openvino", 1, tmp_path)
    assert run()[0].shape == (2, 1000)


@installed
@pytest.mark.long
def test_products_of_eight_bits(tmp_path):
    """Catches a float32 file that is timed as int8, and PyTorch's float32 beside it."""
    import onnx

    sent = []
    prepare(sent.append, NANO, 64, "openvino", "int8", str(tmp_path))
    file = exported(NANO, 64, "openvino", "int8", tmp_path)
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(file).graph.node}
    assert step_of_file(NANO, CELL._replace(dtype="int8"), "openvino", 1, tmp_path)()[0].shape == (1, 1000)
    folder = Files(tmp_path, 300.0)
    for of in ("eager", "compile"):
        reason = folder.reason_against(Candidate(NANO, runtime=of), CELL._replace(dtype="int8"))
        assert reason == "int8 is of exported files alone"


def test_what_has_no_file():
    for of, dtype in (("eager", "float32"), ("onnxruntime", "bfloat16"), ("openvino", "float16")):
        with pytest.raises(InputError, match=f"^runtime: got '{of}' in {dtype}, for which there are no files"):
            exported(NANO, 64, of, dtype, "nowhere")


@installed
@pytest.mark.long
def test_a_precision_that_the_processor_lacks_is_no_float32(files):
    """Catches OpenVINO's way with the hint, which it takes on every processor."""
    import openvino

    file = exported(NANO, 64, "openvino", "float32", files)
    x = torch.randn(1, 3, 64, 64)
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found, wide = (runtime("openvino", file, 1, precision)(x)[0] for precision in ("bfloat16", "float32"))
        assert FLOAT32 < relative_rms(found, wide) < 0.1
    else:
        with pytest.raises(InputError, match="^precision: got 'bfloat16', in which OpenVINO does not compute on this"):
            runtime("openvino", file, 1, "bfloat16")
    with pytest.raises(InputError, match="^precision: got 'bfloat16', but onnxruntime computes in float32 alone"):
        runtime("onnxruntime", file, 1, "bfloat16")
    with pytest.raises(InputError, match="^precision: got 'int4', expected one of"):
        runtime("openvino", file, 1, "int4")
    with pytest.raises(InputError, match="^shape: got one for onnxruntime"):
        runtime("onnxruntime", file, 1, shape=(1, 3, 64, 64))
    fixed = runtime("openvino", file, 1, shape=x.shape)
    assert relative_rms(fixed(x)[0], runtime("openvino", file, 1)(x)[0]) <= FLOAT32
    with pytest.raises(InputError, match="^images: the file does not take"):
        fixed(torch.zeros(1, 3, 96, 64))


# --- turns


@installed
@pytest.mark.long
@pytest.mark.parametrize("of", ALL)
def test_a_process_that_waits_uses_no_processor(of, files):
    """Catches threads that spin: they would take the time that another one's turn is measured in."""
    entry, setting = Entry(Candidate(NANO, runtime=of), CELL), Setting(threads=2, files=files)
    with Worker(serve, {"entry": entry, "setting": setting}, None, asked=True) as worker:
        assert worker.receive(300) == {"ready": True}
        assert worker.ask({}, 300)["seconds"]["step"] > 0
        before = ticks(worker.pid)
        time.sleep(0.5)
        assert ticks(worker.pid) - before <= 1


def ticks(pid: int) -> int:
    """Of 10 ms, of all threads of a process."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))


def test_turns_go_round(monkeypatch):
    """Catches one candidate timed after the other, and a turn before all others are built."""
    log = []

    class Talks:
        def __init__(self, function, arguments, memory_limit, asked):
            self.name = arguments["entry"].candidate.runtime

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

        def receive(self, seconds):
            log.append(f"{self.name} built")

        def ask(self, message, seconds):
            log.append(self.name)
            return {"seconds": {"step": 1.0}}

    monkeypatch.setattr(in_turn, "Worker", Talks)
    entries = [Entry(Candidate(NANO, runtime=name), CELL) for name in ("eager", "openvino")]
    found = list(race(entries, Setting(), 2, 60.0, 60.0))
    assert log == ["eager built", "openvino built"] + 2 * ["eager", "openvino"]
    assert [message["times"] for message in found] == 2 * [[{"step": 1.0}, {"step": 1.0}]]


def test_one_that_dies_takes_no_other_along():
    """One cannot be built, one is killed in the second round."""
    names = [NANO, "metala_vit_nan", NANO]
    entries = [Entry(Candidate(name), CELL, floor=name == NANO) for name in names]
    failed, rounds, killed = {}, [], 0
    for message in race(entries, Setting(threads=1), 3, 60.0, 300.0):
        if "failed" in message:
            failed[message["failed"]] = message["reason"]
            continue
        rounds.append(message["times"])
        if not killed:
            killed = max(process.pid for process in multiprocessing.active_children())
            os.kill(killed, signal.SIGKILL)
    assert set(failed) == {1, 2}
    assert failed[1].startswith("InputError: --models: unknown model 'metala_vit_nan'")
    assert failed[2] == "killed by the system: out of memory, most likely"
    assert [[bool(x) for x in times] for times in rounds] == [[True, False, True]] + 2 * [[True, False, False]]
    assert {"step", "floor"} <= set(rounds[0][0])


# --- rows


@installed
@pytest.mark.long
def test_rows(files):
    """Catches rows out of order, a row left out, and a best that is not the best."""
    cells = [CELL, Cell(64, 2, "bfloat16", "infer")]
    runtimes = ["eager", "onnxruntime", "openvino"]
    rows, best = bench.bench_runtimes([VIT, NANO], cells, runtimes, threads=2, rounds=3, files=files)
    assert [(row["dtype"], row["batch"], row["model"], row["runtime"]) for row in rows] == [
        (cell.dtype, cell.batch, name, of) for cell in cells for name in (VIT, NANO) for of in runtimes
    ]
    reasons = [row.get("reason") for row in rows if row["runtime"] == "onnxruntime"]
    assert reasons == [None, None] + 2 * ["onnxruntime has no bfloat16 on a CPU"]
    for row in rows[:6]:
        assert row["rounds"] == 3
        assert row["floor_share"] > 0
        assert row["images_per_second"] == pytest.approx(1e3 / row["milliseconds"])
    assert rows[0]["times_faster"] == 1
    for name, mine in ((VIT, rows[:3]), (NANO, rows[3:6])):
        fastest = min(mine, key=lambda row: row["milliseconds"])
        assert best[0]["models"][name] == {key: fastest[key] for key in ("runtime", "milliseconds")}
    text = render({"environment": {"threads": 2}, "rows": rows})
    assert "onnxruntime has no bfloat16 on a CPU" in text
    assert f"best of {VIT}: {best[0]['models'][VIT]['milliseconds']:.1f} ms" in bench.render_best(best)


def test_the_best_by_hand():
    """B's best takes 4 and 8 s where A's takes 2 and 4: half the time, whatever the minute."""
    a, b = "A", "B"
    spreads = {
        "A in eager": Spread((3.0, 6.0, 6.0)),
        "A in openvino": Spread((2.0, 4.0, 4.0)),
        "B in eager": Spread((4.0, 8.0, 8.0)),
    }
    candidates = [Candidate(name, runtime=of) for name in (a, b) for of in ("eager", "openvino")]
    best = bench._best([a, b], candidates, CELL, spreads)
    assert best == {
        **CELL._asdict(),
        "models": {
            a: {"runtime": "openvino", "milliseconds": 4000.0},
            b: {"runtime": "eager", "milliseconds": 8000.0},
        },
        "over": {b: 0.5},
    }
    line = "64x1 float32 infer: best of A: 4000.0 ms (openvino); best of B: 8000.0 ms (eager); A over B: 0.50"
    assert bench.render_best([best]) == line
    assert bench.render_best([bench._best([a, b], candidates, CELL, {})]) == "64x1 float32 infer: none ran"
    row = bench._row(candidates[3], CELL, spreads, {candidates[3]: "died"}, candidates[0])
    assert row == {"model": b, "runtime": "openvino", **CELL._asdict(), "reason": "died"}
    alone = {"B in eager": spreads["B in eager"]}
    assert bench._row(candidates[2], CELL, alone, {}, candidates[0])["times_faster"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["tensorrt"], ["infer"], "cpu"), "--runtime: got 'tensorrt', expected out of eager, compile, onnxruntime"),
        (([], ["infer"], "cpu"), "--runtime: got 'none'"),
        ((["eager", "openvino"], ["infer"], "cuda:1"), "--runtime: got eager openvino on cuda:1, expected eager alone"),
        ((["compile"], ["infer"], "cpu", True), "--compile: got it beside --runtime"),
        ((["eager", "onnxruntime"], ["train"], "cpu"), "--mode: got train, but onnxruntime does not train"),
    ],
    ids=["unknown", "none", "gpu", "compile", "train"],
)
def test_bad_runtimes(arguments, message):
    with pytest.raises(InputError, match=f"^{message}"):
        check_runtimes(*arguments)


def test_what_goes_without_a_package(monkeypatch):
    """Catches a tool that asks for onnx to time PyTorch."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_runtimes(["eager", "compile"], ["infer", "train"], "cpu")
    check_runtimes(["eager"], ["train"], "cuda", True)
    with pytest.raises(InputError, match="^--runtime: openvino needs openvino, which is not installed: pip install"):
        check_runtimes(["eager", "openvino"], ["infer"], "cpu")


def test_the_tool_says_what_is_wrong():
    bad = run_tool("bench_model.py", "--models", NANO, "--cells", "32", "--runtime", "eager", "tflite")
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: --runtime: got 'tflite'")
    for arguments, message in [
        (["--rounds", "0"], "error: --rounds: got 0, expected at least 1"),
        (["--threads", "0"], "error: --threads: got 0, expected at least 1"),
        (["--files", "x"], "error: --files: got it without a --runtime that runs files: onnxruntime or openvino"),
        (["--runtime", "compile", "--cuda-graphs"], "error: --cuda-graphs: got it beside --runtime"),
    ]:
        bad = run_tool("bench_model.py", "--models", NANO, "--cells", "32", *arguments)
        assert bad.returncode == 2
        assert bad.stderr.startswith(message)
    bad = run_tool("bench_model.py", "--models", NANO, "--cells", "32", "--dtype", "int8")
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: --dtype: got int8, which is of exported files alone; add --runtime onnx")


@installed
@pytest.mark.long
def test_the_tool(files):
    done = run_tool(
        *("bench_model.py", "--models", NANO, "--cells", "64", "--rounds", "1", "--no-floor", "--json"),
        *("--runtime", "onnxruntime", "onnxruntime", "--threads", "1", "--files", files),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [(row["runtime"], row["rounds"], row["times_faster"]) for row in result["rows"]] == [("onnxruntime", 1, 1.0)]
    assert result["best"][0]["models"][NANO]["runtime"] == "onnxruntime"
    assert "onnxruntime" in result["environment"]


# --- sweeps


@installed
@pytest.mark.long
def test_a_sweep(files, tmp_path):
    """Catches keys that no longer find what was measured before there were runtimes, and a failure that ends it."""
    common = dict(batch=1, rounds=3, cell_seconds=20.0, threads=1, dtypes=["bfloat16", "float32"])
    before = measure(Request([NANO], [64], **common), tmp_path)
    cells = json.loads((tmp_path / "cells.json").read_text())
    for row in cells["cells"].values():
        del row["runtime"]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    runtimes = ["eager", "onnxruntime", "openvino"]
    after = measure(Request([NANO], [64], runtimes=runtimes, files=files, **common), tmp_path)
    assert [row for row in after["rows"] if row["runtime"] == "eager"] == before["rows"]
    assert [(row["dtype"], row["runtime"]) for row in after["rows"]] == [
        (dtype, of) for dtype in ("float32", "bfloat16") for of in runtimes
    ]
    wide, narrow = after["rows"][:3], after["rows"][3:]
    assert narrow[1]["reason"] == "onnxruntime has no bfloat16 on a CPU"
    for row in wide:
        assert (row["status"], row["rounds"]) == ("ok", 3)
        assert row["tokens_per_second"] == pytest.approx(16 * row["images_per_second"], rel=1e-3)
        assert row["parameters"] == wide[0]["parameters"]
        assert row["paired"]
        assert row["peak_memory_mb"] > 50
    text = (tmp_path / "throughput.csv").read_text()
    assert ",openvino," in text
    assert Files(files, 60.0).reason_against(Candidate(NANO), CELL) == ""
