"""What a config imports for detectors and segmenters: the others need neither torchvision's models nor a decoder."""

from .tasks.detector import ImageDetector
from .tasks.segmenter import ImageSegmenter

__all__ = ["ImageDetector", "ImageSegmenter"]
