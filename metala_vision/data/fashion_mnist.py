"""Fashion-MNIST: 70 000 grey images of 28x28, ten kinds of clothing."""

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS
from torchvision import datasets as tv_datasets

from metala_vision.errors import InputError

from .base import LabelledImages, check_holdout, check_split
from .splits import stratified_split, stratified_subset

# Where Debian's package dataset-fashion-mnist puts the four files.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


@DATASETS.register_module()
class FashionMNIST(LabelledImages):
    """Train (55 000) and val (5 000) are a stratified split of the training images; test is the test set (10 000).

    Args:
        root: folder that holds `FashionMNIST/raw`, torchvision's layout; filled from Debian's package or the network.
        split: "train", "val" or "test".
        transform: see `LabelledImages`.
        holdout: share of the 60 000 training images that is val. 0 trains on all of them: val is then the test set, and
            nothing may be chosen by it.
        subset: keep about this many images of the split, in the same class proportions.
        download: fetch the files where they are missing and the Debian package is not installed.

    Raises:
        InputError: no data, with the ways to get it; a holdout outside [0, 0.5); a subset larger than the split.
    """

    def __init__(
        self,
        root: str,
        split: str,
        transform: dict | None = None,
        holdout: float = 1 / 12,
        subset: int | None = None,
        download: bool = True,
    ):
        check_split(split)
        check_holdout(holdout)
        held_out = split == "test" or (split == "val" and holdout == 0)
        source = _open(Path(root), train=not held_out, download=download)
        images, labels = source.data.numpy(), source.targets.numpy()
        if not held_out:
            train, val = stratified_split(labels, (1 - holdout, holdout))
            chosen = train if split == "train" else val
            images, labels = images[chosen], labels[chosen]
        if subset is not None:
            if not 0 < subset <= len(labels):
                raise InputError(
                    f"subset: got {subset!r}, expected 1 to {len(labels)}, the images of the {split} split"
                )
            chosen = stratified_subset(labels, subset)
            images, labels = images[chosen], labels[chosen]
        self.images = images[..., None]
        super().__init__(split, source.classes, labels, transform)

    def load(self, index: int) -> np.ndarray:
        return self.images[index]


def _open(root: Path, train: bool, download: bool) -> tv_datasets.FashionMNIST:
    raw = root / "FashionMNIST" / "raw"
    missing = [name for name in FILES if not (raw / name).is_file()]
    if missing and all((DEBIAN_FOLDER / f"{name}.gz").is_file() for name in missing):
        raw.mkdir(parents=True, exist_ok=True)
        for name in missing:
            _unpack(DEBIAN_FOLDER / f"{name}.gz", raw / name)
        missing = []
    try:
        return tv_datasets.FashionMNIST(str(root), train=train, download=bool(missing) and download)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"--data-root (root): no Fashion-MNIST in {raw} ({error}). With a network, leave download=True; "
            f"without one, install Debian's package dataset-fashion-mnist, or put {', '.join(FILES)} there"
        ) from error


def _unpack(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with gzip.open(source, "rb") as packed, open(partial, "wb") as plain:
        shutil.copyfileobj(packed, plain)
    os.replace(partial, target)
