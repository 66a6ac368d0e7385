"""The configs for data of one's own, with a folder and a number of classes and nothing else."""

import json

import pytest
from PIL import Image
from small_runs import ROOT

from metala_vision.engine import VisionRunner, apply_train_options, load_config, set_data_root, set_num_classes
from metala_vision.errors import InputError

CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("imagefolder", "detection_folder", "segmentation_folder")
    for path in (ROOT / "configs" / folder).glob("*.py")
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
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


def configured(name: str, folders: dict, tmp_path, num_classes: int):
    config = load_config(str(ROOT / name))
    set_data_root(config, str(folders[name.split("/")[1]]))
    set_num_classes(config, num_classes)
    apply_train_options(config, work_dir=str(tmp_path / "run"), device="cpu")
    config.model.init_from = None  # what fine-tuning starts from
    config.visualizer = None
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_and_a_number_are_enough(name, folders, tmp_path):
    """Catches a config that needs another setting, which people would have to look for in the source."""
    runner = VisionRunner.from_cfg(configured(name, folders, tmp_path, 2))
    runner.prepare()
    assert len(runner.train_dataloader.dataset) + len(runner.val_dataloader.dataset) in (18, 20)
    assert len(runner.train_dataloader.dataset.classes) == 2


@pytest.mark.parametrize("name", ["faster_rcnn_metala_vit_nano_p8_320_folder_12e"])
def test_another_number_is_said(name, folders, tmp_path):
    """Catches a wrong number of classes that is only met by an index out of range."""
    config = configured(f"configs/detection_folder/{name}.py", folders, tmp_path, 3)
    with pytest.raises(InputError, match=r"num_classes is 3, but CocoDetection \(train\) has 2 classes"):
        VisionRunner.from_cfg(config).prepare()
    with pytest.raises(InputError, match="--num-classes: got 0, expected at least 1"):
        set_num_classes(config, 0)
