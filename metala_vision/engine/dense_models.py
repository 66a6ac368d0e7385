"""What a config of a detector or segmenter imports: other configs need neither torchvision's models nor a decoder."""

from .tasks.detector import ImageDetector
from .tasks.segmenter import ImageSegmenter

__all__ = ["ImageDetector", "ImageSegmenter"]
