"""What a model sees in pictures: classes, objects and areas, from runs, published folders, exported files and timm."""

from .found import Area, ClassFound, ObjectFound, Prediction
from .predicting import Predictor, predict

__all__ = ["Area", "ClassFound", "ObjectFound", "Prediction", "Predictor", "predict"]
