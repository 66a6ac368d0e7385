"""What is timed: a timm model by name at any image size, and one step of inference or training with it."""

import ast
import types
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

import timm
import torch
from torch import nn
from torch.nn import functional as F

from metala_vision.errors import InputError, near_matches

from .attention import attention

DTYPES = ("float32", "bfloat16", "float16")
MODES = ("infer", "train")


class Cell(NamedTuple):
    """One comparison: square images of `size` pixels."""

    size: int
    batch: int
    dtype: str  # "float32", or "bfloat16" or "float16" by autocast
    mode: str  # "infer" or "train"


def check_models(names: Iterable[str], option: str = "--models") -> None:
    """Raises InputError for a name that timm does not know; the message has near matches and the option it came by."""
    for text in names:
        name, _ = split_arguments(text, option)
        if not timm.is_model(name):
            raise InputError(f"{option}: unknown model {name!r}{near_matches(name, timm.list_models())}")
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:  # the name has a tag that timm does not know
            raise InputError(f"{option}: {name!r}: {error}") from error


def split_arguments(text: str, option: str = "--models") -> tuple[str, dict[str, Any]]:
    """ "vit_tiny_patch16_224:embed_dim=128,depth=6" -> the name and the arguments of `timm.create_model`.

    Values are Python's numbers, True, False and None, and anything else is a string.

    Raises:
        InputError: an argument without a value; the message names `option`.
    """
    name, _, rest = text.partition(":")
    arguments: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, given, value = part.partition("=")
        if not given or not key.isidentifier():
            raise InputError(f"{option}: got {part!r} in {text!r}, expected NAME:ARGUMENT=VALUE,ARGUMENT=VALUE")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return name, arguments


def create(name: str, size: int | tuple[int, int], device: str = "cpu") -> nn.Module:
    """A timm model for images of `size`; softmax ViTs get their position embedding resized to it.

    Args:
        name: of the model, with arguments if it has any, see `split_arguments`.
        size: side of the images in pixels, or height and width.
        device: where its weights are.

    Raises:
        InputError: no such model, or an argument that it does not take.
    """
    check_models([name])
    model, arguments = split_arguments(name)
    with torch.device(device):
        try:
            return timm.create_model(model, img_size=size, **arguments)
        except TypeError:  # a convolutional model: it has no nominal size
            try:
                return timm.create_model(model, **arguments)
            except TypeError as error:
                raise InputError(f"{name}: {error}") from error


def channels(model: nn.Module) -> int:
    """Channels of the images that a timm model takes."""
    return getattr(model, "in_chans", None) or getattr(model, "pretrained_cfg", {}).get("input_size", (3,))[0]


class _Compiled(nn.Module):
    def __init__(self, model: nn.Module, forward: Callable, options: dict[str, Any]):
        super().__init__()
        self.model = model
        self.in_chans = channels(model)
        self._run = torch.compile(forward, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x)


def compiled(model: nn.Module, sdpa: str = "default", **options: Any) -> nn.Module:
    """torch.compile of a model with its softmax attention, apart from every other compiled model in this process.

    `options` are those of torch.compile.

    Dynamo keeps compiled code by code object. It does not look at the attention that was asked for, and after eight
    versions it compiles no more and says nothing: models of one class would share code, or run uncompiled.
    """
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True

    def forward(x: torch.Tensor) -> torch.Tensor:
        with attention(sdpa):
            return model(x)

    own = forward.__code__.replace(co_name=f"forward_{id(model)}")
    return _Compiled(model, types.FunctionType(own, globals(), own.co_name, None, forward.__closure__), options)


def compiled_module(model: nn.Module, **options: Any) -> nn.Module:
    """torch.compile of a model, which returns a module although its type hints promise only a function."""
    module: Any = torch.compile(model, **options)
    return module


def make_step(
    model: nn.Module, cell: Cell, no_gradients: type = torch.inference_mode, sdpa: str = "default"
) -> Callable[[], object]:
    """One forward pass under `no_gradients`, or one training step with AdamW, of a cell, on the model's device."""
    device = next(model.parameters()).device
    x = torch.randn(cell.batch, channels(model), cell.size, cell.size, device=device)

    def contexts() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(attention(sdpa))
        if cell.dtype != "float32":
            stack.enter_context(torch.autocast(device.type, getattr(torch, cell.dtype)))
        return stack

    if cell.mode == "infer":

        def infer() -> None:
            with no_gradients(), contexts():
                model(x)

        return infer
    target = torch.zeros(cell.batch, dtype=torch.long, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    # From 1: the usual 65536 overflows in the first steps, which then skip the optimizer
    scaler = torch.amp.GradScaler(device.type, init_scale=1.0, enabled=cell.dtype == "float16")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes its moments, so that the first step takes what every step takes
    optimizer.zero_grad()

    def train() -> None:
        with contexts():
            loss = F.cross_entropy(model(x), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return train


# Classes whose blocks all work on the patches of `patch_embed`, and the embeddings that are those patches.
_PATCHES = ("Beit", "Cait", "Eva", "MetaLAViT", "VisionTransformer", "VisionTransformerDistilled", "Xcit")
_EMBEDDINGS = ("PatchEmbed", "ConvPatchEmbed")
_PADDED = ("MetaLAViT", "Xcit")  # the others leave out what is no whole patch


def tokens(model: Any, size: int) -> int | None:  # timm's models share attributes, but no class
    """Patches of an image of `size` that every block of a ViT works on, or None for a model that is no ViT."""
    if type(model).__name__ not in _PATCHES or type(model.patch_embed).__name__ not in _EMBEDDINGS:
        return None
    patch = model.patch_embed.patch_size
    height, width = (patch, patch) if isinstance(patch, int) else patch
    if type(model).__name__ in _PADDED:
        return -(-size // height) * -(-size // width)
    return size // height * (size // width)
