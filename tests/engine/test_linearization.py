"""Both stages of linearization through the runner: they bring features near, resume, and say what does not fit."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small_runs import ROOT, assert_same_checkpoint, train_one_epoch

from metala_vision.data import Photographs
from metala_vision.engine import Linearization, VisionRunner, apply_train_options, load_config, set_data_root
from metala_vision.engine.dry_run import dry_run
from metala_vision.engine.evaluation import evaluate_checkpoints, render
from metala_vision.engine.publishing import publish
from metala_vision.errors import InputError

CONFIG = ROOT / "configs/linearize/vit_small_patch14_dinov2_classes_photographs_1e_blocks.py"
# Trained at another size than that of the images, as DINOv2's models are
MODEL = dict(embed_dim=48, depth=2, num_heads=3, img_size=64, patch_size=8, num_classes=0)
SMALL = {
    **{f"{split}_dataloader.num_workers": 0 for split in ("train", "val", "test")},
    **{f"{split}_dataloader.persistent_workers": False for split in ("train", "val", "test")},
    **{f"{split}_dataloader.dataset.transform.img_size": 32 for split in ("train", "val", "test")},
    **{f"{split}_dataloader.batch_size": 8 for split in ("train", "val", "test")},
    **{f"model.backbone.{key}": value for key, value in MODEL.items()},
    "model.backbone.teacher": "vit_tiny_patch16_224",
    "model.backbone.states": 4,
    "model.teacher.pretrained": False,
    "model.calibration": 8,
    "train_cfg.max_epochs": 2,
    "param_scheduler.1.end": 2,
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Forty pictures in folders of different depth, a hidden one, and a file that is none."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for i in range(40):
        place = folder / ("a", "a/b", ".")[i % 3]
        place.mkdir(exist_ok=True)
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 40), Image.Resampling.BILINEAR).save(place / f"{i}.png")
    (folder / ".hidden.png").write_bytes((folder / "a" / "0.png").read_bytes())
    (folder / "a" / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **MODEL)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn_like(p))
    file = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture
def config_of(tmp_path, request, photographs, weights):
    """Makes configs: config_of(options, **train options)."""
    made = []

    def make(options: dict | None = None, **train_options):
        options = {**SMALL, "model.teacher.checkpoint_path": str(weights), **(options or {})}
        config = load_config(str(CONFIG), options)
        set_data_root(config, str(photographs))
        apply_train_options(config, **{"work_dir": str(tmp_path / "run"), **train_options})
        made.append(config)
        config.experiment_name = f"{request.node.nodeid}_{len(made)}"
        return config

    return make


@pytest.mark.long
def test_both_stages_bring_the_features_near(config_of, tmp_path, weights):
    """Each ends nearer than it began; the second begins where the first ended; the file is timm's as it is."""
    model = Linearization(**{k: v for k, v in config_of().model.items() if k != "type"})
    assert all(torch.equal(v, model.backbone.state_dict()[k]) for k, v in torch.load(weights).items())
    blocks = VisionRunner.from_cfg(config_of({"train_cfg.max_epochs": 6, "param_scheduler.1.end": 6}))
    blocks.prepare()
    before = blocks.test()["cosine"]
    first = VisionRunner.from_cfg(config_of({"train_cfg.max_epochs": 6, "param_scheduler.1.end": 6}))
    result = first.train_and_test()
    assert result["cosine"] > before
    assert result["images"] == 2
    assert -100 <= result["prefix_cosine"] <= 100
    options = {"model.stage": "features", "model.init_from": str(tmp_path / "run" / "last.pth")}
    options |= {"train_cfg.max_epochs": 8, "param_scheduler.1.end": 8}
    second = VisionRunner.from_cfg(config_of(options, work_dir=str(tmp_path / "second"))).train_and_test()
    assert second["cosine"] > result["cosine"]
    described = torch.load(tmp_path / "second" / "last.pth", weights_only=True)["description"]
    assert (described["task"], described["architecture"]) == ("linearization", "linearized_vit")
    loaded = timm.create_model(
        "linearized_vit", checkpoint_path=str(tmp_path / "second" / "last.pth"), **described["model_args"]
    )
    assert loaded.nominal_grid.tolist() == [4, 4]
    (tested,) = evaluate_checkpoints(
        config_of(options, work_dir=str(tmp_path / "third")), [str(tmp_path / "second" / "last.pth")]
    )
    assert tested["cosine"] == second["cosine"]
    assert "cosine" in render([tested])


def test_the_first_stage_trains_the_attention_alone(config_of, tmp_path, weights):
    runner = VisionRunner.from_cfg(config_of({"model.backbone.keep_softmax": (0,)}))
    runner.train_and_test()
    trained, taught = torch.load(tmp_path / "run" / "last.pth")["state_dict"], torch.load(weights)
    changed = {name for name, value in taught.items() if not torch.equal(trained[name], value)}
    assert changed
    assert all(name.startswith("blocks.1.attn.") for name in changed)


