"""Compares the settings that weights were trained with, kept in their checkpoint and folder, with those given now."""

import ast
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.logging import print_log

from metala_vision.deploy.runtimes import ENDINGS
from metala_vision.description import plain
from metala_vision.errors import InputError

from .checkpoint import read_checkpoint

# Keys of a model that change how it computes or where its weights come from, but not what it is.
HOW = re.compile(r"compile|grad_checkpointing|channels_last|init_from|checkpoint_path|(pretrained|distillation).*")
# These keys, and those that change its training, or its test by intent. mean and std are compared elsewhere, with the
# description, and of a bias of the decay the weights tell: older ones have none.
FREE = re.compile(
    HOW.pattern
    + r"|img_size|decay_scale|decay_bias|mean|std|mixup.*|label_smoothing|train_only_head|min_size|max_size|short_side"
    r"|window|stride|\w*(drop|thresh|_test|_train|per_img|per_image|fraction|topk)\w*"
)
# What training alone reads. The size is in a test's own options.
OF_TRAINING = re.compile(
    HOW.pattern + r"|img_size|mixup.*|label_smoothing|train_only_head|\w*drop\w*|teacher.*|stage|calibration"
)
RATES = re.compile(r"lr|weight_decay")
ELSEWHERE = re.compile(
    r"type|dtype|loss_scale|accumulative_counts|optimizer\..*"
)  # of an optim_wrapper: compared by others
PLACE = re.compile(r"dataset\.root|num_workers|persistent_workers|pin_memory|batch_size")  # keys of a loader
SHOWN = 10  # settings in one message


def trained_settings(checkpoint: dict) -> dict:
    """The config of the run that wrote a checkpoint; empty where there is none that can be read.

    The checkpoint holds it as Python assignments, which are parsed and not run: a checkpoint may come from anybody.
    """
    meta = checkpoint.get("meta")
    return _parsed(meta.get("cfg")) if isinstance(meta, dict) else {}


