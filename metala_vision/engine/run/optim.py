"""Optimiser groups by timm, and mixed precision on any device."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from metala_vision.engine.tasks.base import task_of
from metala_vision.errors import InputError, near_matches

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TimmOptimConstructor:
    """timm's parameter groups: no weight decay for one-dimensional parameters and the model's own exceptions.

    Args:
        optim_wrapper_cfg: type (default "OptimWrapper") and arguments of the wrapper, with `optimizer`: one of torch's
            by its class, such as "AdamW", or of timm's by its name, such as "lamb" or "adan".
        paramwise_cfg: dict(layer_decay=0.75) for rates that shrink by this factor from one layer to the one before it,
            by the model's `group_matcher`.

    Raises:
        InputError: another key in paramwise_cfg, a decay out of range, an unknown optimiser, or arguments that it does
            not take.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        options = dict(paramwise_cfg or {})
        self.layer_decay = options.pop("layer_decay", None)
        if options:
            raise InputError(f"optim_wrapper.paramwise_cfg: got {', '.join(options)}, expected layer_decay alone")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise InputError(
                f"optim_wrapper.paramwise_cfg: layer_decay is {self.layer_decay!r}, expected a number in (0, 1]"
            )
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))

    def __call__(self, model: nn.Module) -> OptimWrapper:
        task = task_of(model)
        trunk = task.trunk
        no_decay = trunk.no_weight_decay() if hasattr(trunk, "no_weight_decay") else ()
        weight_decay = self.optimizer.get("weight_decay", self._default("weight_decay"))
        if self.layer_decay is None:
            groups = param_groups_weight_decay(trunk, weight_decay, no_weight_decay_list=no_decay)
        else:
            groups = param_groups_layer_decay(
                trunk, weight_decay, no_weight_decay_list=no_decay, layer_decay=self.layer_decay
            )
            for group in groups:
                group["lr"] = self.optimizer["lr"] * group["lr_scale"]
        own = {id(p) for p in trunk.parameters()}
        rest = {name: p for name, p in task.net.named_parameters() if id(p) not in own and p.requires_grad}
        for decays in (False, True):  # the parts on top of the trunk have the full rate
            some = [p for p in rest.values() if (p.ndim > 1) == decays]
            if some:
                groups.append(dict(params=some, weight_decay=weight_decay if decays else 0.0))
        optimizer = self._build(groups)
        return OPTIM_WRAPPERS.build(dict(dict(type="OptimWrapper"), **self.wrapper, optimizer=optimizer))

    def _default(self, argument: str) -> float:
        """The optimiser's default for an argument; 0 for timm's optimisers, which take no weight decay unless told."""
        kind = OPTIMIZERS.get(self.optimizer["type"])
        found = inspect.signature(kind).parameters.get(argument) if kind else None
        return 0.0 if found is None else found.default

    def _build(self, groups: list[dict]) -> torch.optim.Optimizer:
        options = dict(self.optimizer)
        kind = options.pop("type")
        if OPTIMIZERS.get(kind) is not None:
            return OPTIMIZERS.build(dict(options, type=kind, params=groups))
        if kind not in list_optimizers():
            known = [*OPTIMIZERS.module_dict, *list_optimizers()]
            raise InputError(f"optim_wrapper.optimizer: unknown type {kind!r}{near_matches(str(kind), known)}")
        try:
            return create_optimizer_v2(groups, opt=kind, **options)
        except (TypeError, ValueError, IndexError, ImportError, AssertionError) as error:
            raise InputError(f"optim_wrapper.optimizer: {kind}: {error}") from error


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Autocast of the forward pass on the device of the parameters, CPU included; with float16 the loss is scaled.

    mmengine's AmpOptimWrapper does the same on GPUs only.

    Args:
        dtype: "bfloat16" or "float16".

    Raises:
        InputError: another dtype.
    """

    def __init__(self, dtype: str = "bfloat16", **kwargs):
        super().__init__(**kwargs)
        if dtype not in DTYPES:
            raise InputError(f"dtype: got {dtype!r}, expected one of {tuple(DTYPES)}")
        self.dtype = DTYPES[dtype]
        self.device_type = self.optimizer.param_groups[0]["params"][0].device.type
        self.loss_scaler = torch.amp.GradScaler(self.device_type, enabled=dtype == "float16")

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(self.device_type, self.dtype):
            yield

    def backward(self, loss: torch.Tensor, **kwargs) -> None:
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs) -> None:
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "loss_scaler": self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        state_dict = dict(state_dict)
        self.loss_scaler.load_state_dict(state_dict.pop("loss_scaler", {}))
        super().load_state_dict(state_dict)


def highest_rate(wrapper: OptimWrapper) -> float:
    """The highest rate of all parameter groups: that of the parameters without a lower rate of their own."""
    return max(group["lr"] for group in wrapper.optimizer.param_groups)
