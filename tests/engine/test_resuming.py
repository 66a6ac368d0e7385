"""Checkpoints that are read and written, runs that go on, and what is refused so that none is lost."""

import errno
import pickle

import numpy as np
import pytest
import timm
import torch
from small_runs import prepare

from metala_vision.engine import ClassificationMetric, StepSeedHook, held
from metala_vision.engine.evaluation import evaluate_checkpoints
from metala_vision.engine.run.checkpoint import from_portable
from metala_vision.errors import InputError


def test_a_finished_run_is_not_overwritten(small_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pth").write_bytes(b"hours of work")
    with pytest.raises(InputError, match="holds a run already; continue it with --resume auto, or name another"):
        small_config()
    assert (tmp_path / "run" / "last.pth").read_bytes() == b"hours of work"


def test_checkpoints_that_do_not_fit(small_config, tmp_path):
    runner = prepare(small_config())
    with pytest.raises(InputError, match="checkpoint: no file"):
        runner.load_checkpoint(str(tmp_path / "none.pth"))
    for text in ("not a checkpoint", "epoch 1\n", "state", ""):
        (tmp_path / "text.pth").write_text(text)
        with pytest.raises(InputError, match="text.pth is no checkpoint that can be read") as raised:
            runner.load_checkpoint(str(tmp_path / "text.pth"))
        assert "weights_only" not in str(raised.value), "torch's own text advises to run what is in the file"
    torch.save(timm.create_model("metala_vit_nano", depth=1, in_chans=1).state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        InputError, match="(?s)of another model.*missing .*blocks.1.norm1.weight.*of another shape.*instead"
    ):
        runner.load_checkpoint(str(tmp_path / "other.pth"))
    model = runner.model.backbone
    former = {k: v.clone() for k, v in model.state_dict().items()}
    truncated = (tmp_path / "other.pth").read_bytes()[:5000]
    (tmp_path / "half.pth").write_bytes(truncated)
    with pytest.raises(InputError, match="half.pth is no checkpoint"):
        runner.load_checkpoint(str(tmp_path / "half.pth"))
    assert all(torch.equal(v, former[k]) for k, v in model.state_dict().items()), (
        "a refused checkpoint changed the model"
    )


def test_older_checkpoints(small_config, tmp_path):
    """Catches weights of a run from before there were grid and bias of the decay that are refused, or given others'."""
    runner = prepare(small_config())
    model = runner.model.backbone
    older = {k: v for k, v in model.state_dict().items() if k != "nominal_grid" and "decay_bias" not in k}
    assert len(older) < len(model.state_dict()) - 1
    torch.save(dict(state_dict=older), tmp_path / "older.pth")
    runner.load_checkpoint(str(tmp_path / "older.pth"))
    assert model.nominal_grid.tolist() == [0, 0]
    assert all(torch.count_nonzero(block.mixer.decay_bias) == 0 for block in model.blocks)
    with pytest.raises(InputError, match="write --cfg-options model.backbone.decay_bias=False"):
        from_portable(dict(state_dict=older), runner.task, resume=True)


class Evil:
    def __reduce__(self):
        return (print, ("code ran while a checkpoint was loaded",))


def test_checkpoints_run_no_code(small_config, tmp_path, capsys):
    runner = prepare(small_config())
    torch.save(dict(state_dict=runner.model.backbone.state_dict(), extra=Evil()), tmp_path / "evil.pth")
    with pytest.raises(InputError, match="no checkpoint that can be read"):
        runner.load_checkpoint(str(tmp_path / "evil.pth"))
    assert "code ran" not in capsys.readouterr().out
    pickle.loads(pickle.dumps(Evil()))  # the trap is real
    assert "code ran" in capsys.readouterr().out


def test_resume_is_of_the_same_run(run_small, small_config, tmp_path):
    """Seed and precision come from the checkpoint; options that contradict it are refused."""
    run_small({"train_cfg.max_epochs": 1}, seed=5)
    last = tmp_path / "run" / "last.pth"
    assert small_config(resume="auto").randomness.seed == 5
    with pytest.raises(InputError, match="--seed: got 1, but the run of .* has seed 5"):
        small_config(resume="auto", seed=1)
    with pytest.raises(InputError, match="--amp: got bfloat16, but the run of .* has float32"):
        small_config(resume="auto", amp="bfloat16")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "last.pth").write_bytes(b"another run")
    with pytest.raises(InputError, match="holds a run already"):
        small_config(resume=str(last), work_dir=str(tmp_path / "other"))
    torch.save(timm.create_model("metala_vit_nano").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="holds weights alone; to start from them set load_from="):
        small_config(resume=str(tmp_path / "weights.pth"), work_dir=str(tmp_path / "new"))


