"""What predicts: runs' checkpoints, published folders, exported files and models of timm, each with what it says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from metala_vision.dense import load_dense
from metala_vision.dense.loading import BUILDERS
from metala_vision.deploy import model_of
from metala_vision.deploy.runtimes import ENDINGS, torch_threads
from metala_vision.description import description_in
from metala_vision.errors import InputError

from .exported import open_exported

Run = Callable[[Any], Any]


def open_source(
    source: str | Path,
    runtime_name: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    short_side: int | None = None,
    **arguments: Any,
) -> tuple[Run, dict]:
    """Opens what predicts.

    Args:
        source: a checkpoint of a run (its moving average where it has one), a published folder, a file that
            `metala_vision.export` has written, or the name of a model of timm.
        runtime_name: of an exported file, see `metala_vision.deploy.runtime`; None goes by its ending.
        threads: of a run; None is the runtime's own choice.
        device: of a model of torch; files run on "cpu".
        short_side: pixels that a detector resizes the shorter side of an image to; None is the detector's own.
        arguments: of `timm.create_model`, such as `pretrained=True` for a name.

    Returns:
        What runs it, and its description. A classifier or a segmenter takes images [B, C, H, W] and gives logits; a
        detector takes a list of images and gives a list of dicts.

    Raises:
        InputError: none of these, or a runtime for what is no exported file, or a device for what is one.
    """
    path = Path(source)
    if path.is_file() and path.suffix in ENDINGS:
        if arguments:
            raise InputError(f"arguments: got {', '.join(arguments)} for {source}, which is a file of its own")
        if device != "cpu":
            raise InputError(f"device: got {device!r} for {source}, which runs on the CPU; leave it out")
        return open_exported(path, runtime_name, threads, short_side)
    if runtime_name is not None:
        raise InputError(
            f"runtime: got {runtime_name!r} for {source}, expected a file that ends in {' or '.join(ENDINGS)}; "
            f"tools/export.py writes one"
        )
    if path.is_file() and description_in(path).get("task") in BUILDERS:
        if arguments:
            raise InputError(f"arguments: got {', '.join(arguments)} for {source}, which says itself how it is made")
        model, described = load_dense(path)
        if short_side is not None and described["task"] == "detection":
            transform: Any = model.transform
            transform.max_size = round(transform.max_size * short_side / transform.min_size[-1])
            transform.min_size = (short_side,)
    else:
        model, described = model_of(source, **arguments)
        if arguments.get("pretrained") and not described.get("label_names"):
            described = {**described, "label_names": imagenet_names(model)}
    model = model.to(device)

    def run(images: Any) -> Any:
        moved = images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
        with torch.inference_mode(), torch_threads(threads):
            return model(moved)

    return run, described


def imagenet_names(model: nn.Module) -> list[str] | None:
    """Names of the classes of timm's weights for ImageNet and its larger kin; None for others."""
    subset = infer_imagenet_subset(model)
    if not subset:
        return None
    info = ImageNetInfo(subset)
    return [info.index_to_description(i) for i in range(info.num_classes())]
