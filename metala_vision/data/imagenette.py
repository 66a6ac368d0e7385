"""Imagenette: ten classes of ImageNet that are easily told apart, real photographs, small enough for a CPU."""

from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS
from torchvision import datasets as tv_datasets

from metala_vision.errors import InputError

from .image_folder import ImageFolder

ARCHIVE = "imagenette2-160"  # what torchvision unpacks at 160 pixels of the short side
CLASSES = {  # by their WordNet ids, which are the names of the folders
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


@DATASETS.register_module()
class Imagenette(ImageFolder):
    """`ImageFolder` on Imagenette, with the names of the classes instead of their WordNet ids.

    Args:
        root: a folder with train/ and val/ in it, or the folder in which torchvision has unpacked its archive, or will.
        split: "train", "val" or "test"; test is the `val` folder.
        transform: see `LabelledImages`.
        holdout: share of `train` that is val. 0 trains on all of it: val is then the `val` folder too, and nothing may
            be chosen by it.
        download: fetch the archive (160 pixels) where `root` holds neither.
        **options: further arguments of `ImageFolder`.

    Raises:
        InputError: no data and no way to get it, or what `ImageFolder` raises.
    """

    def __init__(
        self,
        root: str,
        split: str,
        transform: dict | None = None,
        holdout: float = 0.0,
        download: bool = True,
        **options: Any,
    ):
        folder = Path(root)
        if not (folder / "train").is_dir():
            folder = folder / ARCHIVE
        if not (folder / "train").is_dir():
            try:
                tv_datasets.Imagenette(root, "train", "160px", download=download)
            except (RuntimeError, OSError) as error:
                raise InputError(
                    f"--data-root (root): no Imagenette in {root} ({error}). With a network, leave download=True; "
                    f"without one, unpack {ARCHIVE}.tgz there"
                ) from error
        super().__init__(str(folder), split, transform, holdout, **options)
        self.classes = tuple(CLASSES.get(name, name) for name in self.classes)
