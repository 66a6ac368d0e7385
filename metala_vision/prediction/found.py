"""What was found in one picture, for people, for programs and for tables."""

from typing import Any, NamedTuple

import numpy as np

from metala_vision.data import rle


class ClassFound(NamedTuple):
    """A class of a whole picture, with its probability."""

    name: str
    probability: float


class ObjectFound(NamedTuple):
    """An object, with its box (left, top, right, bottom) in pixels of the picture.

    Attributes:
        mask: [height, width] of the picture, bool, from detectors that find masks.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


class Area(NamedTuple):
    """A class of pixels, with the share of the picture that it covers."""

    name: str
    share: float


class Prediction(NamedTuple):
    """What was found in a picture.

    Attributes:
        image: where it is from: a path, a path with the number of the frame ("clip.mp4#12"), or a number in a list.
        height: of the picture in pixels, turned as its EXIF note says; 0 where it cannot be read.
        width: likewise.
        classes: of a classifier, the likeliest first; None from other models.
        objects: of a detector, the surest first; None from other models.
        areas: of a segmenter, the largest first; None from other models.
        class_map: of a segmenter, [height, width] with the number of each pixel's class; None from other models.
        seconds: of a frame, since the beginning of the video.
        error: why the picture cannot be read; empty where it was.
    """

    image: str
    height: int = 0
    width: int = 0
    classes: list[ClassFound] | None = None
    objects: list[ObjectFound] | None = None
    areas: list[Area] | None = None
    class_map: np.ndarray | None = None
    seconds: float | None = None
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"{self.image}: not read: {self.error}"
        where = f"{self.image} ({self.height}x{self.width})"
        if self.classes is not None:
            return f"{where}: {', '.join(f'{name} {share:.3f}' for name, share in self.classes)}"
        if self.areas is not None:
            return f"{where}: {', '.join(f'{name} {share:.1%}' for name, share in self.areas)}"
        found = [f"{one.name} {one.score:.2f} at {','.join(f'{x:.0f}' for x in one.box)}" for one in self.objects or ()]
        return f"{where}: {len(found)} object{'' if len(found) == 1 else 's'}{': ' if found else ''}{'; '.join(found)}"

    def record(self) -> dict[str, Any]:
        """As a line of JSON has it; masks in COCO's run-length code, which needs pycocotools."""
        known: dict[str, Any] = dict(image=self.image)
        if self.seconds is not None:
            known["seconds"] = round(self.seconds, 3)
        if self.error:
            return {**known, "error": self.error}
        known |= dict(height=self.height, width=self.width)
        if self.classes is not None:
            known["classes"] = [dict(name=name, probability=round(share, 6)) for name, share in self.classes]
        if self.areas is not None:
            known["areas"] = [dict(name=name, share=round(share, 6)) for name, share in self.areas]
        if self.objects is not None:
            known["objects"] = [_record(one) for one in self.objects]
        return known

    def rows(self) -> list[dict[str, Any]]:
        """As lines of a table have it: one for each class, object or area; none where there is none."""
        where = dict(image=self.image, seconds=self.seconds, height=self.height, width=self.width)
        if self.classes is not None:
            return [{**where, **found._asdict(), "rank": i + 1} for i, found in enumerate(self.classes)]
        if self.areas is not None:
            return [{**where, **found._asdict()} for found in self.areas]
        sides = ("left", "top", "right", "bottom")
        objects = [dict(name=one.name, score=one.score, **dict(zip(sides, one.box))) for one in self.objects or ()]
        return [{**where, **one} for one in objects]


def _record(found: ObjectFound) -> dict[str, Any]:
    known: dict[str, Any] = dict(
        name=found.name, score=round(found.score, 6), box=[round(side, 2) for side in found.box]
    )
    if found.mask is not None:
        (code,) = rle.encode(found.mask[None])
        known["mask"] = dict(size=list(code["size"]), counts=code["counts"].decode())
    return known
