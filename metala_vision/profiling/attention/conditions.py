"""The three conditions of the MetaLA paper, measured for any token mixer (arXiv 2411.10741, section 4).

1. Dynamic memory: what a state forgets depends on the data.
2. Static approximation: with queries, keys and decays chosen freely, the mixer's map comes close to a softmax map.
3. Least parameters: no more of them than the first two need.
"""

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metala_vision.errors import InputError
from metala_vision.kernels import SCAN_ORDERS
from metala_vision.layers.mixers import MIXERS
from metala_vision.layers.mixers.base import TokenMixer
from metala_vision.layers.mixers.inline import InLine, neighbourhoods

COUNTED_DIM, COUNTED_HEADS = 256, 4


class Task(NamedTuple):
    """Random softmax maps, softmax(sharpness * Q K^T / sqrt(key_dim)) of normal Q and K, and how they are fitted."""

    key_dim: int = 16
    side: int = 8  # of a square grid, whose tokens a causal mixer reads one after the other
    maps: int = 8
    steps: int = 800
    sharpness: float = 2.0
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)  # of the fits, the best of which counts for each map
    seed: int = 0


def conditions(names: Sequence[str], task: Task | None = None, told: Callable[[str], None] = print) -> list[dict]:
    """A row for each mixer, with what it was fitted to and how.

    Args:
        names: of `metala_vision.layers.MIXERS`.
        task: the maps, and the steps of the fit.
        told: is handed a line after each fit.

    Returns:
        Rows of `mixer`; `dynamic`, whether its decay depends on the data, None where it has none; `key_dim`, the key
        channels of the head that was fitted; `causal` and `grid`, the relative error of the fit in Frobenius norm, mean
        over the maps, of lower triangular maps and of full ones, None where the mixer has no such form; `parameters`
        of a mixer of COUNTED_DIM channels without its convolution, and `in_dim_squared`, the same over the square of
        the channels.

    Raises:
        InputError: an unknown mixer, one that is no `TokenMixer`, a size that is not positive, or an odd `key_dim`.
    """
    task = task or Task()
    for field in ("key_dim", "side", "maps", "steps", "sharpness"):
        if getattr(task, field) <= 0:
            raise InputError(f"{field} is {getattr(task, field)}, expected more than 0")
    if task.key_dim % 2:
        raise InputError(f"key_dim is {task.key_dim}, expected an even number: some mixers rotate pairs of channels")
    unknown = [name for name in names if name not in MIXERS]
    if unknown:
        raise InputError(f"mixers: got {', '.join(unknown)}, expected some of {', '.join(MIXERS)}")
    kinds: dict[str, Any] = {name: MIXERS[name] for name in names}
    others = [name for name, kind in kinds.items() if not (isinstance(kind, type) and issubclass(kind, TokenMixer))]
    if others:
        raise InputError(f"mixers: {', '.join(others)} is no TokenMixer, whose projection and map of values are fitted")
    rows: list[dict] = []
    started = time.monotonic()
    for name, kind in kinds.items():
        counted = kind(COUNTED_DIM, COUNTED_HEADS, local_conv=False)
        parameters = sum(p.numel() for p in counted.parameters())
        row: dict[str, Any] = dict(
            mixer=name, dynamic=is_dynamic(counted), key_dim=_key_dim(_of_key_dim(name, task, False))
        )
        row["causal"] = approximation(name, task, causal=True) if _takes(kind, "causal") else None
        row["grid"] = approximation(name, task, causal=False)
        row.update(parameters=parameters, in_dim_squared=parameters / COUNTED_DIM**2)
        rows.append(row)
        left = (time.monotonic() - started) / len(rows) * (len(kinds) - len(rows))
        told(f"{name}: {_text(row['causal'])} on a sequence, {_text(row['grid'])} on a grid; {left:.0f} s left")
    return rows


