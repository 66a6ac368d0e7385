"""The small digits run of the engine's tests, and how two checkpoints are compared."""

import contextlib
from pathlib import Path

import torch

from metala_vision.engine import ImageClassifier, VisionRunner

ROOT = Path(__file__).resolve().parents[2]
# Those of tools/train.py: OpenMMLab's are models alone.
OWN_CONFIGS = [path for path in sorted(ROOT.glob("configs/*/*.py")) if path.parent.name not in ("_base_", "openmmlab")]
# For data of one's own
OWN_DATA = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("imagefolder", "detection_folder", "segmentation_folder")
    for path in (ROOT / "configs" / folder).glob("*.py")
)
DIGITS = ROOT / "configs" / "digits" / "metala_vit_digits.py"
ARGS = dict(embed_dim=32, depth=2, num_heads=1, in_chans=1, img_size=8, patch_size=2)
SMALL = {
    "model.backbone.embed_dim": 32,
    "model.backbone.depth": 2,
    "train_dataloader.batch_size": 256,
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "val_dataloader.num_workers": 0,
    "val_dataloader.persistent_workers": False,
    "test_dataloader.num_workers": 0,
    "test_dataloader.persistent_workers": False,
    "train_cfg.max_epochs": 2,
    "param_scheduler.0.end": 1,
    "param_scheduler.1.begin": 1,
    "param_scheduler.1.end": 2,
}


def classifier(**kwargs) -> ImageClassifier:
    torch.manual_seed(0)
    backbone = dict(model_name="metala_vit_nano", num_classes=10, **ARGS)
    return ImageClassifier(backbone, mean=(0.3,), std=(0.4,), **kwargs)


def assert_same_checkpoint(first: Path, second: Path) -> None:
    one, other = (torch.load(path, weights_only=True) for path in (first, second))
    assert one["meta"]["epoch"] == other["meta"]["epoch"]
    for part in ("state_dict", "state_dict_ema", "optimizer", "param_schedulers"):
        left, right = flatten(one.get(part)), flatten(other.get(part))
        assert left.keys() == right.keys()
        for key, value in left.items():
            same = torch.equal(value, right[key]) if isinstance(value, torch.Tensor) else value == right[key]
            assert same, f"{part}{key} differs"


def flatten(value, path="") -> dict:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flatten(item, f"{path}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for key, item in enumerate(value) for k, v in flatten(item, f"{path}.{key}").items()}
    return {path: value}


def prepare(config) -> VisionRunner:
    runner = VisionRunner.from_cfg(config)
    runner.prepare()
    return runner


def train_one_epoch(config) -> None:
    """Begins a run, and ends it before its second epoch, as a kill would."""
    runner = prepare(config)
    run_epoch = runner.train_loop.run_epoch

    class Stop(Exception):
        pass

    def until_second_epoch():
        if runner.epoch == 1:
            raise Stop
        run_epoch()

    runner.train_loop.run_epoch = until_second_epoch
    with contextlib.suppress(Stop):
        runner.train()
    assert runner.epoch == 1
