"""From a model's name to what it sees in pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from metala_vision.command_line import check_device
from metala_vision.deploy.runtimes import ENDINGS
from metala_vision.errors import InputError

from .classifying import Classifying
from .detecting import Detecting
from .found import Prediction
from .pictures import Picture, pictures, places
from .segmenting import Segmenting
from .sources import open_source

BATCH_PIXELS = 1 << 26  # of the pictures that are held at once; one alone may have more


def predict(source: str | Path, images: Any, every: int = 1, **options: Any) -> Iterator[Prediction]:
    """What a model sees in pictures, one after the other, as they are read.

        for found in metala_vision.predict("work_dirs/run/best.pth", "photos"):
            print(found)

    Args:
        source: as for `Predictor`.
        images: a file, a folder (at any depth), a pattern such as "photos/*.jpg", a video, a PIL image, an array
            [height, width, 1 or 3] of uint8, or a list of any of these.
        every: of a video, every n-th frame is taken.
        options: of `Predictor`.

    Raises:
        InputError: before anything is read, if the model, the images or an option do not fit. A picture that cannot be
            read is no error: its prediction says why.
    """
    return Predictor(source, **options)(images, every)


class Predictor:
    """A model that is opened once and sees many pictures.

    Args:
        source: a checkpoint of a run of any task, a published folder, a file that `metala_vision.export` has written,
            or the name of a model of timm.
        top_k: classes that a classifier tells.
        min_score: least score of an object that a detector tells.
        img_size: of a classifier, height and width or the side of the square that it sees; of others, pixels that the
            shorter side of a picture is resized to. None is the model's own.
        tile: side of the tiles that large pictures are cut into, in pixels of the picture; None takes them whole.
        batch: images of one step.
        runtime: of an exported file, see `metala_vision.deploy.runtime`; None goes by its ending.
        threads: of a run on the CPU; None is the runtime's own choice.
        device: of a model of torch, such as "cuda"; "auto" takes a GPU where there is one. Files run on the CPU.
        arguments: of `timm.create_model`, such as `pretrained=True`.

    Attributes:
        task: "classification", "detection" or "segmentation".
        names: of the classes, in the order of the model's outputs.

    Raises:
        InputError: what `source` names is none of these, or has no classes, or an option does not fit.
    """

    def __init__(
        self,
        source: str | Path,
        top_k: int = 5,
        min_score: float = 0.3,
        img_size: int | tuple[int, int] | None = None,
        tile: int | None = None,
        batch: int = 16,
        runtime: str | None = None,
        threads: int | None = None,
        device: str = "auto",
        **arguments: Any,
    ):
        sides = img_size if isinstance(img_size, tuple) else (img_size,)
        least_of = (("top_k", top_k, 1), ("tile", tile, 32), ("batch", batch, 1), ("threads", threads, 1))
        for name, value, least in (*least_of, *(("img_size", side, 1) for side in sides)):
            if value is not None and (type(value) is not int or value < least):
                raise InputError(f"{name}: got {value!r}, expected a whole number of at least {least}")
        if not 0 <= min_score <= 1:
            raise InputError(f"min_score: got {min_score!r}, expected a number from 0 to 1")
        short_side = img_size if isinstance(img_size, int) else None
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() and Path(source).suffix not in ENDINGS else "cpu"
        check_device(device)
        run, described = open_source(source, runtime, threads, device, short_side, **arguments)
        self.task, count = described["task"], described["num_classes"]
        if self.task not in ("classification", "detection", "segmentation") or not count:
            raise InputError(f"source: {source} is of the task {self.task!r} with {count} classes, which names nothing")
        self.names: Sequence[str] = described.get("label_names") or [f"class {i}" for i in range(count)]
        self.channels = described["input_size"][0]
        if self.channels not in (1, 3):
            raise InputError(f"source: {source} takes images of {self.channels} channels, expected 1 (grey) or 3 (RGB)")
        fixed = {"batch", "size"} - set(described.get("dynamic", ("batch", "size")))  # of an exported file
        self.batch = 1 if "batch" in fixed else batch
        if "size" in fixed and img_size is not None:
            height, width = described["input_size"][1:]
            raise InputError(f"img_size: got {img_size}, but {source} takes images of {height}x{width} pixels alone")
        if self.task != "classification" and isinstance(img_size, tuple):
            raise InputError(f"img_size: got {img_size}, expected pixels of the shorter side for a {self.task} model")
        self.finder: Any
        if self.task == "classification":
            self.finder = Classifying(run, described, self.names, img_size, tile, top_k)
        elif self.task == "segmentation":
            self.finder = Segmenting(run, described, self.names, short_side, tile)
        else:
            self.finder = Detecting(run, self.names, tile, min_score)

    def __call__(self, images: Any, every: int = 1) -> Iterator[Prediction]:
        """What it sees in pictures, in their order; arguments and errors as for `predict`."""
        return (found for _, found in self.with_pictures(images, every))

    def with_pictures(self, images: Any, every: int = 1) -> Iterator[tuple[Picture, Prediction]]:
        """The same, each with its picture, for those who draw."""
        if type(every) is not int or every < 1:
            raise InputError(f"every: got {every!r}, expected a whole number of at least 1")
        return self._found(places(images), every)

    def _found(self, chosen: Sequence[Any], every: int) -> Iterator[tuple[Picture, Prediction]]:
        waiting: list[tuple[Picture, Any]] = []
        pixels = 0
        for picture in pictures(chosen, self.channels, every):
            waiting.append((picture, None if picture.pixels is None else self.finder.prepare(picture.pixels)))
            pixels += 0 if picture.pixels is None else picture.pixels.size
            if len(waiting) >= self.batch or pixels >= BATCH_PIXELS:
                yield from self._step(waiting)
                waiting, pixels = [], 0
        yield from self._step(waiting)

    def _step(self, waiting: Sequence[tuple[Picture, Any]]) -> Iterator[tuple[Picture, Prediction]]:
        prepared = [one for _, one in waiting if one is not None]
        found = iter(self.finder.find(prepared, self.batch) if prepared else ())
        for picture, one in waiting:
            if picture.pixels is None or one is None:
                yield picture, Prediction(picture.name, seconds=picture.seconds, error=picture.error)
            else:
                height, width = picture.pixels.shape[:2]
                yield picture, Prediction(picture.name, height, width, seconds=picture.seconds, **next(found))
