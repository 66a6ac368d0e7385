"""Boxes in VOC's form: an XML file beside each image."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from metala_vision.errors import InputError, near_matches

from .base import check_split
from .boxes import MAX_MISFIT, BoxDataset, Objects, Troubles, sound_boxes
from .image_folder import SUFFIXES, read_image
from .orientation import Size
from .presence import check_there
from .sizes import check_sizes, size_of_picture, stated_size


@DATASETS.register_module()
class VOCDetection(BoxDataset):
    """Images in `root/JPEGImages`, boxes in `root/Annotations`, and the names of each split in a text file.

    Args:
        root: the folder.
        split: "train", "val" or "test".
        classes: names of the classes; an object of another class is an error.
        transform: see `BoxDataset`.
        names: names of the images, or the text file with one name per line, in which {split} stands for the split; None
            looks for `{split}.txt` and `ImageSets/Main/{split}.txt`.
        difficult: "ignore" neither trains on difficult objects nor counts them: in evaluation each is what COCO calls a
            crowd, in which any detection is forgiven. "use" treats them like all others.
        one_based: whether pixels are counted from 1 and the last one belongs to the box, as VOC has it; False for files
            of tools that write corners as they are.
        max_share: share of the annotation files that may be unreadable or missing; their images are left out. Also the
            share of the pictures whose size may differ from the one that their file states; they are refused: a sample
            is checked here, and every picture when it is loaded.
        orientation: turn pictures as their EXIF note says, unless the size in the annotation file decides; see the
            module `orientation`.
        max_misfit: share of the boxes that may be dropped or clipped, since they do not fit their image.

    Raises:
        InputError: a missing folder or file, an unknown class, too many broken annotations, pictures that are missing
            or of another size, or boxes that do not fit.
    """

    def __init__(
        self,
        root: str,
        split: str,
        classes: Sequence[str],
        transform: dict | None = None,
        names: str | Sequence[str] | None = None,
        difficult: str = "ignore",
        one_based: bool = True,
        max_share: float = 0.01,
        orientation: bool = True,
        max_misfit: float = MAX_MISFIT,
    ):
        check_split(split)
        if difficult not in ("ignore", "use"):
            raise InputError(f"difficult: got {difficult!r}, expected 'ignore' or 'use'")
        if len(set(classes)) < len(classes) or not classes:
            raise InputError(f"classes: got {tuple(classes)}, expected names, none twice")
        folder = Path(root)
        for part in ("JPEGImages", "Annotations"):
            if not (folder / part).is_dir():
                raise InputError(
                    f"--data-root (root): no folder {folder / part}; expected VOC's JPEGImages and Annotations there"
                )
        self.orientation = orientation
        self.paths, self.sizes, found, troubles, broken = [], [], [], Troubles(), []
        listed = _once(_names(folder, split, names), troubles)
        pictures = _pictures(folder / "JPEGImages")
        for name in listed:
            file = folder / "Annotations" / f"{name}.xml"
            path = _picture(folder, name, pictures, troubles)
            try:
                root_of_file = ElementTree.parse(file).getroot()
                stated = _stated(root_of_file, name, str(file), troubles)
                size = stated or size_of_picture(path, orientation)
                objects = _objects(root_of_file, file, classes, difficult == "ignore", one_based, size, troubles)
            except (OSError, ElementTree.ParseError, _BrokenError) as error:
                broken.append(f"{file}: {error}")
                troubles.add("annotation files that cannot be read, their images left out", str(file))
                continue
            found.append(objects)
            self.paths.append(path)
            self.sizes.append(stated)
        if len(broken) > max_share * len(listed):
            raise InputError(
                f"--data-root (root): {len(broken)} of the {len(listed)} annotation files of the {split} split cannot "
                f"be read, more than max_share={max_share:g}; the first: {broken[0]}"
            )
        check_there("root", self.paths, folder / "JPEGImages", max_share)
        count = sum(len(one.boxes) for one in found)
        print_log(f"{folder} ({split}): {len(found)} images, {count} objects", logger="current", level=logging.INFO)
        check_sizes("root", self.paths, self.sizes.__getitem__, troubles, max_share)
        super().__init__(split, classes, [path.stem for path in self.paths], found, transform, troubles, max_misfit)

    def load(self, index: int) -> np.ndarray:
        return read_image(self.paths[index], 3, self.orientation, self.sizes[index])


class _BrokenError(Exception):
    """An annotation file that is XML but no whole annotation."""


def _names(folder: Path, split: str, names: str | Sequence[str] | None) -> list[str]:
    """The names of a split's images, see `VOCDetection`."""
    if names is not None and not isinstance(names, str):
        return list(names)
    places = [names.format(split=split)] if names else [f"{split}.txt", f"ImageSets/Main/{split}.txt"]
    for place in places:
        file = folder / place
        if file.is_file():
            listed = [_name(line.strip(), folder) for line in file.read_text().splitlines() if line.strip()]
            if not listed:
                raise InputError(f"names: {file} names no image")
            return listed
    raise InputError(f"names: no file {' or '.join(str(folder / place) for place in places)} for the {split} split")


def _name(line: str, folder: Path) -> str:
    """The first word of a line, since lists of one class have 1 or -1 behind the name; or a name with blanks in it."""
    return line if " " in line and (folder / "Annotations" / f"{line}.xml").is_file() else line.split()[0]


def _once(listed: Sequence[str], troubles: Troubles) -> list[str]:
    for name in (name for name, times in Counter(listed).items() if times > 1):
        troubles.add("names listed more than once, taken once", name)
    return list(dict.fromkeys(listed))


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """The files of each name, in the order of their suffixes in `SUFFIXES`."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return {name: sorted(paths, key=lambda path: SUFFIXES.index(path.suffix.lower())) for name, paths in found.items()}


def _picture(folder: Path, name: str, pictures: dict[str, list[Path]], troubles: Troubles) -> Path:
    """The image file of a name, with the suffix .jpg if there is none: `check_there` reports it."""
    paths = pictures.get(name, [folder / "JPEGImages" / f"{name}.jpg"])
    if len(paths) > 1:
        troubles.add("names with several pictures, of which the first is used", ", ".join(map(str, paths)))
    return paths[0]


def _stated(root: ElementTree.Element, name: str, file: str, troubles: Troubles) -> Size | None:
    """The size that an annotation file states, if any. A file that names another picture is counted in `troubles`."""
    picture = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    if picture and Path(name).name not in (picture, Path(picture).stem):
        troubles.add("annotation files that name another picture", file)
    return stated_size(root.findtext("size/height"), root.findtext("size/width"), file, troubles)


def _objects(
    root: ElementTree.Element,
    file: Path,
    classes: Sequence[str],
    ignore: bool,
    one_based: bool,
    size: Size | None,
    troubles: Troubles,
) -> Objects:
    boxes, labels, crowd = [], [], []
    for element in root.iter("object"):
        name = (element.findtext("name") or "").strip()
        if name not in classes:
            raise InputError(f"classes: {file} has an object {name!r}, none of them{near_matches(name, classes)}")
        try:
            boxes.append([float(element.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")])
        except (TypeError, ValueError) as error:
            raise _BrokenError(f"an object without a whole bndbox ({error})") from error
        labels.append(1 + list(classes).index(name))
        crowd.append(ignore and (element.findtext("difficult") or "0").strip() == "1")
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(crowd, bool)
    if one_based:
        arrays[0][:, :2] -= 1
    keep = sound_boxes(arrays[0], size, str(file), troubles)
    return Objects(*arrays).only(keep)
