"""Images read pixel by pixel, for the tasks of long sequences."""

import numpy as np
from mmengine.registry import TRANSFORMS

from metala_vision.errors import InputError


@TRANSFORMS.register_module()
class PixelSequence:
    """Lays the rows of an image one after the other: [height, width, channels] -> [1, height * width, channels].

    A model with patches of one pixel reads it as a sequence, as in Long Range Arena (arXiv 2011.04006), and is not told
    which pixels were above each other.

    Args:
        transform: what comes before, a config of `mmengine.registry.TRANSFORMS`; None leaves images as they are.
    """

    def __init__(self, transform: dict | None = None):
        self.transform = TRANSFORMS.build(transform) if transform else None

    def __call__(self, image: np.ndarray, seed: int | None = None) -> np.ndarray:
        """One image; `seed` is handed to what comes before."""
        if self.transform is not None:
            image = self.transform(image, seed)
        return image.reshape(1, -1, image.shape[2])

    def at(self, img_size: int) -> "PixelSequence":
        """There is no size to choose.

        Raises:
            InputError: always.
        """
        raise InputError("transform: PixelSequence has no img_size to change; sequences are of the images' own length")
