"""Weights for timm and the hub: what is written, who loads it, and what the card says."""

import errno
import json
import subprocess
import sys

import pytest
import timm
import torch

import metala_vision
from metala_vision.engine import publishing
from metala_vision.engine.publishing import publish
from metala_vision.errors import InputError
from metala_vision.files import write_json

FRESH = """
import sys
for name in ("mmengine", "albumentations", "matplotlib", "sklearn"):
    sys.modules[name] = None
import timm, torch, metala_vision
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
"""
WRAPPED = """
import sys
import torch
import metala_vision
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
"""


@pytest.fixture
def published(run_small, tmp_path):
    """A run with a moving average, and the folder it is published to."""
    runner, result = run_small(ema=0.5)
    write_json(tmp_path / "run" / "result.json", result)  # as tools/train.py does
    out = tmp_path / "out"
    return tmp_path / "run", out, publish(tmp_path / "run", out, name="digits", license="mit"), result


def test_timm_loads_what_is_published(published):
    """Catches weights that are not those of the average, and settings of the model that do not travel."""
    run, out, said, result = published
    assert said["files"] == ["README.md", "config.json", "model.safetensors"]
    assert said["weights"] == "ema"
    described = torch.load(run / "last.pth", weights_only=True)["description"]
    best = run / "best.pth" if (run / "best.pth").exists() else run / "last.pth"
    expected = timm.create_model(described["architecture"], checkpoint_path=str(best), **described["model_args"]).eval()
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(x), expected(x))
    assert loaded.pretrained_cfg["label_names"] == described["label_names"]
    for key in ("mean", "std", "input_size", "interpolation", "crop_pct"):
        wanted = described[key]
        if isinstance(wanted, list):
            assert list(loaded.pretrained_cfg[key]) == pytest.approx(wanted), key
    assert timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=3).num_classes == 3


