"""Labelled images, their splits and their augmentation, registered with mmengine."""

from .base import LabelledImages, UnreadableImageError, collate_images
from .digits import Digits
from .fashion_mnist import FashionMNIST
from .image_folder import ImageFolder
from .sampling import EpochSampler, SampleKey
from .splits import stratified_split, stratified_subset
from .transforms import Albumentations, EvalTransform, TrainTransform

__all__ = [
    "Albumentations",
    "Digits",
    "EpochSampler",
    "EvalTransform",
    "FashionMNIST",
    "ImageFolder",
    "LabelledImages",
    "SampleKey",
    "TrainTransform",
    "UnreadableImageError",
    "collate_images",
    "stratified_split",
    "stratified_subset",
]
