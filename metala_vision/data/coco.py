"""Boxes and masks in COCO's form: one JSON file for all images."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS

from metala_vision.errors import InputError

from .base import check_split
from .boxes import MAX_MISFIT, BoxDataset, Troubles
from .coco_file import read_coco
from .coco_objects import UNUSABLE, objects_of, size_of_codes
from .image_folder import read_image
from .presence import check_there
from .rle import decode_any
from .sizes import check_sizes, size_of_picture, stated_size
from .splits import held_out


@DATASETS.register_module()
class CocoDetection(BoxDataset):
    """COCO's `root/annotations/instances_val2017.json` with the images in `root/val2017`, or other files of this form.

    Args:
        root: the folder.
        split: "train", "val" or "test".
        transform: see `BoxDataset`.
        annotations: path of the JSON file in `root`; {split} stands for the split.
        images: path of the folder of its images in `root`; {split} stands for the split.
        masks: read the masks too.
        classes: names of the categories to use, in this order; None is all of them in the order of their ids.
            Categories of the same name are one class.
        holdout: where one file holds all splits, the share of its images that is the validation split, and also the
            test split. None where each split has a file.
        orientation: turn pictures as their EXIF note says, unless the width and height of the image entry, or the size
            of a run-length code, decide; see the module `orientation`.
        max_share: share of the pictures that may be missing, or differ in size from what the file states. Such
            pictures are refused: a sample of the sizes is checked here, and every picture when it is loaded.
        max_misfit: share of the boxes that may be dropped or clipped, since they do not fit their image.

    Raises:
        InputError: a missing or broken file, an annotation of an unknown image or category, no usable mask where masks
            are asked for, two images with one id, too many pictures that are missing or of another size, too many boxes
            that do not fit.
    """

    def __init__(
        self,
        root: str,
        split: str,
        transform: dict | None = None,
        annotations: str = "annotations/instances_{split}2017.json",
        images: str = "{split}2017",
        masks: bool = False,
        classes: Sequence[str] | None = None,
        holdout: float | None = None,
        orientation: bool = True,
        max_share: float = 0.01,
        max_misfit: float = MAX_MISFIT,
    ):
        check_split(split)
        self.file = Path(root) / annotations.format(split=split)
        folder = Path(root) / images.format(split=split)
        if not folder.is_dir():
            raise InputError(f"images: no folder {folder}")
        troubles = Troubles()
        content = read_coco(self.file, troubles)
        categories = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        names = tuple(dict.fromkeys(categories.values() if classes is None else classes))
        if missing := [name for name in names if name not in categories.values()]:
            raise InputError(f"classes: {self.file} has no category {', '.join(missing)}")
        label_of = {category: 1 + names.index(name) for category, name in categories.items() if name in names}
        used = Counter(annotation.get("category_id") for annotation in content["annotations"])
        of_name = [[category for category, name in categories.items() if name == wanted] for wanted in names]
        self.categories = [max(same, key=lambda category: used[category]) for same in of_name]
        of_image: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            if annotation.get("image_id") not in of_image:
                raise InputError(
                    f"annotations: {self.file}: annotation {annotation.get('id')} is of image "
                    f"{annotation.get('image_id')!r}, which the file does not have; remove it, or add its image"
                )
            if annotation.get("category_id") not in categories:
                raise InputError(
                    f"annotations: {self.file}: annotation {annotation.get('id')} has category "
                    f"{annotation.get('category_id')}, expected one of {', '.join(map(str, categories))}"
                )
            if annotation["category_id"] in label_of:
                of_image[annotation["image_id"]].append(annotation)
        images_of_split = content["images"]
        if holdout is not None:
            chosen = held_out(len(images_of_split), split, holdout)
            images_of_split = [images_of_split[i] for i in chosen]
        self.orientation = orientation
        self.ids, self.paths, self.sizes, found = [], [], [], []
        for image in images_of_split:
            name, path, annotated = image["file_name"], folder / image["file_name"], of_image[image["id"]]
            stated = stated_size(image.get("height"), image.get("width"), name, troubles) or size_of_codes(annotated)
            size = stated or size_of_picture(path, orientation)
            self.ids.append(image["id"])
            self.paths.append(path)
            self.sizes.append(stated)
            found.append(objects_of(annotated, label_of, name, size, masks, troubles))
        check_there("images", self.paths, folder, max_share)
        check_sizes("annotations", self.paths, self.sizes.__getitem__, troubles, max_share)
        objects = sum(len(of_image[image["id"]]) for image in images_of_split)
        unusable = {kind: count for kind, count in troubles.counts().items() if kind in UNUSABLE}
        if objects and sum(unusable.values()) == objects:
            kinds = "; ".join(f"{count} {kind}, as {troubles.files[kind][0]}" for kind, count in unusable.items())
            raise InputError(f"masks: none of the objects in {self.file} has a mask that can be used: {kinds}")
        super().__init__(split, names, [path.name for path in self.paths], found, transform, troubles, max_misfit)

    def load(self, index: int) -> np.ndarray:
        return read_image(self.paths[index], 3, self.orientation, self.sizes[index])

    def decode(self, mask: list | dict, height: int, width: int) -> np.ndarray:
        """Polygons or a run-length code, as pycocotools decodes them."""
        return decode_any(mask, height, width)

    def image_id(self, index: int) -> int:
        return self.ids[index]
