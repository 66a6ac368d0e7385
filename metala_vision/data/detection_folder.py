"""Your own boxes, as annotation tools write them: in COCO's form or VOC's, in any of the usual layouts."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mmengine.registry import DATASETS

from metala_vision.errors import InputError, near_matches

from .base import check_holdout, check_split
from .boxes import BoxDataset
from .coco import CocoDetection
from .splits import SPLITS, held_out
from .voc import VOCDetection

OWN = {"self", "root", "split", "annotations", "images", "names"}  # arguments of datasets that follow from the layout
# The names that tools give the splits.
CALLED = {"train": ("train", "train2017"), "val": ("val", "valid", "validation", "val2017"), "test": ("test",)}
# Where the annotations and the images of one split are in COCO's form.
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
# The same for a dataset without splits.
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
    """The dataset in a folder; its form and layout are recognised by the files that are there.

    - COCO's form, split: annotations/instances_train.json, annotations/train.json, train/_annotations.coco.json or
      train.json, and so on, with the images in train/, images/train/ or images/.
    - COCO's form, in one file: annotations/instances_default.json or annotations.json with images/,
      _annotations.coco.json among the images. `holdout` of the images are the validation split.
    - VOC's form: JPEGImages/ and Annotations/, with train.txt and val.txt beside them or in ImageSets/Main. Without
      these lists, `holdout` of the images are the validation split.

    The names "valid", "validation" and "train2017" are understood too. Where there is no test split, the validation
    split takes its place.

    Args:
        root: the folder.
        split: "train", "val" or "test".
        transform: see `BoxDataset`.
        classes: names of the classes, in order. None takes those of COCO's file in the order of their ids, or those of
            VOC's files in alphabetical order.
        masks: read masks too; only COCO's form has them.
        holdout: share of the images that is the validation split of a dataset without splits.
        **options: further arguments of `CocoDetection` or `VOCDetection`, whichever reads the folder.

    Raises:
        InputError: no known layout (the message lists what was looked for), or what `CocoDetection` and `VOCDetection`
            raise.
    """
    check_split(split)
    check_holdout(holdout)
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"--data-root: no folder {folder}")
    if (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir():
        if masks:
            raise InputError(f"masks: {folder} has VOC's form, whose boxes have no masks; expected COCO's form")
        _check_options(options, VOCDetection)
        return _voc(folder, split, transform, classes, holdout, options)
    _check_options(options, CocoDetection)
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


def _check_options(options: dict[str, Any], kind: type[BoxDataset]) -> None:
    known = set(inspect.signature(kind.__init__).parameters) - OWN
    for name in options:
        if name not in known:
            near = near_matches(name, known)
            raise InputError(f"dataset: {kind.__name__}, which reads this folder, has no {name!r}{near}")


def _found(folder: Path, name: str) -> tuple[str, str] | None:
    """The annotations and images of the split with this name, relative to the folder; None where there are none."""
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
    """The class names in all annotation files, in alphabetical order. Broken files are reported when they are read."""
    found: set[str] = set()
    for file in (folder / "Annotations").glob("*.xml"):
        try:
            found.update((x.findtext("name") or "").strip() for x in ElementTree.parse(file).getroot().iter("object"))
        except (OSError, ElementTree.ParseError):
            continue
    if not found - {""}:
        raise InputError(f"--data-root: no object in the files of {folder / 'Annotations'}")
    return sorted(found - {""})
