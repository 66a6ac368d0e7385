"""The speed of our data pipelines, beside torchvision's on the same files."""

import zlib
from collections.abc import Callable
from pathlib import Path

import albumentations
import cv2
import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from metala_vision.data import EvalTransform, TrainTransform
from metala_vision.data.image_folder import read_image
from metala_vision.errors import InputError

from .environment import environment
from .speed.timing import interleaved

POLICY = "rand-m9-mstd0.5-inc1-p1.0"  # every drawn operation is applied, as torchvision does


def bench_pipelines(folder: str, images: int = 200, rounds: int = 5, img_size: int = 224) -> dict:
    """Images per second of one thread, file to uint8 tensor [3, img_size, img_size].

    Each round runs every pipeline over all files, in turn; a round before them fills the system's file cache.

    Returns:
        `rows` with pipeline, images per second, spread, and how many times as fast ours of the same kind is; and the
        `environment`.

    Raises:
        InputError: a number below 1, too few JPEG files.
    """
    for option, value in (("--images", images), ("--rounds", rounds), ("--img-size", img_size)):
        if value < 1:
            raise InputError(f"{option}: got {value}, expected at least 1")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:images]
    if len(files) < images:
        raise InputError(f"--folder: {folder} has {len(files)} JPEG files, expected at least {images}; see --images")
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        *_, spreads = interleaved(
            {name: _over(files, pipeline) for name, pipeline in _pipelines(img_size).items()}, rounds
        )
        found = environment()
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    with Image.open(files[0]) as image:
        size = image.size
    rows = [
        {
            "pipeline": name,
            "images_per_second": round(len(files) / spread.median, 1),
            "spread_percent": round(100 * spread.relative_range, 1),
            "speed_of_ours": round(spread.ratio_to(spreads[f"ours, {name.split(', ')[1]}"]), 2),
        }
        for name, spread in spreads.items()
    ]
    return {
        "rows": rows,
        "images": len(files),
        "first_image": f"{size[0]}x{size[1]}",
        "img_size": img_size,
        "rounds": rounds,
        "environment": {
            **found,
            "torchvision": torchvision.__version__,
            "albumentations": albumentations.__version__,
            "pillow": Image.__version__,
        },
    }


def render(result: dict) -> str:
    """The table as text."""
    lines = [
        ", ".join(f"{key} {value}" for key, value in result["environment"].items()),
        f"{result['images']} files, the first of {result['first_image']}, to {result['img_size']} pixels, one thread",
        f"{'pipeline':44} {'images/s':>9} {'spread':>8} {'ours':>7}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['pipeline']:44} {row['images_per_second']:9.1f} {row['spread_percent']:6.1f} % "
            f"{row['speed_of_ours']:6.2f}x"
        )
    return "\n".join(lines)


def _pipelines(size: int) -> dict[str, Callable[[Path], torch.Tensor]]:
    """Functions from file to tensor, by "NAME, KIND"."""
    bicubic = InterpolationMode.BICUBIC
    evaluation = [v2.Resize(round(size / 0.875), bicubic), v2.CenterCrop(size)]
    crop = [v2.RandomResizedCrop(size, interpolation=bicubic), v2.RandomHorizontalFlip()]
    pillow_recipe = [*crop, v2.RandAugment(interpolation=bicubic)]
    tensor_recipe = [*crop, v2.RandAugment(interpolation=InterpolationMode.BILINEAR)]  # on tensors it takes no bicubic
    erase = [v2.RandomErasing(0.25)]
    return {
        "ours, evaluation": _ours(EvalTransform(size)),
        "torchvision v2 on Pillow images, evaluation": _pillow([*evaluation, v2.PILToTensor()]),
        "torchvision v2 on tensors, evaluation": _pillow([v2.PILToTensor(), *evaluation]),
        "ours, crop and flip": _ours(TrainTransform(size)),
        "torchvision v2 on Pillow images, crop and flip": _pillow([*crop, v2.PILToTensor()]),
        "torchvision v2 on tensors, crop and flip": _pillow([v2.PILToTensor(), *crop]),
        "ours, RandAugment and erasing": _ours(TrainTransform(size, rand_augment=POLICY, erasing=0.25)),
        "torchvision v2 on Pillow images, RandAugment and erasing": _pillow([*pillow_recipe, v2.PILToTensor(), *erase]),
        "torchvision v2 on tensors, RandAugment and erasing": _pillow([v2.PILToTensor(), *tensor_recipe, *erase]),
        "ours, strength medium": _ours(TrainTransform(size, strength="medium")),
        "ours, strength strong": _ours(TrainTransform(size, strength="strong")),
    }


def _ours(transform: Callable) -> Callable[[Path], torch.Tensor]:
    def run(path: Path) -> torch.Tensor:
        pixels = transform(read_image(path, channels=3), zlib.crc32(str(path).encode()))
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))

    return run


def _pillow(transforms: list) -> Callable[[Path], torch.Tensor]:
    transform = v2.Compose(transforms)

    def run(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            return transform(image.convert("RGB"))

    return run


def _over(files: list[Path], pipeline: Callable[[Path], torch.Tensor]) -> Callable[[], None]:
    def run() -> None:
        for path in files:
            pipeline(path)

    return run
