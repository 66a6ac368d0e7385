"""What a config imports for the metrics of detectors and segmenters."""

from .metrics.detection import CocoMetric
from .metrics.segmentation import SegmentationMetric

__all__ = ["CocoMetric", "SegmentationMetric"]
