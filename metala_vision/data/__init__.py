"""Images with labels, boxes or masks, their splits and their augmentation, registered with mmengine."""

from . import imports  # isort: skip  # before anything else imports mmengine
from .base import LabelledImages, UnreadableImageError, collate_images
from .batch_sizes import CurriculumBatchSampler, MultiScaleBatchSampler
from .boxes import BoxDataset, collate_boxes
from .coco import CocoDetection
from .dense_transforms import BoxTransform, MaskTransform
from .detection_folder import detection_folder
from .digits import Digits
from .fashion_mnist import FashionMNIST
from .image_folder import ImageFolder
from .imagenette import Imagenette
from .masks import MaskDataset, MaskFolder, collate_masks
from .pathfinder import Pathfinder
from .photographs import Photographs
from .pixels import PixelSequence
from .recall import AssociativeRecall, collate_sequences
from .sampling import EpochSampler, SampleKey
from .shapes import ShapesDetection, ShapesSegmentation
from .splits import stratified_split, stratified_subset
from .transforms import Albumentations, EvalTransform, TrainTransform
from .voc import VOCDetection

del imports

__all__ = [
    "Albumentations",
    "AssociativeRecall",
    "BoxDataset",
    "BoxTransform",
    "CocoDetection",
    "CurriculumBatchSampler",
    "Digits",
    "EpochSampler",
    "EvalTransform",
    "FashionMNIST",
    "ImageFolder",
    "Imagenette",
    "LabelledImages",
    "MaskDataset",
    "MaskFolder",
    "MaskTransform",
    "MultiScaleBatchSampler",
    "Pathfinder",
    "Photographs",
    "PixelSequence",
    "SampleKey",
    "ShapesDetection",
    "ShapesSegmentation",
    "TrainTransform",
    "UnreadableImageError",
    "VOCDetection",
    "collate_boxes",
    "collate_images",
    "collate_masks",
    "collate_sequences",
    "detection_folder",
    "stratified_split",
    "stratified_subset",
]
