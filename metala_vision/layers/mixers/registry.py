"""Token mixers by name, those of the package and those of its users."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Kind = TypeVar("Kind", bound=Callable[..., nn.Module])

MIXERS: dict[str, Callable[..., nn.Module]] = {}
"""The class of each token mixer by its name; `register_mixer` adds to it."""
# What a model hands to those mixers that have an argument of this name. Another value needs at least one that has it.
SETTINGS: dict[str, Any] = dict(scan="cycle", local_conv=True, self_aug=True, decay_bias=True)


def register_mixer(name: str) -> Callable[[Kind], Kind]:
    """A decorator that makes a class a token mixer: `create_model("metala_vit_tiny", mixer=name)` takes it.

    The class is called with `dim` and `num_heads`, and with those of `scan` (the orders of this block), `causal`,
    `local_conv`, `self_aug`, `decay_bias`, `proj_drop`, `device` and `dtype` that it has arguments for. Its forward
    takes tokens [B, N, C] and the grid (rows, cols) they lie on, and returns tokens. Where it has an attribute
    `nominal_grid`, the model sets it to the grid of the training. What a module of the mixer does not initialise is
    left to its method `reset_parameters`, if it has one.

    Raises:
        ValueError: the name is taken, or is not a string of letters, digits and underscores; a constructor without
            `dim` and `num_heads`, or with **arguments, which do not say what it takes.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name: got {name!r}, expected letters, digits and underscores")

    def register(kind: Kind) -> Kind:
        if MIXERS.get(name, kind) is not kind:
            raise ValueError(f"name: got {name!r}, which is {MIXERS[name]!r} already; expected a name of its own")
        parameters = inspect.signature(kind).parameters
        if not {"dim", "num_heads"} <= set(parameters) or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise ValueError(
                f"{name}: its constructor takes {tuple(parameters)}, expected dim, num_heads, and by their names those "
                f"of the model's settings that it has a use for"
            )
        MIXERS[name] = kind
        return kind

    return register


def mixers_of_blocks(mixer: str | tuple[str, ...] | list[str], depth: int) -> list[str]:
    """The mixers of `depth` blocks: one name for all, or a tuple of names that is repeated.

    Raises:
        ValueError: an unknown name, or no name at all.
    """
    names = [mixer] if isinstance(mixer, str) else list(mixer) if isinstance(mixer, (tuple, list)) else []
    if not names or not all(isinstance(name, str) and name in MIXERS for name in names):
        raise ValueError(f"mixer: got {mixer!r}, expected one of {tuple(MIXERS)}, or a tuple of them to be repeated")
    return [names[i % len(names)] for i in range(depth)]


def check_settings(names: list[str], causal: bool, **settings: Any) -> None:
    """ValueError for a setting that no mixer of a model has, and for a mixer that is not causal in a causal model."""
    for name in names:
        if causal and "causal" not in _arguments(name):
            raise ValueError(f"scan: got 'causal', but the mixer {name!r} has no causal form")
    for setting, value in settings.items():
        if value == SETTINGS[setting] or (setting == "scan" and causal):
            continue
        if not any(setting in _arguments(name) for name in names):
            raise ValueError(
                f"{setting}: got {value!r}, which none of the mixers {tuple(sorted(set(names)))} has; leave it at"
                f" {SETTINGS[setting]!r}"
            )


def build_mixer(name: str, dim: int, num_heads: int, device=None, dtype=None, **settings: Any) -> nn.Module:
    """The mixer of a block, with those of the settings that it has arguments for."""
    known = _arguments(name)
    settings |= {"device": device, "dtype": dtype}
    mixer = MIXERS[name](dim=dim, num_heads=num_heads, **{key: settings[key] for key in settings if key in known})
    return mixer if known >= {"device", "dtype"} else mixer.to(device=device, dtype=dtype)


def _arguments(name: str) -> set[str]:
    return set(inspect.signature(MIXERS[name]).parameters)
