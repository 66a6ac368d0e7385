"""A linear model beside the softmax model that it was made from: time, and what their features tell, over sizes."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from metala_vision.profiling.speed.timing import MIN_ROUNDS, Spread, interleaved

from .labelled import Labelled

NAMES = ("teacher", "linear")
ROUNDS, SECONDS = 15, 30.0  # of the times at one size: so many rounds, or fewer where they take longer


def compare_times(teacher: Any, model: Any, sizes: Iterable[int]) -> list[dict]:
    """Milliseconds of one image through both, in turns, for each side of a square image.

    Args:
        teacher: a VisionTransformer for images of any size.
        model: what was made of it, on the same device.
        sizes: sides in pixels.

    Returns:
        A row for each size and model: `name` ("teacher" or "linear"), `size`, `milliseconds`, `spread` (the distance of
        the quartiles over the median), and for the linear one `times_faster`.
    """
    weight = next(model.parameters())
    rows = []
    for size in sorted(set(sizes)):
        image = torch.randn(1, teacher.patch_embed.proj.in_channels, size, size, device=weight.device)
        with torch.inference_mode():
            candidates: dict[str, Callable[[], object]] = {
                name: functools.partial(one.forward_features, image)
                for name, one in zip(NAMES, (teacher.eval(), model.eval()))
            }
            spreads: dict[str, Spread] = {}
            begun = time.perf_counter()
            for spreads in interleaved(candidates, ROUNDS, device=str(weight.device)):
                done = len(spreads[NAMES[0]].seconds)
                if done >= MIN_ROUNDS and time.perf_counter() - begun > SECONDS:
                    break
        for name, spread in spreads.items():
            row = dict(name=name, size=size, milliseconds=1e3 * spread.median, spread=spread.relative_range)
            rows.append(row if name == NAMES[0] else row | dict(times_faster=spreads[NAMES[0]].ratio_to(spread)))
    return rows


def compare_features(teacher: Any, model: Any, sizes: Iterable[int], examples: Labelled, known: dict) -> list[dict]:
    """What a linear probe tells by the features of both, for each side of a square image.

    Args:
        teacher: as above.
        model: as above.
        sizes: sides in pixels.
        examples: labelled images.
        known: (name, size) -> a dict with scores that are known already.

    Returns:
        A row for each size and model: `name`, `size`, `mean`, `low` and `high`, the percentage of the probe of the
        first token before the patches, or of the mean patch where there is none; and all scores of `Labelled`.
    """
    rows = []
    for size in sorted(set(sizes)):
        for name, one in zip(NAMES, (teacher, model)):
            scores = known.get((name, size)) or examples.scores(one, size)
            scores = {key: value for key, value in scores.items() if key.startswith(("knn_", "probe_"))}
            probe = scores.get("probe_prefix", scores["probe_patches"])
            rows.append(dict(name=name, size=size, mean=probe, low=probe, high=probe) | scores)
    return rows


def merged(*parts: Sequence[dict]) -> list[dict]:
    """Rows of the same name and size as one."""
    rows: dict[tuple, dict] = {}
    for row in (row for part in parts for row in part):
        place = rows.setdefault((row["name"], row["size"]), dict(milliseconds=None))
        place |= {key: value for key, value in row.items() if value is not None}
    return [rows[key] for key in sorted(rows, key=lambda key: (NAMES.index(key[0]), key[1]))]