def render(rows: Sequence[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| mixer | decay follows the data | key channels | error, sequence | error, grid | parameters / channels^2 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        dynamic = {None: "has none", True: "yes", False: "no"}[row["dynamic"]]
        errors = f"{_text(row['causal'])} | {_text(row['grid'])}"
        lines.append(f"| {row['mixer']} | {dynamic} | {row['key_dim']} | {errors} | {row['in_dim_squared']:.2f} |")
    return "\n".join(lines)


def _text(error: float | None) -> str:
    return "none" if error is None else f"{error:.3f}"


@torch.no_grad()
def is_dynamic(mixer: Any) -> bool | None:
    """Whether the decays of two random inputs differ; None for a mixer without decay."""
    if not hasattr(mixer, "choose"):
        return None
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, 9, mixer.dim, generator=generator)
    return not torch.equal(mixer.choose(first, (3, 3))[1], mixer.choose(second, (3, 3))[1])


def softmax_maps(task: Task, causal: bool) -> Tensor:
    """[maps, N, N], rows are queries."""
    generator = torch.Generator().manual_seed(task.seed)
    q, k = torch.randn(2, task.maps, task.side**2, task.key_dim, generator=generator)
    logits = task.sharpness * q @ k.transpose(1, 2) * task.key_dim**-0.5
    if causal:
        logits = logits.masked_fill(torch.ones_like(logits[0]).triu(1).bool(), -torch.inf)
    return logits.softmax(-1)


def approximation(name: str, task: Task, causal: bool) -> float:
    """The relative error that is left of softmax maps after Adam has fitted the parts of one head; mean over the maps.

    All that the mixer computes from its input is free: the parts of its projection, token by token, and its own
    parameters. Scans take all four orders of the grid, or one where `causal`.
    """
    target = softmax_maps(task, causal)
    errors = torch.stack([_errors(name, task, causal, target, rate) for rate in task.rates])
    return errors.amin(0).sqrt().mean().item()


def _errors(name: str, task: Task, causal: bool, target: Tensor, rate: float) -> Tensor:
    """The least squared error of each map [maps] on the way of one fit."""
    torch.manual_seed(task.seed)
    tokens = task.side**2
    mixer: Any = _of_key_dim(name, task, causal)
    mixer.in_proj = _Free(task.maps, tokens, sum(mixer.widths))
    if isinstance(mixer, InLine):
        mixer.residual = _OneNeighbourhood(task.maps)  # type: ignore[assignment]
    grid = (1, tokens) if causal else (task.side, task.side)
    x = torch.zeros(task.maps, tokens, mixer.dim)
    heads = mixer.map_of_values(x, grid)[0].shape[2]  # that of HGRN has one for each channel; the first is fitted
    values = torch.eye(tokens).expand(task.maps, heads, -1, -1).transpose(1, 2)  # every token is a channel of its own
    optimiser = torch.optim.Adam(mixer.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, task.steps)
    scale = target.square().sum((1, 2))
    least = torch.full((task.maps,), torch.inf)
    for _ in range(task.steps):
        _, mixed = mixer.map_of_values(x, grid)
        fitted = torch.cat([mixed(part)[:, :, 0] for part in values.split(mixer.value_dim, -1)], -1)
        errors = (fitted - target).square().sum((1, 2)) / scale
        least = torch.minimum(least, errors.detach())
        optimiser.zero_grad()
        errors.sum().backward()
        optimiser.step()
        schedule.step()
    return least


class _Free(nn.Module):
    """Stands in for a mixer's projection: what it returns does not depend on the tokens and is learned."""

    def __init__(self, maps: int, tokens: int, width: int):
        super().__init__()
        # Keys and queries of unit size overshoot the small weights of a map so far that some fits never come back.
        self.parts = nn.Parameter(0.3 * torch.randn(maps, tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts


class _OneNeighbourhood(nn.Module):
    """InLine's residual with nine free weights for each map. The same for all channels, which stand for tokens here."""

    def __init__(self, maps: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(maps, 1, 3, 3))

    def forward(self, v: Tensor, mean: Tensor, grid: tuple[int, int]) -> Tensor:
        return neighbourhoods(v, self.weight.expand(-1, v.shape[2], 3, 3), grid)


def _of_key_dim(name: str, task: Task, causal: bool) -> nn.Module:
    """The mixer with one head of `key_dim` key channels; of a mixer that cannot have them, the narrowest one."""
    kind = MIXERS[name]
    arguments: dict[str, Any] = {"local_conv": False}
    if causal:
        arguments["causal"] = True
    if _takes(kind, "scan"):
        arguments["scan"] = ("row",) if causal else SCAN_ORDERS
    for dim in (task.key_dim, 2 * task.key_dim):
        if _key_dim(mixer := kind(dim, 1, **arguments)) == task.key_dim:
            return mixer
    return kind(2, 1, **arguments)


def _key_dim(mixer: Any) -> int:
    return getattr(mixer, "key_dim", mixer.value_dim)


def _takes(kind: Callable, argument: str) -> bool:
    return argument in inspect.signature(kind).parameters
