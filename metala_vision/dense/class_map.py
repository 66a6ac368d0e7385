"""The classes of an image's pixels, whatever size a segmenter runs at."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from .segmenter import sliding_window


def class_map(
    run: Callable[[Tensor], Tensor],
    image: Tensor,
    short_side: int | None = None,
    window: int | None = None,
    stride: int | None = None,
) -> Tensor:
    """The likeliest class of each pixel.

    Args:
        run: a segmenter, images [B, C, height, width] -> logits [B, classes, height, width].
        image: [1, C, height, width], normalised.
        short_side: pixels that the shorter side is resized to; None leaves the image as it is.
        window: side of the windows that it is run in; None runs it whole.
        stride: pixels from one window to the next, given with `window`.

    Returns:
        [height, width] of the image as it came, int64.
    """
    size = (image.shape[-2], image.shape[-1])
    if short_side is not None:
        scale = short_side / min(size)
        sides = tuple(round(side * scale) for side in size)
        image = F.interpolate(image, sides, mode="bilinear", antialias=True)
    logits = sliding_window(run, image, window, stride) if window and stride else run(image)
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits.float(), size, mode="bilinear")
    return logits.argmax(1)[0]
