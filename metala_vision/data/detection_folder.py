"""Boxes of one's own, as annotation tools leave them: COCO's form or VOC's, in any of the usual layouts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mmengine.registry import DATASETS

from metala_vision.errors import InputError

from .base import check_holdout, check_split
from .boxes import BoxDataset
from .coco import CocoDetection
from .splits import SPLITS, held_out
from .voc import VOCDetection

# What tools call the splits.
CALLED = {"train": ("train", "train2017"), "val": ("val", "valid", "validation", "val2017"), "test": ("test",)}
# Where COCO's files of a split are: the annotations, and the images.
OF_A_SPLIT = (
    ("annotations/instances_{name}.json", "{name}"),
    ("annotations/instances_{name}.json", "images/{name}"),
    ("annotations/instances_{name}.json", "images"),
    ("annotations/{name}.json", "{name}"),
    ("annotations/{name}.json", "images/{name}"),
    ("annotations/{name}.json", "images"),
    ("{name}/_annotations.coco.json", "{name}"),
    ("{name}/annotations.json", "{name}"),
    ("{name}.json", "{name}"),
    ("{name}.json", "images/{name}"),
    ("{name}.json", "images"),
)
# The same of a set that nobody has split.
OF_ALL = (
    ("annotations/instances_default.json", "images/default"),
    ("annotations/instances_default.json", "images"),
    ("annotations.json", "images"),
    ("_annotations.coco.json", "."),
    ("result.json", "images"),
    ("result.json", "."),
)


@DATASETS.register_module(name="DetectionFolder")
def detection_folder(
    root: str,
    split: str,
    transform: dict | None = None,
    classes: Sequence[str] | None = None,
    masks: bool = False,
    holdout: float = 0.15,
    **options: Any,
) -> BoxDataset:
    """The dataset of a folder, whose form and layout are found by what is there.

    - COCO's form, split: annotations/instances_train.json, annotations/train.json, train/_annotations.coco.json or
      train.json, and so on, with the images in train/, images/train/ or images/.
    - COCO's form, in one file: annotations/instances_default.json or annotations.json with images/,
      _annotations.coco.json among the images. Validation is `holdout` of the images.
    - VOC's form: JPEGImages/ and Annotations/, with train.txt and val.txt there or in ImageSets/Main, or without, and
      then validation is `holdout` of the images.

    "valid", "validation" and "train2017" are understood. Where there is no test split, it is that of validation.

    Args:
        root: the folder.
        split: "train", "val" or "test".
        transform: see `BoxDataset`.
        classes: their names, in order; None is those of COCO's file by their ids, or of VOC's files by the alphabet.
        masks: read masks too, which COCO's form has.
        holdout: share of a set that is not split.
        **options: of `CocoDetection` or `VOCDetection`, whichever it is.

    Raises:
        InputError: no known layout, with what was looked for; what `CocoDetection` and `VOCDetection` raise.
    """
    check_split(split)
    check_holdout(holdout)
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"--data-root: no folder {folder}")
    if (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir():
        if masks:
            raise InputError(f"masks: {folder} has VOC's form, whose boxes have no masks; expected COCO's form")
        return _voc(folder, split, transform, classes, holdout, options)
    arguments = dict(root=root, split=split, transform=transform, classes=classes, masks=masks, **options)
    for names in (CALLED[split], CALLED["val"] if split == "test" else ()):
        for place in (_found(folder, name) for name in names):
            if place is not None:
                return CocoDetection(**arguments, annotations=place[0], images=place[1])
    for annotations, images in OF_ALL:
        if (folder / annotations).is_file() and (folder / images).is_dir():
            return CocoDetection(**arguments, annotations=annotations, images=images, holdout=holdout)
    looked = [*(file.format(name=CALLED[split][0]) for file, _ in OF_A_SPLIT), *(file for file, _ in OF_ALL)]
    raise InputError(
        f"--data-root: {folder} has no boxes for the {split} split in a layout that is known: looked for JPEGImages "
        f"with Annotations (VOC), and for {', '.join(dict.fromkeys(looked))} with the images in {CALLED[split][0]}, "
        f"images/{CALLED[split][0]} or images (COCO). It has {_contents(folder)}"
    )


def _found(folder: Path, name: str) -> tuple[str, str] | None:
    """Annotations and images of a split that is called so, relative to the folder."""
    for annotations, images in OF_A_SPLIT:
        place = annotations.format(name=name), images.format(name=name)
        if (folder / place[0]).is_file() and (folder / place[1]).is_dir():
            return place
    return None


def _contents(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing in it"


def _voc(
    folder: Path, split: str, transform: dict | None, classes: Sequence[str] | None, holdout: float, options: dict
) -> VOCDetection:
    places = [place.format(split) for split in SPLITS for place in ("{}.txt", "ImageSets/Main/{}.txt")]
    names: str | list[str] | None = None
    if any((folder / place).is_file() for place in places):
        own = any((folder / place).is_file() for place in places if Path(place).stem == split)
        names = None if own or split != "test" else _list_of_validation(folder)
    else:
        every = sorted(path.stem for path in (folder / "Annotations").glob("*.xml"))
        if not every:
            raise InputError(f"--data-root: no annotation file in {folder / 'Annotations'}")
        names = [every[i] for i in held_out(len(every), split, holdout)]
    if classes is None:
        classes = _classes(folder)
    return VOCDetection(str(folder), split, classes, transform, names=names, **options)


def _list_of_validation(folder: Path) -> str:
    return "val.txt" if (folder / "val.txt").is_file() else "ImageSets/Main/val.txt"


def _classes(folder: Path) -> list[str]:
    """The names of all objects of all splits, by the alphabet; files that are broken are met when they are read."""
    found: set[str] = set()
    for file in (folder / "Annotations").glob("*.xml"):
        try:
            found.update((x.findtext("name") or "").strip() for x in ElementTree.parse(file).getroot().iter("object"))
        except (OSError, ElementTree.ParseError):
            continue
    if not found - {""}:
        raise InputError(f"--data-root: no object in the files of {folder / 'Annotations'}")
    return sorted(found - {""})
