"""Pathfinder: are two discs on one dashed curve, or on two? Pictures drawn on the fly, of any size."""

import math

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image, ImageDraw

from metala_vision.errors import InputError

from .base import LabelledImages, check_split
from .splits import SPLITS

FINE = 4  # a picture is drawn this many times as large, and averaged
DASH, WIDTH, DISC = 0.6, 0.28, 0.45  # length and width of a dash, radius of a disc, in steps
MARGIN = 0.6  # steps from a curve to the edge
APART = 1.2  # least distance in steps between dashes, but for neighbours on a curve
BEND = math.radians(40)  # most, from dash to dash
DIRECTIONS = 8  # that are tried for each dash
GAP = 0.3  # most steps between the distance of discs on one curve and that of discs on two
LONGEST = 1.2  # a curve over the side of the picture; two longer ones are rarely found to fit
GROWN = 48  # curves at once, out of which those of a picture are taken


@DATASETS.register_module()
class Pathfinder(LabelledImages):
    """Grey pictures of two long dashed curves among short ones, with discs on two of the long ones' four ends.

    The task of Long Range Arena (arXiv 2011.04006), after Linsley et al. (arXiv 1805.08315), by a generator of our own,
    so that accuracies are not to be compared with those on the released pictures. Every other picture has both discs
    on one curve ("connected"), and in the others they are about as far from each other. Curves turn by at most 40
    degrees from dash to dash and keep away from each other. Picture i of a split is a function of (seed, split, i).

    Args:
        split: "train", "val" or "test".
        images: pictures of the split.
        size: side in pixels.
        dashes: of a long curve. The released sets at 32 pixels have 6, 9 or 14.
        distractors: short curves, of a third of the dashes each; one that finds no room is left out.
        step: pixels from dash to dash.
        seed: of the pictures.
        transform: as for `LabelledImages`.

    Raises:
        InputError: an unknown split, or curves that the picture has no room for.
    """

    def __init__(
        self,
        split: str,
        images: int = 1000,
        size: int = 32,
        dashes: int = 6,
        distractors: int = 4,
        step: float = 2.5,
        seed: int = 0,
        transform: dict | None = None,
    ):
        check_split(split)
        if any(type(n) is not int for n in (images, size, dashes, distractors, seed)) or distractors < 0 or seed < 0:
            raise InputError(
                f"Pathfinder: got {images!r} images of {size!r} pixels, {dashes!r} dashes, {distractors!r} distractors "
                f"and seed {seed!r}, expected integers, the last two 0 or more"
            )
        if images < 2 or dashes < 3 or not isinstance(step, (int, float)) or not 2 <= step <= size / 8:
            raise InputError(
                f"Pathfinder: got {images} images of {size} pixels, {dashes} dashes and a step of {step!r}, expected "
                f"at least 2 images and 3 dashes, and a step from 2 to an eighth of the size"
            )
        if dashes > LONGEST * size / step:
            raise InputError(
                f"Pathfinder: two curves of {dashes} dashes have no room in {size} pixels at a step of {step}; "
                f"expected at most {int(LONGEST * size / step)} dashes"
            )
        self.size, self.dashes, self.distractors, self.step, self.seed = size, dashes, distractors, step, seed
        super().__init__(split, ("apart", "connected"), np.arange(images) % 2, transform)

    def load(self, index: int) -> np.ndarray:
        """Picture [size, size, 1], uint8."""
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        side = self.size / self.step
        curves: list[np.ndarray] = []
        while not curves:
            curves = _pair(_curves(rng, self.dashes, side))
        if self.distractors:
            short = _curves(rng, max(2, self.dashes // 3), side)
            for curve in curves:
                short = short[_away(short, curve)]
            while len(short) and len(curves) < 2 + self.distractors:
                curves.append(short[0])
                short = short[_away(short, short[0])]
        return self._draw(curves, connected=bool(self.labels[index]))

    def _draw(self, curves: list[np.ndarray], connected: bool) -> np.ndarray:
        scale = self.step * FINE
        canvas = Image.new("L", (self.size * FINE, self.size * FINE))
        pen = ImageDraw.Draw(canvas)
        for curve in curves:
            for start, end in zip(curve, curve[1:]):
                middle, half = (start + end) / 2, (end - start) / 2 * DASH
                pen.line([*((middle - half) * scale), *((middle + half) * scale)], 255, max(1, round(WIDTH * scale)))
        for x, y in (curves[0][0], curves[0 if connected else 1][-1]):
            pen.ellipse([(x - DISC) * scale, (y - DISC) * scale, (x + DISC) * scale, (y + DISC) * scale], 255)
        fine = np.asarray(canvas, dtype=np.float32).reshape(self.size, FINE, self.size, FINE)
        return np.round(fine.mean((1, 3))).astype(np.uint8)[..., None]


def _curves(rng: np.random.Generator, dashes: int, side: float) -> np.ndarray:
    """Curves of unit steps in a square of `side`, each away from itself [curves, dashes + 1, 2].

    Many grow at once, since a curve that gets stuck is given up.
    """
    points = rng.uniform(MARGIN, side - MARGIN, (GROWN, 1, 2))
    angle = rng.uniform(0, 2 * math.pi, GROWN)
    for _ in range(dashes):
        angles = angle[:, None] + rng.uniform(-BEND, BEND, (len(angle), DIRECTIONS))
        ends = points[:, -1:] + np.stack([np.cos(angles), np.sin(angles)], -1)
        free = ((ends >= MARGIN) & (ends <= side - MARGIN)).all(-1)
        free &= (_squares(ends, points[:, :-1]) >= APART**2).all(-1)
        alive = free.any(-1)
        points, angles, ends, first = points[alive], angles[alive], ends[alive], free[alive].argmax(-1)[:, None]
        angle = np.take_along_axis(angles, first, 1)[:, 0]
        points = np.concatenate([points, np.take_along_axis(ends, first[..., None], 1)], 1)
    return points


def _pair(candidates: np.ndarray) -> list[np.ndarray]:
    """Two curves away from each other, or none. From the first's start it is as far to the second's end as to its own,
    so that the distance of the discs tells nothing.
    """
    for first in candidates:
        others = candidates[_away(candidates, first)]
        others = np.concatenate([others, others[:, ::-1]])
        if len(others):
            gaps = np.abs(np.hypot(*(others[:, -1] - first[0]).T) - np.hypot(*(first[-1] - first[0])))
            if gaps.min() < GAP:
                return [first, others[gaps.argmin()]]
    return []


def _away(curves: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Whether each of the curves [curves, points, 2] keeps away from one [points, 2]."""
    return _squares(curves, curve).min((1, 2)) >= APART**2


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances between points [..., A, 2] and [..., B, 2] -> [..., A, B]."""
    return np.square(a[..., :, None, :] - b[..., None, :, :]).sum(-1)
