"""What a checkpoint says of itself, and that its classes are matched by name wherever they meet those of the data."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.registry import DATASETS
from small_runs import ARGS, DIGITS, SMALL, classifier

from metala_vision.data import Digits
from metala_vision.description import KEY, description_in, match_classes, pretrained_cfg, read_description
from metala_vision.engine import VisionRunner, load_config
from metala_vision.engine.evaluation import evaluate_checkpoints
from metala_vision.errors import InputError

ORDER = (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)
NAMES = [str(i) for i in range(10)]
SHUFFLED = [str(i) for i in ORDER]
OTHERS = [*NAMES[:8], "acht", "neun"]


@DATASETS.register_module()
class RenamedDigits(Digits):
    """The digits with the names of their classes in another order, or other names."""

    def __init__(self, split, transform=None, order=tuple(range(10)), names=None):
        super().__init__(split, transform)
        self.classes = tuple(names or (self.classes[i] for i in order))
        self.labels = np.argsort(order)[self.labels]


def renamed(**arguments) -> dict:
    """Options of a config for such digits in all splits."""
    options = {f"{part}_dataloader.dataset.type": "RenamedDigits" for part in ("train", "val", "test")}
    for part in ("train", "val", "test"):
        options |= {f"{part}_dataloader.dataset.{key}": value for key, value in arguments.items()}
    return options


def log_of(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.rglob("*.log")))


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """A checkpoint, with the names of its classes, of a model that tells the digits apart in part."""
    torch.manual_seed(0)
    model = timm.create_model("metala_vit_nano", num_classes=10, **{**ARGS, "num_heads": 2})
    data = Digits("train")
    images = torch.tensor(data.images.transpose(0, 3, 1, 2)).float() / 255
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(16):
        loss = torch.nn.functional.cross_entropy(model((images - 0.3053) / 0.3760), torch.tensor(data.labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    described = dict(
        **dict(task="classification", num_classes=10, label_names=NAMES, input_size=[1, 8, 8], crop_pct=1.0),
        **dict(interpolation="bicubic", mean=[0.3053], std=[0.376], architecture="metala_vit_nano"),
    )
    path = tmp_path_factory.mktemp("learned") / "best.pth"
    torch.save({"state_dict": model.state_dict(), KEY: described}, path)
    return path


def evaluated(file: Path, out: Path, options: dict | None = None) -> dict:
    config = load_config(str(DIGITS), {**SMALL, **(options or {})})
    (result,) = evaluate_checkpoints(config, [str(file)], str(out), device="cpu")
    return result


# --- what is written


def test_every_checkpoint_describes_itself(run_small, tmp_path):
    """Catches a checkpoint whose reader has to guess classes, preprocessing or tokens."""
    run_small({"train_cfg.max_epochs": 1, "test_dataloader.dataset.transform.crop_ratio": 0.5}, ema=0.9)
    described = [description_in(tmp_path / "run" / name) for name in ("last.pth", "best.pth")]
    run_small({"train_cfg.max_epochs": 1, **renamed(order=ORDER)}, work_dir=str(tmp_path / "other"))
    raw = torch.load(tmp_path / "other" / "last.pth", weights_only=True)
    assert "state_dict_ema" not in raw
    assert described[0] == described[1]
    assert {**described[0], "crop_pct": 1.0, "label_names": SHUFFLED} == raw[KEY]
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 2, "in_chans": 1, "img_size": 8}
    assert described[0] == dict(
        task="classification",
        kind=None,
        options={},
        architecture="metala_vit_nano",
        model_args=dict(num_classes=10, drop_path_rate=0.1, **small),
        num_classes=10,
        label_names=NAMES,
        input_size=[1, 8, 8],
        crop_pct=0.5,
        interpolation="bicubic",
        mean=[0.3053],
        std=[0.376],
        grid=[4, 4],
    )
    path = str(tmp_path / "run" / "best.pth")
    overlay = pretrained_cfg(described[0])
    arguments = dict(described[0]["model_args"], checkpoint_path=path, pretrained_cfg_overlay=overlay)
    model = timm.create_model(described[0]["architecture"], **arguments)
    assert timm.data.resolve_model_data_config(model)["mean"] == [0.3053]
    assert model.pretrained_cfg["label_names"] == NAMES


def test_reading():
    assert read_description({"description": torch.zeros(1)}) == {}, "a parameter of a bare state_dict"
    for wrong in ("text", dict(label_names="abc"), dict(label_names=[1, 2])):
        with pytest.raises(InputError, match="its description is .*, expected a dict"):
            read_description({"description": wrong})


def test_matching():
    assert match_classes("abc", "abc", "x") == [0, 1, 2]
    assert match_classes("abc", "cab", "x") == [2, 0, 1]
    assert match_classes("aba", "aba", "x") == [0, 1, 2]
    with pytest.raises(InputError, match="^x: missing: b; unknown: d$"):
        match_classes("abc", "adc", "x")
    with pytest.raises(InputError, match="^x: missing: b, c, d, e, f, g, h, i, j, k and 2 more$"):
        match_classes("abcdefghijklm", "a", "x")
    with pytest.raises(InputError, match="x: another order, and two classes are called a; give each"):
        match_classes("aba", "aab", "x")


# --- tests


@pytest.mark.long
def test_a_test_set_in_another_order(learned, tmp_path):
    """Catches predictions that are counted for the class that has their number, and not their name."""
    straight = evaluated(learned, tmp_path / "straight")
    shuffled = evaluated(learned, tmp_path / "shuffled", renamed(order=ORDER))
    assert straight["top1"] == shuffled["top1"] > 40
    assert straight["top5"] == shuffled["top5"]
    assert straight["loss"] == pytest.approx(shuffled["loss"], abs=1e-4)
    tables = [sorted((tmp_path / name / "per_class.csv").read_text().splitlines()) for name in ("straight", "shuffled")]
    assert tables[0] == tables[1]
    assert "in another order: they are matched by name" in log_of(tmp_path / "shuffled")


def test_a_test_set_of_other_classes(learned, tmp_path):
    """Catches scores of classes that the model was never taught."""
    message = r"of RenamedDigits \(test\) are not those that .* trained on: missing: 8, 9; unknown: acht, neun"
    with pytest.raises(InputError, match=message):
        evaluated(learned, tmp_path / "others", renamed(names=OTHERS))
    more = renamed(names=[*NAMES, "ten"])
    with pytest.raises(InputError, match=r"trained on: unknown: ten"):
        evaluated(learned, tmp_path / "more", more)


@pytest.mark.long
def test_a_checkpoint_without_names(learned, tmp_path):
    """Catches that a bare state_dict is refused, or taken without a word."""
    torch.save(torch.load(learned, weights_only=True)["state_dict"], tmp_path / "bare.pth")
    expected = evaluated(learned, tmp_path / "expected")["top1"]
    config = load_config(str(DIGITS), SMALL)
    results = evaluate_checkpoints(config, [str(tmp_path / "bare.pth")], str(tmp_path / "bare"), (8, 10), device="cpu")
    assert results[0]["top1"] == expected
    assert log_of(tmp_path / "bare").count("bare.pth has no class names: the order of the classes is taken") == 1


def test_other_preprocessing_is_said(learned, tmp_path):
    """Catches a test with the mean of other images, whose scores would only be lower."""
    changed = {"model.mean": (0.5,), "test_dataloader.dataset.transform.interpolation": "bilinear"}
    evaluated(learned, tmp_path / "out", changed)
    said = log_of(tmp_path / "out")
    assert "mean is [0.3053] in" in said
    assert "and [0.5] in the config; interpolation is bicubic in" in said
    assert "std is" not in said
    evaluated(learned, tmp_path / "larger", {"test_dataloader.dataset.transform.img_size": 12})
    assert "prepared otherwise" not in log_of(tmp_path / "larger")


# --- trainings that begin with weights


def started(small_config, options: dict) -> tuple[torch.nn.Module, str]:
    runner = VisionRunner.from_cfg(small_config({"model.backbone.num_heads": 2, **options}))
    runner.prepare()
    return runner.task, log_of(Path(runner.work_dir))


@pytest.mark.parametrize("how", ["model.init_from", "model.backbone.checkpoint_path"])
def test_a_head_is_put_in_the_order_of_the_data(learned, small_config, how):
    """Catches fine-tuning that begins with the head's rows at the wrong classes."""
    weights = torch.load(learned, weights_only=True)["state_dict"]
    task, said = started(small_config, {how: str(learned), **renamed(order=ORDER)})
    assert torch.equal(task.backbone.head.weight, weights["head.weight"][list(ORDER)])
    assert torch.equal(task.backbone.head.bias, weights["head.bias"][list(ORDER)])
    assert torch.equal(task.backbone.norm.weight, weights["norm.weight"])
    assert said.count("the rows of its head are put in that of the data") == 1
    task, said = started(small_config, {how: str(learned)})
    assert torch.equal(task.backbone.head.weight, weights["head.weight"])
    assert said.count("the rows of its head are put in that of the data") == 1, "nothing to do, nothing to say"


