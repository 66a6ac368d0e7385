"""Models side by side on photographs: what their mixers look at, how far they remember, what a feature sees."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from metala_vision.description import read_described
from metala_vision.errors import InputError
from metala_vision.models.described import described_model
from metala_vision.profiling.speed.steps import check_models, split_arguments

from .maps import BlockMap, attention_rows, blocks_of
from .memory import half_lives, reach, receptive_field


class Shown(NamedTuple):
    """A model, and the images that it gets."""

    name: str
    model: nn.Module
    size: tuple[int, int]  # of the images
    mean: Tensor  # [chans, 1, 1]
    std: Tensor
    trained: bool


class Findings(NamedTuple):
    """What was found of a model."""

    name: str
    trained: bool
    maps: list[BlockMap]  # of the first picture
    half_lives: list[dict]  # on the first picture
    field: Tensor  # of the first query, over all pictures


def load(text: str, img_size: int | tuple[int, int] | None) -> Shown:
    """A model by its name, with random weights, or by the checkpoint of a run.

    Args:
        text: "metala_vit_tiny:mixer=softmax", or a file that tools/train.py has written.
        img_size: of the images; None is the size of the training, or the nominal one.

    Raises:
        InputError: no such model or file, or a checkpoint that does not say what it is of.
    """
    described: dict[str, Any] = {}
    is_file = Path(text).is_file() or Path(text).suffix in (".pth", ".pt", ".tar", ".ckpt")
    try:
        if is_file:
            checkpoint, described = read_described(text, ("classification",), "a classifier's")
            model = described_model(described, dict(checkpoint.get("state_dict_ema") or checkpoint["state_dict"]))
        else:
            check_models([text], "model")
            name, arguments = split_arguments(text, "model")
            model = timm.create_model(name, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:  # a model or a mixer that this process does not know, too
        raise InputError(f"model: {text}: {error}") from error
    blocks_of(model)
    known = {**getattr(model, "pretrained_cfg", {}), **{key: value for key, value in described.items() if value}}
    nominal: Any = getattr(getattr(model, "patch_embed", None), "img_size", None)
    size = img_size or (nominal if nominal and not described else tuple(known["input_size"][1:]))
    mean, std = (torch.tensor(known[key]).view(-1, 1, 1) for key in ("mean", "std"))
    size = size if isinstance(size, tuple) else (size, size)
    chans = getattr(model, "in_chans", len(mean))
    if chans != len(mean):  # a name with other channels than those of its cfg
        mean, std = (x.mean().expand(chans, 1, 1) for x in (mean, std))
    return Shown(text, model.eval(), size, mean, std, bool(described))


def prepared(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[height, width, chans] uint8 -> the largest central part of another shape, resized to `size`."""
    height, width = pixels.shape[:2]
    share = min(height / size[0], width / size[1])
    box_height, box_width = size[0] * share, size[1] * share
    top, left = (height - box_height) / 2, (width - box_width) / 2
    grey = pixels.shape[2] == 1
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    box = (left, top, left + box_width, top + box_height)
    resized = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC, box=box))
    return resized[..., None] if grey else resized


def examine(
    shown: Shown,
    pictures: Sequence[np.ndarray],
    blocks: Sequence[int] | None,
    queries: Sequence[tuple[float, float]],
) -> Findings:
    """Maps and memories on the first picture, and the receptive field of the first query over all of them.

    Args:
        shown: the model.
        pictures: [height, width, chans] uint8.
        blocks: whose maps are wanted; None is the first, one in the middle and the last.
        queries: places as shares of height and width.

    Raises:
        InputError: blocks or places that are not there.
    """
    if blocks is None:
        depth = len(blocks_of(shown.model))
        blocks = sorted({0, depth // 2, depth - 1})
    images = torch.stack([normalised(prepared(pixels, shown.size), shown) for pixels in pictures])
    return Findings(
        name=shown.name,
        trained=shown.trained,
        maps=attention_rows(shown.model, images[:1], blocks, queries),
        half_lives=half_lives(shown.model, images[:1]),
        field=receptive_field(shown.model, images, queries[0]),
    )


def normalised(pixels: np.ndarray, shown: Shown) -> Tensor:
    """[height, width, chans] uint8 -> what the model takes, [chans, height, width]."""
    image = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)
    return (image - shown.mean) / shown.std


def summary(findings: Findings) -> dict:
    """The numbers of a model as plain values."""
    return dict(
        model=findings.name,
        trained=findings.trained,
        half_lives=findings.half_lives,
        reach={share: round(part, 4) for share, part in reach(findings.field).items()},
    )


def render(all_findings: Sequence[Findings]) -> str:
    """What was found as a few lines to read."""
    lines = []
    for found in all_findings:
        lines.append(f"{found.name}{'' if found.trained else ' (random weights)'}")
        half, most = (f"{100 * part:.2g} %" for part in reach(found.field).values())
        lines.append(f"  half of a token's gradient comes from {half} of the pixels, nine tenths from {most}")
        for block in sorted({row["block"] for row in found.half_lives}):
            heads = [row for row in found.half_lives if row["block"] == block]
            texts = [f"{row['tokens']:.0f} ({row['low']:.0f} to {row['high']:.0f})" for row in heads]
            lines.append(f"  block {block}, {heads[0]['mixer']}: half-life in tokens by head {', '.join(texts)}")
    return "\n".join(lines)