@pytest.mark.long
def test_a_resumed_run_is_the_same(config_of, tmp_path):
    VisionRunner.from_cfg(config_of(work_dir=str(tmp_path / "straight"))).train_and_test()
    train_one_epoch(config_of())
    VisionRunner.from_cfg(config_of(resume="auto")).train_and_test()
    assert_same_checkpoint(tmp_path / "straight" / "last.pth", tmp_path / "run" / "last.pth")


def test_a_dry_run_and_a_batch_that_cannot_be_read(config_of):
    assert dry_run(VisionRunner.from_cfg(config_of()))["images_per_step"] == 8
    model = Linearization(**{k: v for k, v in config_of().model.items() if k != "type"})
    empty = torch.empty(0, 3, 32, 32)
    for stage in ("blocks", "features"):
        model.stage = stage
        model(empty, mode="loss")["loss"].backward()
    assert len(model(empty, mode="predict")[0]["patches"]) == 0


@pytest.mark.long
def test_the_tool_goes_through_the_stages(load_tool, photographs, weights, own_folders, tmp_path, capsys):
    """Rows for teacher, start and each stage; the same command again trains nothing; the result can be published."""
    labels = own_folders["imagefolder"]
    arguments = ["--teacher", "vit_tiny_patch16_224", "--checkpoint", str(weights), "--data-root", str(photographs)]
    arguments += ["--labels", str(labels), "--out", str(tmp_path / "out"), "--states", "4", "--img-size", "32"]
    arguments += ["--batch", "8", "--stages", "blocks", "features", "task", "--epochs", "4", "4", "2"]
    arguments += ["--keep-softmax", "0", "--sizes", "32", "48", "--timed", "64", "--cfg-options"]
    arguments += [f"model.backbone.{key}={value}" for key, value in MODEL.items()]
    arguments += [f"{split}_dataloader.num_workers=0" for split in ("train", "val", "test")]
    arguments += [f"{split}_dataloader.persistent_workers=False" for split in ("train", "val", "test")]
    arguments += ["model.calibration=8"]
    found = load_tool("linearize.py")(*arguments)
    rows = found["stages"]
    assert [row["stage"] for row in rows] == ["teacher", "start", "blocks", "features", "task"]
    assert rows[1]["cosine"] < rows[2]["cosine"] < rows[3]["cosine"] <= 100
    assert all(0 <= row[key] <= 100 for row in rows for key in ("knn_patches", "probe_patches", "knn_prefix"))
    assert found["model"] == str(tmp_path / "out" / "task" / "best.pth")
    tested = json.loads((tmp_path / "out" / "task" / "result.json").read_text())
    assert rows[4]["top1"] == tested["top1"]
    settings = json.loads((tmp_path / "out" / "start" / "settings.json").read_text())
    assert settings["mean"] == list(timm.get_pretrained_cfg("vit_tiny_patch16_224").mean) == [0.5] * 3
    description = torch.load(tested["checkpoint"], weights_only=True)["description"]
    assert description["mean"] == [0.5] * 3
    assert "cosine" not in rows[4]
    assert [(row["name"], row["size"], "mean" in row) for row in found["sizes"]] == [
        (name, size, size != 64) for name in ("teacher", "linear") for size in (32, 48, 64)
    ]
    assert all(row["milliseconds"] > 0 for row in found["sizes"])
    assert found["sizes"][0]["mean"] == rows[0]["probe_prefix"]
    assert found["sizes"][3]["mean"] == rows[4]["probe_prefix"]
    printed = capsys.readouterr().out
    assert "features in" in printed
    assert "64 pixels: " in printed
    for name in ("features.png", "accuracy_and_time.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    runs = [tmp_path / "out" / file for file in ("start/calibrated.pth", "features/last.pth", "task/last.pth")]
    modified = [run.stat().st_mtime_ns for run in runs]
    again = load_tool("linearize.py")(*arguments)["stages"]
    assert [run.stat().st_mtime_ns for run in runs] == modified
    assert [row.get("cosine", row.get("top1")) for row in again] == [row.get("cosine", row.get("top1")) for row in rows]
    started = torch.load(tmp_path / "out" / "blocks" / "last.pth", weights_only=True)["state_dict"]
    calibrated = torch.load(runs[0], weights_only=True)["state_dict"]
    assert torch.equal(started["blocks.0.attn.qkv.weight"], calibrated["blocks.0.attn.qkv.weight"])
    publish(tmp_path / "out" / "features", tmp_path / "published")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'published'}", pretrained=True)
    assert loaded.keep_softmax == (0,)
    assert "cosine" in (tmp_path / "published" / "README.md").read_text()
    (tmp_path / "out" / "blocks").rename(tmp_path / "gone")
    with pytest.raises(InputError, match="--out: .*features is there, and .*blocks.*last.pth, which it began wi"):
        load_tool("linearize.py")(*arguments)
    (tmp_path / "gone").rename(tmp_path / "out" / "blocks")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    moved = [word.replace(str(tmp_path / "out"), str(tmp_path / "elsewhere")) for word in arguments]
    assert [row["stage"] for row in load_tool("linearize.py")(*moved)["stages"]] == [row["stage"] for row in rows]
    (tmp_path / "elsewhere").rename(tmp_path / "out")
    fewer = ["features" if word == "blocks" else word for word in arguments if word != "features"]
    fewer = [word for i, word in enumerate(fewer) if i != fewer.index("--epochs") + 1]
    with pytest.raises(InputError, match="--out: .*features began with .*blocks.*last.pth, and by --stages features t"):
        load_tool("linearize.py")(*fewer)
    for other, named in (("model.backbone.states=5", "backbone"), ("model.calibration=7", "calibration")):
        with pytest.raises(InputError, match=f"--out: .* has states for {named} = .*; give another folder"):
            load_tool("linearize.py")(*arguments, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--stages", "features", "blocks"],
            "--stages: got features blocks, expected some of blocks features task, in",
        ),
        (["--stages", "block"], "--stages: got block, expected some of"),
        (["--epochs", "1", "1", "1"], "--epochs: got 3 numbers for 2 stages: blocks features"),
        (["--lr", "1e-3"], "--lr: got 1 numbers for 2 stages"),
        (["--epochs", "1", "0"], "--epochs, --lr: got .*, expected 1 epoch or more"),
        (["--timed", "0"], "--sizes, --timed: got 0, expected 8 pixels or more"),
        (["--stages", "blocks", "task"], "--labels: expected a folder of labelled images for --stages task"),
        (["--sizes", "224"], "--labels: expected a folder of labelled images for --sizes"),
        (["--data-root", "nowhere"], "no folder nowhere"),
        (["--config", "none.py"], "config: no file none.py"),
        (["--cfg-options", "train_cfg.max_epochs=7"], "--cfg-options: got train_cfg.max_epochs, which --epochs sets"),
        (["--cfg-options", "optim_wrapper.optimizer.lr=1"], "--cfg-options: got optim_wrapper.*lr, which --lr sets"),
    ],
    ids=str,
)
def test_what_the_tool_refuses(options, message, load_tool, photographs, weights, tmp_path):
    arguments = ["--teacher", "vit_tiny_patch16_224", "--checkpoint", str(weights), "--data-root", str(photographs)]
    small = [f"model.backbone.{key}={value}" for key, value in MODEL.items()]
    if options[0] == "--cfg-options":
        small, options = [*small, *options[1:]], []
    with pytest.raises(InputError, match=message):
        load_tool("linearize.py")(*arguments, "--out", str(tmp_path / "out"), *options, "--cfg-options", *small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.stage": "maps"}, "model: stage is 'maps', expected one of"),
        ({"model.calibration": -1}, "model: calibration is -1"),
        ({"model.backbone.model_name": "metala_vit_nano"}, "expected a dict with model_name='linearized_vit'"),
        ({"model.backbone.mixer": "gla"}, "mixer: got 'gla'"),
        ({"model.backbone.keep_softmax": (0, 1)}, "keep_softmax keeps every block"),
        ({"model.teacher.checkpoint_path": None}, "model.teacher: it has no weights"),
        (
            {"model.teacher.checkpoint_path": "none.pth"},
            "model.teacher.checkpoint_path: no file none.pth; .*timm's",
        ),
        ({"model.teacher.depth": 3}, "model.teacher: got depth, which are arguments of model.backbone"),
        ({"model.mean": (0.5,)}, "model: mean has 1 and std 3 channels"),
        ({"model.calibration": 1, "model.backbone.states": 17}, "model: calibration: batches: got 16 patches"),
    ],
    ids=str,
)
def test_what_does_not_fit(options, message, config_of):
    with pytest.raises(InputError, match=message):
        VisionRunner.from_cfg(config_of(options)).prepare()


def test_photographs_without_labels(photographs, tmp_path):
    """Every picture at any depth but the hidden ones, in one of two sets."""
    parts = {
        split: Photographs(str(photographs), split, holdout=0.1, cache=False) for split in ("train", "val", "test")
    }
    assert {split: len(part) for split, part in parts.items()} == {"train": 36, "val": 4, "test": 4}
    names = {split: {part.paths[i] for i in range(len(part))} for split, part in parts.items()}
    assert not names["train"] & names["val"]
    assert names["val"] == names["test"]
    assert not any("hidden" in name for part in names.values() for name in part)
    assert parts["val"][0]["image"].shape == (3, 40, 48)
    with pytest.raises(InputError, match="holdout: got 0, expected above 0"):
        Photographs(str(photographs), "train", holdout=0)
    with pytest.raises(InputError, match="no folder"):
        Photographs(str(tmp_path / "none"), "train")
    with pytest.raises(InputError, match="has 0 images, expected 2 or more"):
        Photographs(str(tmp_path), "train")