@pytest.mark.long
def test_resume_with_other_rates_is_refused(run_small, tmp_path):
    """mmengine goes on by the checkpoint's schedule and rates, whatever the config says."""
    run_small({"train_cfg.max_epochs": 1})
    for options, message in [
        ({"train_cfg.max_epochs": 4, "param_scheduler.1.end": 4}, r"param_scheduler.1.end is 10 and not 20"),
        ({"optim_wrapper.optimizer.lr": 1e-4}, r"lr of group 0 is 0.002 and not 0.0001"),
        ({"optim_wrapper.optimizer.weight_decay": 0.2}, "weight_decay of group 1 is 0.05 and not 0.2"),
        ({"param_scheduler": [dict(type="ConstantLR", factor=1.0)]}, "param_schedulers is 2 and not 1"),
    ]:
        with pytest.raises(
            InputError, match=f"(?s)--resume: .*has other rates than the config: .*{message}.*load_from"
        ):
            run_small(options, resume="auto")
    for options, message in [
        ({"optim_wrapper.optimizer.betas": (0.5, 0.6)}, r"optimizer.betas: .* in the run, \[0.5, 0.6\] now"),
        ({"optim_wrapper.optimizer": dict(type="SGD", lr=0.1)}, "optimizer.type: 'AdamW' in the run, 'SGD' now"),
    ]:
        with pytest.raises(InputError, match=f"(?s)--resume: .*has another optimiser:.*{message}.*load_from"):
            run_small(options, resume="auto")
    amp = {"optim_wrapper.type": "AutocastOptimWrapper", "optim_wrapper.dtype": "bfloat16"}
    with pytest.raises(InputError, match="optim_wrapper: got bfloat16, but the run of .* has float32"):
        run_small(amp, resume="auto")


@pytest.mark.long
@pytest.mark.parametrize(
    ("schedule", "other"),
    [
        (dict(type="MultiStepLR", milestones=[1, 2]), dict(milestones=[2, 3])),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [
                (
                    dict(type="CosineRestartLR", periods=[1, 2], restart_weights=[1, 1], eta_min=0.0),
                    dict(periods=[2, 2]),
                ),
                (
                    dict(type="CosineAnnealingParamScheduler", param_name="weight_decay", eta_min=1.0, end=4),
                    dict(eta_min=0.5),
                ),
            ]
        ),
    ],
)
def test_schedules_of_every_kind_resume(run_small, schedule, other):
    run_small({"train_cfg.max_epochs": 1, "param_scheduler": [schedule]})
    with pytest.raises(InputError, match="--resume: .*has other rates"):
        run_small({"train_cfg.max_epochs": 2, "param_scheduler": [{**schedule, **other}]}, resume="auto")
    run_small({"train_cfg.max_epochs": 2, "param_scheduler": [schedule]}, resume="auto")


def test_one_run_in_a_folder(tmp_path, monkeypatch):
    taken = pytest.raises(InputError, match="--work-dir: another run is writing into .*run; name another")
    with held(tmp_path / "run"), taken, held(tmp_path / "run"):
        pass
    with held(tmp_path / "run"):
        pass

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", no_locks)
        with pytest.warns(UserWarning, match="locks no files"), held(tmp_path / "run"):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is no folder that can be written"), held(tmp_path / "file"):
        pass


@pytest.mark.long
def test_resume_into_another_folder_takes_the_best_along(run_small, tmp_path):
    """best.pth must be the best of the whole run, also where the first part lies elsewhere."""
    options = {"train_cfg.max_epochs": 3}
    first, _ = run_small({"train_cfg.max_epochs": 1}, work_dir=str(tmp_path / "first"))
    path = tmp_path / "first" / "last.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["message_hub"]["runtime_info"]["best_score"] = 101.0  # nothing can beat it
    torch.save(checkpoint, path)
    runner, result = run_small(options, work_dir=str(tmp_path / "second"), resume=str(path))
    assert result["best_epoch"] == 1
    logged = runner.message_hub.log_scalars["train/loss"].data[0]
    assert len(logged) == runner.log_processor.window_size == 10, "of 15 steps: mmengine copies them in every one"
    assert (tmp_path / "second" / "best.pth").read_bytes() == (tmp_path / "first" / "best.pth").read_bytes()
    (tmp_path / "first" / "best.pth").unlink()
    _, result = run_small(options, work_dir=str(tmp_path / "third"), resume=str(path))
    assert result["best_epoch"] in (2, 3)
    saved = torch.load(tmp_path / "third" / "best.pth", weights_only=True)
    assert saved["meta"]["epoch"] == result["best_epoch"]


