"""Images that the ranges of an int8 file are fitted to."""

import random
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from metala_vision.errors import InputError

COUNT = 64


def check_calibration(images: Sequence[Tensor], shape: Sequence[int], any_size: bool) -> list[Tensor]:
    """Prepared images as quantization takes them.

    Args:
        images: each [1, C, H, W].
        shape: [B, C, H, W] of the export.
        any_size: whether height and width are left open.

    Raises:
        InputError: none, or one of another shape.
    """
    wanted = f"[1, {shape[1]}, height, width]" if any_size else str([1, *shape[1:]])
    if not images:
        raise InputError(f"calibration: got no images, expected some of {wanted}")
    for image in images:
        seen = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        fits = isinstance(image, Tensor) and image.ndim == 4 and seen[:2] == [1, shape[1]]
        if not fits or not (any_size or seen[2:] == list(shape[2:])):
            raise InputError(f"calibration: got an image {seen}, expected {wanted}")
    return [image.detach().float().cpu() for image in images]


def calibration_images(folder: str | Path, described: dict, sides: Sequence[int]) -> list[Tensor]:
    """Some images of a folder, at any depth, prepared as the model's test prepares them: each [1, C, H, W].

    Args:
        folder: with images, of which at most `COUNT` are drawn, always the same ones.
        described: by the model, see `metala_vision.description`.
        sides: height and width that they get.

    Raises:
        InputError: no such folder, no images in it, one that cannot be read, or a model that does not say how its
            images are prepared.
    """
    # Here alone: they take mmengine and albumentations along, which other files do without.
    from metala_vision.data import UnreadableImageError
    from metala_vision.data.folder_index import all_images
    from metala_vision.data.image_folder import read_image
    from metala_vision.data.preparation import Preparation

    if not Path(folder).is_dir():
        raise InputError(f"calibration: no folder {folder}")
    if not described.get("mean") or described["input_size"][0] not in (1, 3):
        raise InputError("calibration: the model does not say how its images are prepared; give prepared ones instead")
    paths = all_images(Path(folder))
    if not paths:
        raise InputError(f"calibration: {folder} has no images")
    prepare = Preparation(described, tuple(sides))
    chosen = random.Random(0).sample(paths, min(COUNT, len(paths)))
    try:
        return [prepare(read_image(path, described["input_size"][0]))[None] for path in chosen]
    except UnreadableImageError as error:
        raise InputError(f"calibration: {error}") from error
