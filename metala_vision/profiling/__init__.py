"""What a model costs: counted, and timed side by side.

    from metala_vision.profiling import Request, count, create, measure

    count(create("metala_vit_tiny", 512), 512).macs                    # multiply-accumulates of one image
    measure(Request(["metala_vit_tiny", "deit_tiny_patch16_224"], [224, 512]), "FOLDER")["rows"]

`count` and `count_models` are what tools/flops.py calls, `measure` is tools/throughput.py; `matrix_products`, `replay`
and `interleaved` are the floor and the clock of tools/bench_model.py. Pictures need matplotlib (the extra "train").
"""

from .flops import Cost, ModuleCost, count
from .flops_report import count_models
from .products import Product, matrix_products, replay
from .steps import Cell, create, make_step
from .throughput import Request, measure
from .timing import Spread, interleaved

__all__ = [
    "Cell",
    "Cost",
    "ModuleCost",
    "Product",
    "Request",
    "Spread",
    "count",
    "count_models",
    "create",
    "interleaved",
    "make_step",
    "matrix_products",
    "measure",
    "replay",
]
