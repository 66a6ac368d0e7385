"""Pictures of batches, for data of any number of classes."""

import pytest
from small_runs import OWN_DATA, ROOT

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