def config_beside(file: str | Path, checkpoint: dict) -> Path | None:
    """The config that a run has left beside a checkpoint: of several, the newest that has the same model."""
    model = trained_settings(checkpoint).get("model")
    found = sorted(Path(file).parent.glob("*.py"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        left = _parsed(path.read_text(errors="replace")).get("model")
        if model is not None and left is not None and not differences(model, left, HOW):
            return path
    return None


def config_of_run(file: str | Path) -> Path:
    """The config that a run has left beside a checkpoint.

    Raises:
        InputError: no such checkpoint, or no such config beside it.
    """
    found = config_beside(file, read_checkpoint(file)) if Path(file).suffix not in ENDINGS else None
    if found is None:
        raise InputError(
            f"config: none was given, and that of the run is not beside {file}; "
            f"write `python tools/test.py CONFIG {file}`"
        )
    return found


def differences(then: Mapping, now: Mapping, ignored: re.Pattern, prefix: str = "model") -> dict[str, str]:
    """What differs between two parts of configs: for each key a text with both values.

    Args:
        then: the part of the run's config.
        now: the part of the config given now.
        ignored: matches the keys, without `prefix` and without `backbone.`, that are not compared.
        prefix: what the keys begin with.
    """
    flat = [_flattened(plain(part, prefix), prefix) for part in (then, now)]
    keys = [key for key in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(key, "") != flat[1].get(key, "")]
    texts = [{key: repr(part[key]) if key in part else "not set" for key in keys} for part in flat]
    return {
        key: f"{key}: {texts[0][key]} in the run, {texts[1][key]} now"
        for key in keys
        if not ignored.fullmatch(_within(key, prefix))
    }


def as_lines(found: Sequence[str]) -> str:
    """Differences as the last lines of a message, at most `SHOWN` of them."""
    more = [f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "\n".join([*(f"  {text}" for text in found[:SHOWN]), *more])


def check_model(config: Mapping, file: str | Path, checkpoint: dict, command: str, more: str = "") -> None:
    """Checks that a config has the model of a checkpoint. Weights alone do not tell: a scan, for example, has none.

    Args:
        config: the config given now.
        file: file of the checkpoint.
        checkpoint: what is in it.
        command: the tool that was called, such as "python tools/test.py".
        more: what follows the config in its command line.

    Raises:
        InputError: it has another one; the message lists the differences and says what to write.
    """
    model = trained_settings(checkpoint).get("model")
    found = differences(model, config["model"], FREE) if model is not None else {}
    if not found:
        return
    left = config_beside(file, checkpoint)
    if left is None:
        what = f"its config is not beside {file}; give these settings by --cfg-options"
    else:
        what = f"its run has left {left}; write `{command} {left} {more}`"
    raise InputError(f"config: {file} was trained with another model:\n{as_lines(list(found.values()))}\n{what}")


def check_optimizer(config: Mapping, file: str | Path, checkpoint: dict) -> None:
    """Checks that a config has the optimiser of the run that is to go on, whose state would be another's or forgotten.

    Its rates and weight decays are compared later, when they are known for each group of parameters.

    Args:
        config: the config given now.
        file: file of the checkpoint.
        checkpoint: what is in it.

    Raises:
        InputError: it has another one; the message lists the differences.
    """
    then = trained_settings(checkpoint).get("optim_wrapper", {}).get("optimizer")
    if then is None:
        return
    found = differences(then, config["optim_wrapper"]["optimizer"], RATES, "optim_wrapper.optimizer")
    if found:
        raise InputError(
            f"--resume: the run of {file} has another optimiser:\n{as_lines(list(found.values()))}\n"
            f"A run goes on as it began. To go on otherwise begin another one from its weights, with --cfg-options "
            f"load_from={file} and a new --work-dir"
        )


def changed_for_test(model: Mapping, checkpoint: dict) -> list[str]:
    """What a test changes in the model of a run, such as its `decay_scale`: for each key a text with both values.

    Args:
        model: of the config that the test is given.
        checkpoint: of the run.
    """
    then = trained_settings(checkpoint).get("model")
    return [] if then is None else list(differences(then, model, OF_TRAINING).values())


def warn_of_changes(config: Mapping, meta: dict, file: str) -> None:
    """Warns of settings of model, training data and steps that differ from those of the run that is resumed.

    Args:
        config: the config given now.
        meta: `meta` of the run's checkpoint.
        file: file of the checkpoint.
    """
    then = trained_settings({"meta": meta})
    found = [
        text
        for part, ignored in (("model", HOW), ("train_dataloader", PLACE), ("optim_wrapper", ELSEWHERE))
        if part in then
        for text in differences(then[part], config[part], ignored, part).values()
    ]
    if found:
        text = f"the run of {file} goes on with other settings:\n{as_lines(found)}"
        print_log(text, logger="current", level=logging.WARNING)


def _within(key: str, prefix: str) -> str:
    """A key without `prefix` and `backbone.`: `model.backbone.scan` and `model.scan` both become `scan`."""
    return key.removeprefix(f"{prefix}.").removeprefix("backbone.")


def _flattened(value: object, key: str) -> dict[str, object]:
    if isinstance(value, dict) and value:
        return {k: v for name, item in value.items() for k, v in _flattened(item, f"{key}.{name}").items()}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {k: v for i, item in enumerate(value) for k, v in _flattened(item, f"{key}.{i}").items()}
    return {key: value}


def _parsed(text: object) -> dict:
    """The assignments in a config as mmengine writes it; empty for any other text."""
    if not isinstance(text, str):
        return {}
    try:
        statements = ast.parse(text).body
        return {
            statement.targets[0].id: _value(statement.value)
            for statement in statements
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError):  # a config written by hand, or no config at all
        return {}


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("a dict of dicts")
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):  # a key is None where another dict is spread into it
        return {ast.literal_eval(key or node): _value(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
        return float(node.id)
    return ast.literal_eval(node)