def test_other_classes_get_a_new_head(learned, small_config, tmp_path):
    """Catches a head that is kept because other classes happen to be as many; the optimiser must know the new one."""
    weights = torch.load(learned, weights_only=True)["state_dict"]
    config = small_config({"model.backbone.num_heads": 2, "model.init_from": str(learned), **renamed(names=OTHERS)})
    runner = VisionRunner.from_cfg(config)
    runner.prepare()
    head = runner.task.backbone.head
    assert not torch.isclose(head.weight, weights["head.weight"]).any()
    assert not head.bias.any()
    assert torch.equal(runner.task.backbone.norm.weight, weights["norm.weight"])
    known = {id(p) for group in runner.optim_wrapper.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in head.parameters()} <= known
    assert "is of other classes: missing: 8, 9; unknown: acht, neun: the head is new" in log_of(tmp_path / "run")


def test_a_start_without_names_or_of_another_number_is_said(learned, small_config, tmp_path):
    content = torch.load(learned, weights_only=True)
    torch.save(content["state_dict"], tmp_path / "bare.pth")
    task, said = started(small_config, {"model.init_from": str(tmp_path / "bare.pth"), **renamed(order=ORDER)})
    assert torch.equal(task.backbone.head.weight, content["state_dict"]["head.weight"])
    assert "bare.pth has no class names: if it has as many classes, its head is kept" in said
    for key in ("head.weight", "head.bias"):
        content["state_dict"][key] = content["state_dict"][key][:7]
    content[KEY] |= dict(num_classes=7, label_names=NAMES[:7])
    torch.save(content, tmp_path / "seven.pth")
    _, said = started(small_config, {"model.init_from": str(tmp_path / "seven.pth")})
    assert "seven.pth is of 7 classes, the data of 10: the head is new" in said