def test_by_its_place_and_by_a_tag(published, monkeypatch):
    """With the names of its classes, and as a trunk; a tag is one of timm's pretrained ones then."""
    _, out, _, _ = published
    plain = publish_of_a_name(out)
    x = torch.randn(1, 1, 8, 8)
    expected = metala_vision.load(out)(x)
    assert not metala_vision.load(out).training
    assert len(metala_vision.load(out, features_only=True, out_indices=(0, 1))(x)) == 2
    name = "metala_vit_nano.digits_of_a_test"
    with pytest.raises(InputError, match="is of a metala_vit_nano with .*embed_dim.*; use metala_vision.load"):
        metala_vision.add_weights(name, out)
    metala_vision.add_weights(name, plain)
    tagged = timm.create_model(name, pretrained=True).eval()
    assert tagged.num_classes == 10
    assert torch.equal(tagged(x), metala_vision.load(plain)(x))
    assert name in timm.list_models("metala*", pretrained=True)
    assert timm.create_model(name, pretrained=True, num_classes=2).num_classes == 2
    assert expected.shape == (1, 10)
    for source, message in ((out.parent, "has no config.json"), ("nowhere", "expected one, or OWNER/NAME on the hub")):
        with pytest.raises(InputError, match=message):
            metala_vision.load(source)
    for wrong, message in (
        ("metala_vit_nano", "expected a model of timm and a tag"),
        ("metala_vit_tiny.digits", "has weights of metala_vit_nano"),
    ):
        with pytest.raises(InputError, match=message):
            metala_vision.add_weights(wrong, plain)
    with pytest.raises(InputError, match="has no config.json and model.safetensors"):
        metala_vision.add_weights(name, out.parent)
    config = json.loads((plain / "config.json").read_text())
    config["model_args"]["global_pool"] = "max"
    (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is of a metala_vit_nano with .'global_pool': 'max'.; use metala_vision.load"):
        metala_vision.add_weights("metala_vit_nano.of_the_largest", plain)
    (plain / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no model.safetensors"):
        metala_vision.load(plain)
    monkeypatch.chdir(out.parent)
    (out.parent / "mistyped_parent").mkdir()
    with pytest.raises(InputError, match="source: no folder mistyped_parent/name; of a model on the hub write hf-hub:"):
        metala_vision.load("mistyped_parent/name")


def publish_of_a_name(out):
    """The weights of a model that has its name's own widths, in a folder beside `out`."""
    folder = out.parent / "plain"
    model = timm.create_model("metala_vit_nano", num_classes=10, in_chans=1, img_size=8)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder


def test_the_card_says_what_people_ask(published):
    run, out, said, result = published
    card = (out / "README.md").read_text()
    assert card.startswith("---\ntags:\n- image-classification\n")
    assert "license: mit" in card
    assert "| data | Digits |" in card
    assert f"| 8 | {result['top1']:.2f} |" in card
    assert "moving average" in card
    assert "a grid of 4 x 4 tokens" in card
    assert said["scores"] == {"8": {"top1": result["top1"], "top5": result["top5"]}}


def test_tests_that_changed_the_model_are_left_out(published, tmp_path):
    """Catches a table that mixes sizes tested with and without the scale of the decay."""
    run, _, _, result = published
    name = "best.pth" if (run / "best.pth").exists() else "last.pth"
    tests = [
        dict(checkpoint=str(run / name), img_size=16, top1=50.0, changed=[]),
        dict(checkpoint=str(run / name), img_size=[16, 8], top1=40.0, changed=[]),
        dict(checkpoint=str(run / name), img_size=32, top1=30.0, changed=["model.backbone.decay_scale: ..."]),
        dict(checkpoint=str(run / name), img_size=64, top1=20.0),
        dict(checkpoint=str(run / "other.pth"), img_size=24, top1=10.0, changed=[]),
        dict(checkpoint=str(run / name), img_size=8, top1=1.0, changed=[]),
        dict(checkpoint=str(run / name), img_size=40, top1=2.0, changed=[], weights="raw"),
        dict(checkpoint=str(run / name), img_size=48, top1=3.0, changed=[], crop_ratio=0.5),
        dict(checkpoint=str(run / name), img_size=56, top1=4.0, changed=[], dataset="Other"),
    ]
    tests = [dict(dataset="Digits", split="test") | test for test in tests]
    (run / "sizes").mkdir()
    (run / "sizes" / "result.json").write_text(json.dumps(tests))
    (run / "broken").mkdir()
    (run / "broken" / "result.json").write_text("{")
    scores = publish(run, tmp_path / "again")["scores"]
    assert list(scores) == ["8", "16x8", "16"]
    assert scores["16"] == {"top1": 50.0}
    assert scores["8"] == {"top1": result["top1"], "top5": result["top5"]}
    assert list(publish(run, tmp_path / "raw", weights="raw")["scores"]) == ["8", "16x8", "16", "40"]
    # Of other weights, the run's own test says nothing.
    for path in run.rglob("result.json"):
        path.unlink()
    (tmp_path / "real").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    said = publish(run, tmp_path / "link")
    assert said["scores"] == {}
    assert "No test has been run." in (tmp_path / "real" / "README.md").read_text()
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o750
    config = json.loads((tmp_path / "real" / "config.json").read_text())
    assert config["pretrained_cfg"]["crop_mode"] == "center"


def test_a_test_says_what_it_changed(run_small, load_tool, tmp_path):
    run_small()
    tested = load_tool("test.py")(str(tmp_path / "run" / "last.pth"), "--out", str(tmp_path / "plain"))
    assert tested["changed"] == []
    options = ("--cfg-options", "model.backbone.decay_scale=none", "--out", str(tmp_path / "none"))
    tested = load_tool("test.py")(str(tmp_path / "run" / "last.pth"), *options)
    assert tested["changed"] == ["model.backbone.decay_scale: not set in the run, 'none' now"]


@pytest.mark.long
@pytest.mark.parametrize("code", [FRESH, WRAPPED], ids=["a fresh process", "transformers"])
def test_others_load_it(code, published, tmp_path):
    """A process without what only training needs, and transformers by its own classes."""
    _, out, _, _ = published
    x = torch.randn(2, 1, 8, 8)
    torch.save(x, tmp_path / "x.pt")
    files = [str(out), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert torch.allclose(torch.load(tmp_path / "y.pt"), loaded(x), atol=1e-6)


def test_what_cannot_be_published(published, tmp_path, monkeypatch):
    run, out, _, _ = published
    with pytest.raises(InputError, match="holds something already"):
        publish(run, out)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publishing, "write_atomic", full)
    with pytest.raises(InputError, match="--out: .*new cannot be written: .*No space left"):
        publish(run, tmp_path / "new")
    assert not [path for path in tmp_path.iterdir() if "new" in path.name or "publish" in path.name]
    monkeypatch.undo()
    with pytest.raises(InputError, match="RUN: no folder and no file"):
        publish(tmp_path / "none", tmp_path / "new")
    with pytest.raises(InputError, match="has neither best.pth nor last.pth"):
        publish(out, tmp_path / "new")
    with pytest.raises(InputError, match="--weights: got 'mean'"):
        publish(run, tmp_path / "new", weights="mean")
    checkpoint = torch.load(run / "last.pth", weights_only=True)
    checkpoint["description"]["task"] = "detection"
    torch.save(checkpoint, tmp_path / "boxes.pth")
    with pytest.raises(InputError, match="is of the task 'detection', expected a classifier's"):
        publish(tmp_path / "boxes.pth", tmp_path / "new")
    checkpoint["description"]["task"] = "classification"
    checkpoint["description"]["model_args"]["embed_dim"] = 64
    torch.save(checkpoint, tmp_path / "other.pth")
    with pytest.raises(InputError, match="size mismatch"):
        publish(tmp_path / "other.pth", tmp_path / "new")
    assert not (tmp_path / "new").exists()
