"""What a whole model computes for one image: multiply-accumulates by fvcore, and counted in two other ways.

An operator that is neither counted nor free by the convention of `handles` is an error and never a silent zero.
"""

import copy
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metala_vision.errors import InputError
from metala_vision.profiling.speed.steps import channels

from .formulas import Formula, formula
from .handles import ACTIVATIONS, CHUNKWISE, FREE, NOT_PRODUCTS, NOTES, RECURRENT, JitModelAnalysis, counting_handles

# Names of the modules that mix tokens and channels, side by side in a block, in our models and in timm's.
MIXERS = ("attn", "mixer", "token_mixer", "local_mp", "context_module", "conv_dw", "mlp_tokens")
CHANNEL_MIXERS = ("mlp", "ffn", "channel_mixer", "local_module", "mlp_channels")


class ModuleCost(NamedTuple):
    """One module with all that is in it, for one image."""

    name: str  # "" is the model
    type: str
    parameters: int
    macs: int
    activations: int


class Cost(NamedTuple):
    """What one image costs. MACs are multiply-accumulates; activations the elements that products and operators write.

    `products` are the MACs without norms, pooling and upsampling. `chunkwise` is `macs` with each scan counted in
    chunks instead of by its recurrence. `torch` is half of what torch's FlopCounterMode counts, and should equal
    `products`. `formula` is the count by hand, for the architectures that have one: its `products` and `macs` should
    equal those here. `mixer` and `channel_mixer` are None where no name of a module tells which is which; all of it is
    `rest` then.
    """

    parameters: int
    macs: int
    mixer: int | None
    channel_mixer: int | None
    rest: int
    activations: int
    products: int
    chunkwise: int
    torch: int
    formula: Formula | None
    operators: dict[str, int]
    modules: list[ModuleCost]


def count(model: nn.Module, size: int | tuple[int, int], allow: Collection[str] = ()) -> Cost:
    """Counts a model on one image of `size`, a side or (height, width) in pixels.

    A copy of the model runs once, on its device, in evaluation mode; softmax attention costs the same fused or not.

    Args:
        allow: operators by name ("aten::fft_rfft2") that may count nothing.

    Raises:
        InputError: an operator that is neither counted, nor free by convention, nor allowed.
    """
    height, width = (size, size) if isinstance(size, int) else size
    first = next(model.parameters())
    image = torch.zeros(1, channels(model), height, width, device=first.device, dtype=first.dtype)
    model = copy.deepcopy(model).eval()  # since a trace that fails leaves its hooks behind
    analysis = JitModelAnalysis(model, (image,)).set_op_handle(**counting_handles())
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad():
        counts = analysis.by_module_and_operator()
        uncounted = set(analysis.unsupported_ops()) - set(allow)
        torch_macs = _by_torch(model, image)
    unknown = sorted(name for name in uncounted if name.removesuffix("_") not in FREE)
    if unknown:
        raise InputError(
            f"{type(model).__name__} has operators that are not counted: {', '.join(unknown)}; "
            f"if they cost nothing that matters, allow them by name (--allow {' '.join(unknown)})"
        )
    operators = {name: int(number) for name, number in counts[""].items() if name not in NOTES}
    macs = sum(operators.values())
    mixer, channel_mixer = _role(counts, MIXERS, CHANNEL_MIXERS), _role(counts, CHANNEL_MIXERS, MIXERS)
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        macs=macs,
        mixer=mixer,
        channel_mixer=channel_mixer,
        rest=macs - (mixer or 0) - (channel_mixer or 0),
        activations=int(counts[""][ACTIVATIONS]),
        products=macs - sum(operators.get(name, 0) for name in NOT_PRODUCTS),
        chunkwise=macs + int(counts[""][CHUNKWISE] - counts[""][RECURRENT]),
        torch=torch_macs,
        formula=formula(model, (height, width)),
        operators=operators,
        modules=[
            ModuleCost(
                name,
                type(module).__name__,
                sum(p.numel() for p in module.parameters()),
                _macs(counts[name]),
                int(counts[name][ACTIVATIONS]),
            )
            for name, module in model.named_modules()
            if name in counts
        ],
    )


def _by_torch(model: nn.Module, image: torch.Tensor) -> int:
    """MACs by FlopCounterMode, with the model moved to the meta device: it does not count a CPU's softmax attention.

    For our own operators it gives what fvcore gives, since both take their counts from `kernels.flops`.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.to("meta")(image.to("meta"))
    return counter.get_total_flops() // 2


def _macs(counter: Counter) -> int:
    return int(sum(number for name, number in counter.items() if name not in NOTES))


def _role(counts: dict[str, Counter], names: tuple[str, ...], others: tuple[str, ...]) -> int | None:
    """MACs of the outermost modules of these names that have one of the other names beside them; None if none."""
    beside = {path.rpartition(".")[0] for path in counts if path.rpartition(".")[2] in others}
    found = [path for path in counts if path.rpartition(".")[2] in names and path.rpartition(".")[0] in beside]
    if not found:
        return None
    return sum(_macs(counts[path]) for path in found if not any(path.startswith(f"{other}.") for other in found))