def test_weights_that_are_not_finite_are_not_saved(run_small, tmp_path, monkeypatch):
    """A last step may have a finite loss, and a gradient that is not: no later step would show it."""
    after_train_iter = StepSeedHook.after_train_iter

    def poison(self, runner, batch_idx, **kwargs):
        if runner.iter == 9:
            next(runner.model.parameters()).data[0] = float("nan")

    monkeypatch.setattr(StepSeedHook, "after_train_iter", poison)
    with pytest.raises(InputError, match=r"weights are not finite after step 10 \(epoch 2\)"):
        run_small({"train_cfg.val_begin": 9})
    monkeypatch.setattr(StepSeedHook, "after_train_iter", after_train_iter)
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["meta"]["epoch"] == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("save_best", "scores", "best"),
    [("loss", (2.0, 1.0, 1.5), 2), ("top1", (2.0, 1.0, 1.5), 1), ("top1", (float("nan"), 1.0, 1.5), 3)],
)
def test_best_is_the_least_loss_and_the_greatest_score(run_small, monkeypatch, save_best, scores, best):
    given = iter(scores)

    def metrics(self, results):
        self.confusion, self.images = np.eye(10, dtype=int), 10
        return {"top1": 0.0, "loss": 0.0, save_best: next(given, 0.0)}

    monkeypatch.setattr(ClassificationMetric, "compute_metrics", metrics)
    options = {"train_cfg.max_epochs": 3, "default_hooks.checkpoint.save_best": save_best}
    _, result = run_small(options)
    assert result["best_epoch"] == best


@pytest.mark.long
def test_given_weights_survive_the_start_of_training(run_small, small_config, tmp_path):
    """mmengine's init_weights would initialise the backbone anew and train from scratch."""
    first, _ = run_small({"train_cfg.max_epochs": 1})
    weights = str(tmp_path / "run" / "best.pth")
    options = {"model.backbone.checkpoint_path": weights, "optim_wrapper.optimizer.lr": 1e-12}
    second, _ = run_small({**options, "train_cfg.max_epochs": 1}, work_dir=str(tmp_path / "second"))
    saved = torch.load(weights, weights_only=True)["state_dict"]
    for name, value in second.model.backbone.state_dict().items():
        torch.testing.assert_close(value, saved[name], rtol=0, atol=1e-6)


def test_resume_from_nowhere(small_config, tmp_path):
    with pytest.raises(InputError, match="--resume: no file .*none.pth; give the last.pth of a run, or --resume auto"):
        small_config(resume=str(tmp_path / "none.pth"))
    assert "load_from" not in small_config(resume="auto"), "auto starts afresh where there is nothing to resume"


@pytest.mark.long
def test_a_run_does_not_end_before_it_was_stopped(run_small):
    """Catches a result that names fewer epochs than its weights have had."""
    run_small()
    with pytest.raises(InputError, match="has had 2 epochs, and train_cfg.max_epochs is 1; give it more"):
        run_small({"train_cfg.max_epochs": 1}, resume="auto")


@pytest.mark.long
def test_what_a_run_began_with_may_be_gone(run_small, small_config, tmp_path):
    """Catches a test, or the continuation of a run, that asks for the file or the download that it began with."""
    first = tmp_path / "first.pth"
    arguments = {key: value for key, value in small_config().model.backbone.items() if key != "drop_path_rate"}
    torch.save(timm.create_model(**{**arguments, "model_name": "metala_vit_nano"}).state_dict(), first)
    options = {"model.backbone.checkpoint_path": str(first), "train_cfg.max_epochs": 1}
    run_small(options)
    first.unlink()
    run_small({**options, "train_cfg.max_epochs": 2}, resume="auto")
    config = small_config(options, work_dir=str(tmp_path / "other"))
    assert evaluate_checkpoints(config, [str(tmp_path / "run" / "last.pth")])[0]["images"] == 359
