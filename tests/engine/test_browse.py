"""Pictures of batches, for data of any number of classes."""

import numpy as np
import pytest
from mmengine.registry import DATASETS, MODELS
from small_runs import OWN_DATA, ROOT

from metala_vision.data import collate_images
from metala_vision.engine import apply_train_options, load_config, set_data_root
from metala_vision.engine.browse import browse


@pytest.mark.parametrize("name", [name for name in OWN_DATA if "linear" not in name and "mask_rcnn" not in name])
def test_nobody_has_to_count_the_classes(name, own_folders, tmp_path):
    """Catches a picture that is refused for a number that only the model needs."""
    config = load_config(str(ROOT / name))
    set_data_root(config, str(own_folders[name.split("/")[1]]))
    apply_train_options(config, work_dir=str(tmp_path / "run"), device="cpu")
    config.model.init_from = config.visualizer = None
    for part in ("train", "val", "test"):
        loader = config[f"{part}_dataloader"]
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
    found = browse(config, "train", tmp_path / "batch.png", images=2)
    assert found["images"] == 2
    assert (tmp_path / "batch.png").stat().st_size > 1000


def test_a_sequence_of_pixels_is_seen():
    """Catches a picture one pixel high, which is drawn as nothing: Pathfinder's curves must be there again."""
    config = load_config(str(ROOT / "configs/long_range/metala_vit_w64_pixels_pathfinder32_10e.py"))
    data = DATASETS.build(dict(config.train_dataloader.dataset, images=4))
    model = MODELS.build(config.model)
    batch = model.data_preprocessor(collate_images([data[i] for i in range(4)]))
    drawn = model.pictures(batch, data.classes, training=True)
    assert [title for _, title in drawn] == ["apart", "connected"] * 2
    for i, (picture, _) in enumerate(drawn):
        assert picture.shape == (32, 32, 1)
        assert np.abs(picture * 255 - data.load(i)).max() < 0.01
    odd = dict(inputs=batch["inputs"][:, :, :, :1000], labels=batch["labels"])
    assert model.pictures(odd, data.classes, training=False)[0][0].shape == (32, 32, 1)
