"""A feature pyramid over any timm model, and builders of the detectors and segmenters that stand on it."""

from .class_map import class_map
from .detector import DETECTORS, detector
from .loading import load_dense
from .pyramid import PyramidNeck, SimpleFeaturePyramid
from .segmenter import SEGMENTERS, segmenter, sliding_window
from .trunk import FeatureMap, create_trunk, trunk_arguments

__all__ = [
    "DETECTORS",
    "SEGMENTERS",
    "FeatureMap",
    "PyramidNeck",
    "SimpleFeaturePyramid",
    "class_map",
    "create_trunk",
    "detector",
    "load_dense",
    "segmenter",
    "sliding_window",
    "trunk_arguments",
]