def test_a_start_from_another_model_names_both(learned, small_config):
    """Catches a hundred lines of keys where two names say it."""
    arguments = {
        "model.init_from": str(learned),
        "model.backbone.model_name": "metala_vit_tiny",
        "model.backbone.depth": 3,
    }
    with pytest.raises(
        InputError, match="was trained as metala_vit_nano, the config has metala_vit_tiny; set"
    ) as raised:
        VisionRunner.from_cfg(small_config(arguments))
    assert "\n" not in str(raised.value)


@pytest.mark.long
def test_load_from_and_resume_hold_the_names(run_small, small_config, tmp_path):
    """Catches a run that goes on with the outputs of other classes than those it has learned."""
    run_small({"train_cfg.max_epochs": 1})
    last = str(tmp_path / "run" / "last.pth")
    for options, message in (
        (renamed(order=ORDER), "--resume: RenamedDigits .train. has the classes that .* in another order; give them"),
        (renamed(names=OTHERS), "--resume: the classes of RenamedDigits .* missing: 8, 9; unknown: acht, neun"),
    ):
        with pytest.raises(InputError, match=message):
            run_small({"train_cfg.max_epochs": 2, **options}, resume="auto")
    with pytest.raises(InputError, match="load_from: .* in another order; .*, or set model.init_from=.*last.pth"):
        run_small({"load_from": last, **renamed(order=ORDER)}, work_dir=str(tmp_path / "x"))
    run_small({"load_from": last, "train_cfg.max_epochs": 1, **renamed(names=OTHERS)}, work_dir=str(tmp_path / "y"))
    assert "unknown: acht, neun; the weights of their outputs are kept" in log_of(tmp_path / "y")


def test_a_teacher_is_heard_by_name(learned, small_config):
    """Catches distillation towards the classes that have the teacher's numbers."""
    arguments = dict(model_name="metala_vit_nano", num_classes=10, checkpoint_path=str(learned), **ARGS)
    teacher = {**arguments, "num_heads": 2}
    images = torch.randn(4, 1, 8, 8)
    straight = classifier(distillation=dict(teacher=teacher))
    shuffled = classifier(distillation=dict(teacher=teacher))
    straight.start(NAMES)
    shuffled.start(SHUFFLED)
    assert torch.equal(shuffled.distillation.teach(images), straight.distillation.teach(images)[:, list(ORDER)])
    with pytest.raises(InputError, match="the teacher has other classes than the data: missing: 8, 9; unknown: acht"):
        straight.start(OTHERS)


def test_splits_of_other_classes(small_config):
    """Catches validation on classes that are named otherwise than those of the training, with what differs."""
    part = "val_dataloader.dataset"
    for arguments, message in (
        ({"order": ORDER}, r"RenamedDigits \(val\) differ from those of train: they are the same in another order"),
        ({"names": OTHERS}, r"\(val\) differ from those of train: missing: 8, 9; unknown: acht, neun"),
        ({"names": [*NAMES, "ten"]}, r"\(val\) differ from those of train: unknown: ten"),
    ):
        options = {f"{part}.type": "RenamedDigits", **{f"{part}.{key}": value for key, value in arguments.items()}}
        with pytest.raises(InputError, match=message):
            VisionRunner.from_cfg(small_config(options)).prepare()
