"""Boxes in VOC's form: an XML file beside each image."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from mmengine.registry import DATASETS

from metala_vision.errors import InputError, near_matches

from .base import check_split
from .boxes import BoxDataset, Objects, Troubles, sound_boxes
from .image_folder import SUFFIXES, read_image


@DATASETS.register_module()
class VOCDetection(BoxDataset):
    """`root/JPEGImages`, `root/Annotations` and the names of a split in a text file.

    Args:
        root: the folder.
        split: "train", "val" or "test".
        classes: their names; objects of others are an error.
        transform: see `BoxDataset`.
        names: the text file with a name a line, with {split}; None looks for `{split}.txt` and
            `ImageSets/Main/{split}.txt`.
        difficult: "ignore" neither trains on difficult objects nor counts them: in evaluation each is what COCO calls a
            crowd, in which any detection is forgiven. "use" takes them as all others.
        one_based: whether pixels are counted from 1 and the last one belongs to the box, as VOC has it; False for files
            of tools that write corners as they are.
        max_share: of annotation files that may be unreadable or missing: their images are left out.

    Raises:
        InputError: a missing folder or file, an unknown class, or too many broken annotations.
    """

    def __init__(
        self,
        root: str,
        split: str,
        classes: Sequence[str],
        transform: dict | None = None,
        names: str | None = None,
        difficult: str = "ignore",
        one_based: bool = True,
        max_share: float = 0.01,
    ):
        check_split(split)
        if difficult not in ("ignore", "use"):
            raise InputError(f"difficult: got {difficult!r}, expected 'ignore' or 'use'")
        if len(set(classes)) < len(classes) or not classes:
            raise InputError(f"classes: got {tuple(classes)}, expected names, none twice")
        folder = Path(root)
        for part in ("JPEGImages", "Annotations"):
            if not (folder / part).is_dir():
                raise InputError(f"root: no folder {folder / part}; expected VOC's JPEGImages and Annotations there")
        self.paths, found, troubles, broken = [], [], Troubles(), []
        listed = _names(folder, split, names)
        for name in listed:
            file = folder / "Annotations" / f"{name}.xml"
            try:
                objects = _read(file, classes, difficult == "ignore", one_based, troubles)
            except (OSError, ElementTree.ParseError, _BrokenError) as error:
                broken.append(f"{file}: {error}")
                troubles.add("annotation files that cannot be read, their images left out", str(file))
                continue
            found.append(objects)
            self.paths.append(_image(folder, name))
        if len(broken) > max_share * len(listed):
            raise InputError(
                f"root: {len(broken)} of the {len(listed)} annotation files of the {split} split cannot be read, more "
                f"than max_share={max_share:g}; the first: {broken[0]}"
            )
        super().__init__(split, classes, [path.stem for path in self.paths], found, transform, troubles)

    def load(self, index: int) -> np.ndarray:
        return read_image(self.paths[index], 3)


class _BrokenError(Exception):
    """An annotation that is XML and no annotation."""


def _names(folder: Path, split: str, names: str | None) -> list[str]:
    places = [names.format(split=split)] if names else [f"{split}.txt", f"ImageSets/Main/{split}.txt"]
    for place in places:
        file = folder / place
        if file.is_file():
            listed = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
            if not listed:
                raise InputError(f"names: {file} names no image")
            return listed
    raise InputError(f"names: no file {' or '.join(str(folder / place) for place in places)} for the {split} split")


def _image(folder: Path, name: str) -> Path:
    """The image of a name; a missing one is met, and counted, when it is read."""
    for suffix in SUFFIXES:
        for path in (folder / "JPEGImages" / f"{name}{suffix}", folder / "JPEGImages" / f"{name}{suffix.upper()}"):
            if path.is_file():
                return path
    return folder / "JPEGImages" / f"{name}.jpg"


def _read(file: Path, classes: Sequence[str], ignore: bool, one_based: bool, troubles: Troubles) -> Objects:
    root = ElementTree.parse(file).getroot()
    boxes, labels, crowd = [], [], []
    for element in root.iter("object"):
        name = (element.findtext("name") or "").strip()
        if name not in classes:
            raise InputError(f"classes: {file} has an object {name!r}, none of them{near_matches(name, classes)}")
        try:
            boxes.append([float(element.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")])
        except (TypeError, ValueError) as error:
            raise _BrokenError(f"an object without a whole bndbox ({error})") from error
        labels.append(1 + list(classes).index(name))
        crowd.append(ignore and (element.findtext("difficult") or "0").strip() == "1")
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(crowd, bool)
    if one_based:
        arrays[0][:, :2] -= 1
    keep = sound_boxes(arrays[0], _size(root), str(file), troubles)
    return Objects(*arrays).only(keep)


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Height and width, where the file has them: some have zeros."""
    try:
        height, width = int(root.findtext("size/height")), int(root.findtext("size/width"))
    except (TypeError, ValueError):
        return None
    return (height, width) if height > 0 and width > 0 else None
