"""What a model costs: counted, and timed side by side.

    from metala_vision.profiling import Request, count, create, measure

    count(create("metala_vit_tiny", 512), 512).macs                    # multiply-accumulates of one image
    measure(Request(["metala_vit_tiny", "deit_tiny_patch16_224"], [224, 512]), "FOLDER")["rows"]

`count` and `count_models` are what tools/flops.py calls, `measure` is tools/throughput.py; `matrix_products`, `replay`
and `interleaved` are the floor and the clock of tools/bench_model.py. Pictures need matplotlib (the extra "train").
"""

import importlib

# The module of each name, which is loaded when the name is asked for, since only counting needs fvcore.
_HOMES = {
    "Cell": "speed.steps",
    "Cost": "macs.count",
    "ModuleCost": "macs.count",
    "Product": "speed.products",
    "Request": "sweep.throughput",
    "Spread": "speed.timing",
    "count": "macs.count",
    "count_models": "macs.report",
    "create": "speed.steps",
    "interleaved": "speed.timing",
    "make_step": "speed.steps",
    "matrix_products": "speed.products",
    "measure": "sweep.throughput",
    "replay": "speed.products",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
