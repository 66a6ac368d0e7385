"""Checkpoints of all three tasks, as runs leave them, and pictures of every kind."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small_checkpoints import IMAGES, NAMES, TRUNK
from small_models import strong
from torch import nn

import metala_vision  # noqa: F401  its models
from metala_vision.dense import detector, segmenter


def saved(model: nn.Module, file: Path, **described) -> Path:
    """With weights far from their first values, so that no two classes are equally likely."""
    strong(model, 0.05)
    known = dict(num_classes=3, label_names=NAMES, **IMAGES)
    torch.save({"state_dict": model.state_dict(), "description": {**known, **described}}, file)
    return file


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    model = timm.create_model("metala_vit_nano", num_classes=3, **TRUNK)
    return saved(
        model,
        tmp_path / "classifier.pth",
        task="classification",
        architecture="metala_vit_nano",
        model_args=dict(num_classes=3, **TRUNK),
        crop_pct=0.875,
        interpolation="bilinear",
    )


@pytest.fixture
def dense(tmp_path: Path):
    """dense("detection", "fcos") or dense("segmentation", "fpn") -> a checkpoint."""

    def make(task: str, kind: str, options: dict | None = None, **described) -> Path:
        options = dict(out_channels=64) | (options or {})
        build = detector if task == "detection" else segmenter
        return saved(
            build(kind, "metala_vit_nano", 3, backbone_arguments=TRUNK, **options),
            tmp_path / f"{kind}.pth",
            **dict(task=task, kind=kind, options=options, architecture="metala_vit_nano", model_args=TRUNK),
            **described,
        )

    return make


@pytest.fixture
def picture() -> np.ndarray:
    """[90, 120, 3] of smooth colours, no part of which equals another."""
    y, x = np.mgrid[:90, :120]
    return np.stack([255 * y / 89, 255 * x / 119, 127 + 127 * np.sin(x * y / 300)], -1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path, picture: np.ndarray) -> Path:
    """One picture in many forms, and files that are none."""
    place = tmp_path / "photos" / "deep"
    place.mkdir(parents=True)
    image = Image.fromarray(picture)
    image.save(place / "plain.png")
    image.convert("L").save(place / "grey.png")
    image.convert("CMYK").save(place / "cmyk.tif")
    noted = Image.Exif()
    noted[274] = 6  # to be turned by a quarter
    image.transpose(Image.Transpose.ROTATE_90).save(place / "rotated.png", exif=noted)
    clear = image.convert("RGBA")
    clear.putalpha(255)
    clear.save(place / "alpha.webp", lossless=True)
    (place / "broken.png").write_bytes((place / "plain.png").read_bytes()[:300])
    (place / "text.jpg").write_text("no picture")
    (place / "notes.txt").write_text("not asked for")
    return place.parent
