"""Models out of the lab: files for the runtimes that people deploy, each held against the model that it comes from."""

from .detections import detections
from .exporting import export
from .runtimes import Runtime, runtime
from .source import model_of

__all__ = ["Runtime", "detections", "export", "model_of", "runtime"]
