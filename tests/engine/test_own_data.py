"""The configs for data of one's own, with a folder and a number of classes and nothing else."""

import pytest
from small_runs import OWN_DATA, ROOT

from metala_vision.engine import VisionRunner, apply_train_options, load_config, set_data_root, set_num_classes
from metala_vision.errors import InputError


def configured(name: str, own_folders: dict, tmp_path, num_classes: int):
    config = load_config(str(ROOT / name))
    set_data_root(config, str(own_folders[name.split("/")[1]]))
    set_num_classes(config, num_classes)
    apply_train_options(config, work_dir=str(tmp_path / "run"), device="cpu")
    config.model.init_from = None  # what fine-tuning starts from
    config.visualizer = None
    return config


@pytest.mark.parametrize("name", OWN_DATA)
def test_a_folder_and_a_number_are_enough(name, own_folders, tmp_path):
    """Catches a config that needs another setting, which people would have to look for in the source."""
    runner = VisionRunner.from_cfg(configured(name, own_folders, tmp_path, 2))
    runner.prepare()
    assert len(runner.train_dataloader.dataset) + len(runner.val_dataloader.dataset) in (18, 20)
    assert len(runner.train_dataloader.dataset.classes) == 2


@pytest.mark.parametrize("name", ["faster_rcnn_metala_vit_nano_p8_320_folder_12e"])
def test_another_number_is_said(name, own_folders, tmp_path):
    """Catches a wrong number of classes that is only met by an index out of range."""
    config = configured(f"configs/detection_folder/{name}.py", own_folders, tmp_path, 3)
    with pytest.raises(InputError, match=r"num_classes is 3, but CocoDetection \(train\) has 2 classes"):
        VisionRunner.from_cfg(config).prepare()
    with pytest.raises(InputError, match="--num-classes: got 0, expected at least 1"):
        set_num_classes(config, 0)
