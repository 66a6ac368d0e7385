"""Associative recall through the runner: it learns, resumes, reports, is tested again, and says what does not fit."""

import json

import pytest
import torch
from sinks import check_sinks
from small_runs import ROOT, assert_same_checkpoint, train_one_epoch

from metala_vision.engine import (
    AnswerMetric,
    SequenceModel,
    VisionRunner,
    apply_train_options,
    load_config,
    set_num_classes,
)
from metala_vision.engine.browse import browse
from metala_vision.engine.dry_run import describe, dry_run
from metala_vision.engine.evaluation import evaluate_checkpoints, render
from metala_vision.errors import InputError

RECALL = str(ROOT / "configs/mqar/metala_64_4_mqar_2e.py")
SIZES = dict(vocab_size=16, tokens=8, pairs=2)
SMALL = {
    **{
        f"{split}_dataloader.dataset.{key}": value for split in ("train", "val", "test") for key, value in SIZES.items()
    },
    **{f"{split}_dataloader.num_workers": 0 for split in ("train", "val", "test")},
    **{f"{split}_dataloader.persistent_workers": False for split in ("train", "val", "test")},
    "model.backbone.vocab_size": 16,
    "model.backbone.embed_dim": 32,
    "train_dataloader.batch_size": 64,
    "train_dataloader.dataset.examples": 640,
    "val_dataloader.dataset.examples": 100,
    "test_dataloader.dataset.examples": 100,
    "train_cfg.max_epochs": 2,
    "param_scheduler.1.end": 2,
}


@pytest.fixture
def config_of(tmp_path, request):
    """Makes configs: config_of(options, **train options)."""
    made = []

    def make(options: dict | None = None, **train_options):
        config = load_config(RECALL, {**SMALL, **(options or {})})
        apply_train_options(config, **{"work_dir": str(tmp_path / "run"), **train_options})
        made.append(config)
        config.experiment_name = f"{request.node.nodeid}_{len(made)}"
        return config

    return make


def test_a_run_leaves_its_results(config_of, tmp_path, capsys):
    config = config_of(ema=0.9)
    result = VisionRunner.from_cfg(config).train_and_test()
    folder = tmp_path / "run"
    check_sinks(folder, capsys.readouterr().out)
    assert (result["images"], result["asked"], result["tokens"], result["pairs"]) == (100, 200, 8, 2)
    assert 0 <= result["sequences"] <= result["answers"] <= 100
    for name in ("last.pth", "history.json", "curves.png"):
        assert (folder / name).is_file(), name
    described = torch.load(folder / "last.pth", weights_only=True)["description"]
    assert described["architecture"] == "metala_lm"
    assert described["model_args"]["mixer"] == "metala"
    (tested,) = evaluate_checkpoints(config_of(work_dir=str(tmp_path / "other")), [str(folder / "last.pth")])
    assert tested["answers"] == result["answers"]
    assert "answers right" in render([tested])
    json.dumps(result)


@pytest.mark.slow
def test_recall_is_learned(config_of):
    """Catches labels beside the places that ask: who looks at the values alone is right half of the time."""
    options = {
        "train_dataloader.dataset.examples": 6400,
        "train_cfg.max_epochs": 7,
        "train_cfg.val_interval": 7,
        "param_scheduler.1.end": 7,
        "optim_wrapper.optimizer.lr": 1e-2,
    }
    result = VisionRunner.from_cfg(config_of(options)).train_and_test()
    assert result["answers"] > 90


@pytest.mark.long
def test_a_resumed_run_is_the_same(config_of, tmp_path):
    VisionRunner.from_cfg(config_of(work_dir=str(tmp_path / "straight"))).train_and_test()
    train_one_epoch(config_of())
    resumed = VisionRunner.from_cfg(config_of(resume="auto"))
    resumed.train_and_test()
    assert_same_checkpoint(tmp_path / "straight" / "last.pth", tmp_path / "run" / "last.pth")


def test_dry_run_and_browse(config_of, tmp_path):
    result = dry_run(VisionRunner.from_cfg(config_of()))
    assert result["images_per_step"] == 64
    assert "metala_lm" in describe(result)
    with pytest.raises(InputError, match="--num-classes: sequences have tokens and no classes"):
        set_num_classes(config_of(), 3)
    browse(config_of(), "train", tmp_path / "browsed.png", images=4)
    assert (tmp_path / "browsed.png").is_file()


def test_answers_by_hand():
    """Three sequences with 2, 1 and 2 questions: 3 of 5 right, and one sequence of 3 wholly."""
    metric = AnswerMetric()
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [9, 0, 0], [0, 0, 9], [9, 0, 0]])
    batch = dict(logits=logits, labels=torch.tensor([0, 1, 1, 2, 1]), sequences=torch.tensor([0, 0, 1, 2, 2]))
    metric.process({}, [batch])
    found = metric.evaluate(3)
    assert found["answers"] == pytest.approx(60)
    assert found["sequences"] == pytest.approx(100 / 3)
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, batch["labels"]).item())


def test_the_loss_is_of_the_places_that_ask():
    torch.manual_seed(0)
    model = SequenceModel(dict(model_name="metala_lm", vocab_size=20, embed_dim=16))
    tokens, labels = torch.randint(0, 20, (3, 12)), torch.full((3, 12), -100)
    labels[0, 4], labels[2, 11] = 7, 3
    logits = model(tokens)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert model(tokens, labels, mode="loss")["loss"].item() == pytest.approx(expected.item())
    (predicted,) = model(tokens, labels, mode="predict")
    assert torch.allclose(predicted["logits"], torch.stack([logits[0, 4], logits[2, 11]]))
    assert predicted["sequences"].tolist() == [0, 2]
    with pytest.raises(InputError, match="labels: got None"):
        model(tokens, mode="loss")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.backbone.vocab_size": 64}, "vocab_size is 64, but AssociativeRecall .train. has 16 tokens; set model"),
        ({"model.backbone.max_tokens": 6}, "max_tokens is 6, but AssociativeRecall .train. has sequences of 8"),
        (
            {"model.backbone.mixer": "inline"},
            "metala_lm: scan: got 'causal', but the mixer 'inline' has no causal form",
        ),
        ({"model.backbone.mixer": "s4"}, "metala_lm: mixer: got 's4', expected one of"),
        ({"model.backbone.model_name": "metala_ml"}, "got model_name 'metala_ml', expected 'metala_lm'"),
        ({"model.backbone.heads": 2}, "metala_lm: .*unexpected keyword argument 'heads'"),
        ({"train_dataloader.dataset.pairs": 9}, "got 9 pairs in 8 tokens"),
        ({"default_hooks.checkpoint.save_best": "top1"}, "save_best: got 'top1', expected one of .'answers', "),
    ],
    ids=str,
)
def test_what_does_not_fit(options, message, config_of):
    with pytest.raises(InputError, match=message):
        VisionRunner.from_cfg(config_of(options)).prepare()


def test_pictures_are_no_sequences(config_of):
    config = config_of()
    config.train_dataloader.dataset = dict(type="Digits", split="train")
    with pytest.raises(InputError, match="data: Digits .train. has no sequences of tokens"):
        VisionRunner.from_cfg(config).prepare()
