"""A run on the digits that takes a second or two: a small model, big batches, every real component."""

import json

import pytest
import timm
import torch
from mmengine.config import Config
from PIL import Image
from small_runs import DIGITS, SMALL

from metala_vision.engine import VisionRunner, apply_train_options, load_config


@pytest.fixture
def small_config(tmp_path, request):
    """Makes configs: small_config(options, **train options), kept under tmp_path/run."""
    made = []

    def make(options: dict | None = None, **train_options) -> Config:
        config = load_config(str(DIGITS), {**SMALL, **(options or {})})
        train_options.setdefault("work_dir", str(tmp_path / "run"))
        apply_train_options(config, **train_options)
        # mmengine keeps one message hub per name, and its own names are unique to the second only
        made.append(config)
        config.experiment_name = f"{request.node.nodeid}_{len(made)}"
        return config

    return make


@pytest.fixture
def run_small(small_config):
    """Trains and tests: run_small(options, **train options) -> (runner, result)."""

    def run(*args, **kwargs) -> tuple[VisionRunner, dict]:
        runner = VisionRunner.from_cfg(small_config(*args, **kwargs))
        return runner, runner.train_and_test()

    return run


@pytest.fixture
def teacher(tmp_path):
    """A teacher of another architecture, and its checkpoint."""
    torch.manual_seed(7)
    options = dict(num_classes=10, in_chans=1, img_size=8, patch_size=4, embed_dim=32, depth=1, num_heads=2)
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    torch.nn.init.normal_(model.head.weight)
    torch.save(model.state_dict(), tmp_path / "teacher.pth")
    return model, dict(model_name="vit_tiny_patch16_224", checkpoint_path=str(tmp_path / "teacher.pth"), **options)


@pytest.fixture(scope="session")
def own_folders(tmp_path_factory):
    """Three small sets of two classes, as people have them: by the folder of the configs for them."""
    root = tmp_path_factory.mktemp("own")
    images, annotations = [], []
    for i in range(20):
        image, mask = Image.new("RGB", (64, 48), (10 * i, 90, 120)), Image.new("L", (64, 48), i % 2)
        for folder, name in (
            ("boxes", f"{i}.jpg"),
            ("masks/images", f"{i}.jpg"),
            (f"classes/{'ab'[i % 2]}", f"{i}.png"),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            image.save(root / folder / name)
        (root / "masks" / "masks").mkdir(exist_ok=True)
        mask.save(root / "masks" / "masks" / f"{i}.png")
        images.append(dict(id=i, file_name=f"{i}.jpg", width=64, height=48))
        corners = [[5, 5, 35, 5, 35, 30, 5, 30]]
        box = dict(bbox=[5, 5, 30, 25], area=750, iscrowd=0, segmentation=corners)
        annotations.append(dict(id=i, image_id=i, category_id=1 + i % 2, **box))
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name="a"), dict(id=2, name="b")])
    (root / "boxes" / "_annotations.coco.json").write_text(json.dumps(content))
    return {"imagefolder": root / "classes", "detection_folder": root / "boxes", "segmentation_folder": root / "masks"}
