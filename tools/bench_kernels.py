#!/usr/bin/env python3
"""Time gated linear attention: each backend beside softmax attention of the same heads, forward and backward.

First every backend is compared with the float64 definition; where one is wrong no time is reported, and the exit code
is 1. Then all candidates run in turns, round by round, so that a slow moment of the machine hits all of them alike.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial

from arguments import add_json

EXAMPLES = """examples:
  python tools/bench_kernels.py
  python tools/bench_kernels.py --shapes 8x14x14 1x64x64 --threads 1
  python tools/bench_kernels.py --device cuda --dtype bfloat16 --shapes 256x14x14 1x128x128 --json
"""
# Largest RMS(error) / RMS(reference), as in the tests: of output and gradients, and of the gate's gradient in bfloat16.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3, "float16": 5e-3}
BFLOAT16_GATE_GRADIENT = 2e-2
FLA = "fla chunk_gla (row)"
WARMUP = 2  # rounds that compile and warm up


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["8x14x14", "1x64x64"], metavar="BxRxC", help="batch x grid")
    parser.add_argument("--heads", type=int, default=3, help="heads H (default: 3)")
    parser.add_argument("--key", type=int, default=32, help="key channels K of a head (default: 32)")
    parser.add_argument("--value", type=int, default=64, help="value channels V of a head (default: 64)")
    parser.add_argument(
        "--scan", nargs="+", default=["row", "row_reverse"], metavar="ORDER", help="scan orders (default: rows, both)"
    )
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="default: every one that the device has")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCE), help="of q, k, v (default: float32)")
    parser.add_argument(
        "--sdpa",
        nargs="+",
        default=["default"],
        metavar="NAME",
        help="softmax kernels: default, cudnn, flash, efficient, math; ratios are to the first (default: default)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default: 15)")
    add_json(parser)
    return parser.parse_args()


def parse_shape(text: str) -> tuple[int, int, int]:
    """ "8x14x14" -> (8, 14, 14).

    Raises:
        InputError: anything but three positive integers.
    """
    from metala_vision.errors import InputError

    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise InputError(f"--shapes: got {text!r}, expected batch x rows x columns, like 8x14x14")
    return tuple(int(part) for part in parts)


def make_inputs(batch: int, tokens: int, args: argparse.Namespace, device, dtype) -> tuple[dict, object]:
    """q, log_decay and v as leaves, and the upstream gradient."""
    import torch
    from torch.nn import functional as F

    shape = (batch, tokens, args.heads, args.key)
    inputs = {"q": torch.randn(shape), "log_decay": F.logsigmoid(torch.randn(shape)) / 16}
    inputs["v"] = torch.randn(*shape[:3], args.value)
    inputs = {name: x.to(device, dtype).requires_grad_() for name, x in inputs.items()}
    return inputs, torch.randn(inputs["v"].shape).to(device, dtype)


def wrong_backends(backends: list[str], args: argparse.Namespace, device, dtype) -> dict[str, dict[str, float]]:
    """Relative RMS errors beyond the tolerances against the float64 reference, by backend; empty if all is well."""
    import torch

    from metala_vision.kernels import gated_linear_attention

    grid, orders = (15, 17), tuple(args.scan)
    inputs, upstream = make_inputs(2, 15 * 17, args, device, dtype)

    def results(backend: str, dtype) -> dict:
        leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in inputs.items()}
        out = gated_linear_attention(**leaves, grid=grid, scan=orders, backend=backend)
        gradients = torch.autograd.grad(out, list(leaves.values()), upstream.to(dtype))
        return {"out": out.detach()} | dict(zip(leaves, gradients))

    expected, wrong = results("reference", torch.float64), {}
    for backend in backends:
        errors = {}
        for name, x in results(backend, dtype).items():
            error = ((x.double() - expected[name]).norm() / expected[name].norm()).item()
            gate = args.dtype == "bfloat16" and name == "log_decay"
            if not error <= (BFLOAT16_GATE_GRADIENT if gate else TOLERANCE[args.dtype]):
                errors[name] = error
        if errors:
            wrong[backend] = errors
    return wrong


def candidates(backends: list[str], shape: tuple[int, int, int], backward: bool, args, device, dtype) -> dict:
    """A call of each candidate by name: forward alone, or forward and backward."""
    import torch
    from torch.nn import functional as F

    from metala_vision.kernels import gated_linear_attention
    from metala_vision.profiling.speed.attention import attention

    batch, rows, cols = shape
    inputs, upstream = make_inputs(batch, rows * cols, args, device, dtype)
    q, k, v = (torch.randn_like(upstream.transpose(1, 2)).requires_grad_() for _ in range(3))  # [B, H, N, V]

    def timed(call: Callable, leaves: list, upstream) -> Callable:
        def once() -> None:
            if backward:
                torch.autograd.grad(call(), leaves, upstream)
            else:
                with torch.inference_mode():
                    call()

        return once

    def attend(backend: str) -> Callable:
        return lambda: gated_linear_attention(**inputs, grid=(rows, cols), scan=tuple(args.scan), backend=backend)

    leaves = list(inputs.values())
    entries = {name: timed(attend(name), leaves, upstream) for name in backends}

    def softmax(sdpa: str):
        with attention(sdpa):
            return F.scaled_dot_product_attention(q, k, v)

    for sdpa in args.sdpa:
        entries[softmax_name(sdpa)] = timed(partial(softmax, sdpa), [q, k, v], upstream.transpose(1, 2))
    if device.type == "cuda" and importlib.util.find_spec("fla"):
        # What fla offers that comes nearest: one scan order, and a key that has to be formed.
        def one_order():
            from fla.ops.gla import chunk_gla

            k = -torch.expm1(inputs["log_decay"])
            return chunk_gla(inputs["q"], k, inputs["v"], inputs["log_decay"])[0]

        entries[FLA] = timed(one_order, leaves, upstream)
    return entries


def without_kernel(entries: dict[str, Callable], softmax: list[str]) -> dict[str, str]:
    """Removes the softmax kernels that do not run here from the candidates; returns the reason for each.

    Raises:
        InputError: the kernel that all ratios are to is among them.
    """
    from metala_vision.errors import InputError
    from metala_vision.profiling.speed.isolated import one_line

    missing = {}
    for name in softmax:
        try:
            entries[name]()
        except Exception as error:  # no such kernel for these inputs, too little memory, a broken package
            missing[name] = one_line(error)
            del entries[name]
    if softmax[0] in missing:
        raise InputError(f"--sdpa: {softmax[0]} does not run here, and ratios are to it: {missing[softmax[0]]}")
    return missing


def softmax_name(sdpa: str) -> str:
    """The name of softmax attention by one kernel in the table."""
    return f"softmax ({sdpa})"


def report(results: list[dict]) -> None:
    """Median, spread and ratio of each candidate as aligned text."""
    for result in results:
        print(f"\n{result['shape']}  {result['pass']}")
        print(f"  {'':22}{'median ms':>11}{'spread':>9}{'softmax / this':>16}")
        for name, x in result["candidates"].items():
            print(f"  {name:22}{x['median_ms']:11.3f}{x['spread']:9.0%}{x['speedup_over_softmax']:16.2f}")
        for name, reason in result["missing"].items():
            print(f"  {name:22} does not run here: {reason}")


def main(args: argparse.Namespace) -> dict:
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from metala_vision.errors import InputError
    from metala_vision.kernels import SCAN_ORDERS, available_backends
    from metala_vision.profiling.speed.attention import SDPA
    from metala_vision.profiling.speed.timing import interleaved, timed_device

    shapes = [parse_shape(text) for text in args.shapes]
    for name, least in {"heads": 1, "key": 1, "value": 1, "threads": 1, "rounds": 2}.items():
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise InputError(f"--{name}: got {getattr(args, name)}, expected at least {least}")
    if set(args.scan) - set(SCAN_ORDERS) or len(set(args.scan)) < len(args.scan):
        raise InputError(f"--scan: got {' '.join(args.scan)}, expected out of {', '.join(SCAN_ORDERS)}, none twice")
    if unknown := [name for name in args.sdpa if name not in SDPA]:
        raise InputError(f"--sdpa: got {', '.join(unknown)}, expected out of {', '.join(SDPA)}")
    args.device = timed_device(args.device)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    known = available_backends(device)
    if unknown := set(args.backends or ()) - set(known):
        raise InputError(f"--backends: got {', '.join(sorted(unknown))}, expected out of {', '.join(known)}")
    backends = args.backends or [name for name in known if name != "reference"]
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    print(f"comparing {', '.join(backends)} with the float64 reference", file=sys.stderr)
    if wrong := wrong_backends(backends, args, device, dtype):
        for name, errors in wrong.items():
            listed = ", ".join(f"{x} {error:.1e}" for x, error in errors.items())
            print(f"error: backend {name!r} is beyond the tolerances: {listed}; nothing is timed", file=sys.stderr)
        raise SystemExit(1)

    results = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for text, shape in zip(args.shapes, shapes):
            for backward in (False, True):
                passes = "forward and backward" if backward else "forward"
                entries = candidates(backends, shape, backward, args, device, dtype)
                others = [softmax_name(sdpa) for sdpa in args.sdpa] + [FLA] * (FLA in entries)
                missing = without_kernel(entries, others)
                rounds = interleaved(entries, args.rounds, WARMUP, args.device)
                *_, spreads = progress.track(rounds, args.rounds + WARMUP, description=f"{text} {passes}")
                rows = {
                    name: {
                        "median_ms": 1e3 * spread.median,
                        "spread": spread.relative_range,
                        "speedup_over_softmax": spreads[softmax_name(args.sdpa[0])].ratio_to(spread),
                    }
                    for name, spread in spreads.items()
                }
                results.append({"shape": text, "pass": passes, "candidates": rows, "missing": missing})
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    settings = {x: getattr(args, x) for x in ("heads", "key", "value", "scan", "dtype", "rounds", "sdpa")}
    report(results)
    return {"device": name, **settings, "torch": torch.__version__, "results": results}


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch takes seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
