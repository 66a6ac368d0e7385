"""A classification task out of a few photographs: which of them does a grey crop come from?

It has images of real pixels, with sides of more than 64, and needs no download. Training and test crops come from
different parts of a photograph, so that nothing but texture and structure can be learned.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from metala_vision.errors import InputError

# Photographs of scikit-image and scikit-learn, all wide enough for crops of 128 pixels on both sides of the cut.
SKIMAGE = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg"),
    "rocket.jpg",
)
SKLEARN = ("china.jpg", "flower.jpg")


def library_photos() -> dict[str, np.ndarray]:
    """The 17 photographs that scikit-image and scikit-learn bring along, as grey uint8 [height, width].

    Raises:
        InputError: scikit-image is not installed.
    """
    try:
        import skimage
    except ImportError as error:
        raise InputError("photographs: they are those of scikit-image; pip install scikit-image") from error
    import sklearn

    folders = [
        (Path(skimage.__file__).parent / "data", SKIMAGE),
        (Path(sklearn.__file__).parent / "datasets/images", SKLEARN),
    ]
    photos = {}
    for folder, names in folders:
        for name in names:
            with Image.open(folder / name) as image:
                photos[Path(name).stem] = np.asarray(image.convert("L"))
    return photos


def write_photo_crops(
    photos: Mapping[str, np.ndarray],
    out: str | Path,
    size: int = 128,
    train: int = 200,
    val: int = 60,
    train_share: float = 0.65,
    seed: int = 0,
) -> dict[str, int]:
    """Writes out/{train,val}/PHOTO/NUMBER.png, for `ImageFolder`.

    Args:
        photos: grey uint8 [height, width] by name.
        out: a folder that does not exist yet.
        size: side of a crop.
        train: crops of each photograph, from its left part.
        val: crops of each photograph, from the rest.
        train_share: share of the columns that makes up the left part.
        seed: seed of the positions of the crops.

    Returns:
        How many crops each split has.

    Raises:
        InputError: `out` exists, or a photograph is too small.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"--out: {out} exists already; name another folder or remove it")
    for name, photo in photos.items():
        narrow = min(int(photo.shape[1] * train_share), photo.shape[1] - int(photo.shape[1] * train_share))
        if min(narrow, photo.shape[0]) < size:
            raise InputError(f"photographs: {name} is {photo.shape[1]}x{photo.shape[0]}, too small for crops of {size}")
    rng = np.random.default_rng(seed)
    for name, photo in photos.items():
        cut = int(photo.shape[1] * train_share)
        for split, count, left, right in (("train", train, 0, cut), ("val", val, cut, photo.shape[1])):
            folder = out / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                y = rng.integers(0, photo.shape[0] - size + 1)
                x = rng.integers(left, right - size + 1)
                Image.fromarray(photo[y : y + size, x : x + size]).save(folder / f"{i:04}.png")
    return {"train": train * len(photos), "val": val * len(photos)}
