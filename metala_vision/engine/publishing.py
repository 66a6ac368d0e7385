"""Weights as timm and the hub take them: safetensors, config.json in timm's form, and a model card."""

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from torch import nn

from metala_vision.description import read_described, size_name
from metala_vision.errors import InputError
from metala_vision.files import write_atomic, write_json
from metala_vision.models.described import described_model

from .metrics.scores import SCORES
from .run.checkpoint import BEST, EMA_KEY, LAST, WEIGHTS
from .run.settings import trained_settings

TASKS = ("classification", "linearization")
CONFIG = "config.json"


def publish(
    run: str | Path, out: str | Path, name: str | None = None, license: str = "unknown", weights: str = "auto"
) -> dict:
    """Writes a run's weights into a folder that `timm.create_model("local-dir:OUT", pretrained=True)` loads.

    The folder is what the hub expects of a model of timm, for transformers' TimmWrapper too.

    Args:
        run: the folder of a run, whose best weights are taken, or its last ones; or a checkpoint of one.
        out: a folder that does not exist yet, or is empty.
        name: what the card calls the model; None is the name of the run's folder.
        license: of the weights, as the hub abbreviates it.
        weights: "auto" (the moving average where there is one), "ema" or "raw".

    Returns:
        dict(folder, files, model, parameters, weights, scores).

    Raises:
        InputError: no run, one of a task that the hub's form does not have, weights that do not fit the model, or an
            `out` that holds something.
    """
    out, file = Path(out), checkpoint_of(run)
    if weights not in WEIGHTS:
        raise InputError(f"--weights: got {weights!r}, expected one of {WEIGHTS}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out: {out} holds something already; name another folder or remove it")
    checkpoint, described = read_described(file, TASKS, "a classifier's or a linearized model's")
    used = "ema" if weights != "raw" and EMA_KEY in checkpoint else "raw"
    if weights == "ema" and used == "raw":
        raise InputError(f"--weights: got 'ema', but {file} holds no moving average; use raw")
    state = dict(checkpoint[EMA_KEY if used == "ema" else "state_dict"])
    model = _model(described, state, file)
    height, width = described["input_size"][1:]
    scores = _scores(file, size_name(height if height == width else (height, width)), used, described["crop_pct"])
    title = name or file.resolve().parent.name
    card = _card(title, described, model, trained_settings(checkpoint), checkpoint, scores, license, used)
    try:
        with tempfile.TemporaryDirectory(dir=None if out.exists() else _made(out.parent), prefix=".publish_") as folder:
            _write(Path(folder) / "made", model, described, card)
            _move(Path(folder) / "made", out)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written: {error}") from error
    return dict(
        folder=str(out),
        files=sorted(path.name for path in out.iterdir()),
        model=described["architecture"],
        parameters=_parameters(model),
        weights=used,
        scores=scores,
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _move(made: Path, out: Path) -> None:
    """Moves all files of a folder into another, or none; one that is there may be a link or a disk, and stays so."""
    out.mkdir(exist_ok=True)
    files = sorted(made.iterdir(), key=lambda path: path.name == CONFIG)  # last: without it there is no model yet
    try:
        for path in files:
            shutil.move(path, out / path.name)
    except BaseException:
        for path in files:
            (out / path.name).unlink(missing_ok=True)
        raise


def _write(out: Path, model: nn.Module, described: dict, card: str) -> None:
    data = {key: described[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct") if described[key]}
    data["crop_mode"] = "center"  # as EvalTransform has it, whatever timm's own weights of the model want
    names = described["label_names"]
    save_for_hf(
        model,
        str(out),
        model_config=dict(label_names=names) if names else None,
        model_args=dict(described["model_args"]),
        data_config=data,
        safe_serialization=True,
    )
    config = json.loads((out / CONFIG).read_text())
    config["model_args"].pop("num_classes", None)  # transformers hands it over itself, and timm knows it from above
    write_json(out / CONFIG, config)
    write_atomic(out / "README.md", card.encode())


def checkpoint_of(run: str | Path) -> Path:
    """The best checkpoint of a run's folder, or its last; a file is taken as it is.

    Raises:
        InputError: there is none.
    """
    path = Path(run)
    if path.is_dir():
        found = [path / name for name in (BEST, LAST) if (path / name).is_file()]
        if not found:
            raise InputError(
                f"RUN: {path} has neither {BEST} nor {LAST}; expected the folder of a run, or a checkpoint"
            )
        return found[0]
    if not path.is_file():
        raise InputError(f"RUN: no folder and no file {path}")
    return path


def _model(described: dict, state: dict, file: Path) -> nn.Module:
    """The model of a description with the weights of a checkpoint."""
    try:
        return described_model(described, state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"RUN: {file}: {error}") from error


def _scores(file: Path, trained: str, used: str, crop: float | None) -> dict[str, dict[str, float]]:
    """Scores of this checkpoint by the size of the images, from the results that its run and tests have left beside it.

    Left out are tests that changed the model (another `decay_scale`, say), or were of other images, weights or another
    crop than the run's own test.

    Args:
        file: the checkpoint.
        trained: size of the run.
        used: "ema" or "raw", the weights that are published.
        crop: share of an image that the run's own test keeps.
    """
    own = _read(file.parent / "result.json")
    own = own if isinstance(own, dict) and "epochs" in own else {}
    found: dict[str, dict[str, float]] = {}
    for path in sorted(file.parent.glob("**/result.json"), key=lambda path: (len(path.parts), path)):
        results = _read(path)
        for result in results if isinstance(results, list) else [results]:
            if not isinstance(result, dict) or Path(str(result.get("checkpoint"))).name != file.name:
                continue
            scores = {key: result[key] for key in SCORES if isinstance(result.get(key), int | float) and key != "loss"}
            if not scores or not (result == own or result.get("changed") == []):
                continue
            if result.get("weights", used) != used or _images(result) != _images(own or result):
                continue
            if result.get("crop_ratio") not in (None, crop):
                continue
            size = result.get("img_size")
            size = tuple(size) if isinstance(size, list) else size
            found.setdefault(trained if size is None else size_name(size), scores)  # the run's own comes first
    return dict(sorted(found.items(), key=lambda item: _area(item[0])))


def _images(result: dict) -> tuple[object, object]:
    """What a result was found on."""
    return result.get("dataset"), result.get("split")


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # there is none, or it is another program's
        return None


def _area(size: str) -> int:
    return math.prod(map(int, size.split("x"))) if "x" in size else int(size) ** 2


def _card(
    title: str,
    described: dict,
    model: nn.Module,
    settings: dict,
    checkpoint: dict,
    scores: dict[str, dict[str, float]],
    license: str,
    used: str,
) -> str:
    """The model card: front matter for the hub, and what people ask of weights."""
    task = "image-classification" if described["task"] == "classification" else "image-feature-extraction"
    train = settings.get("train_dataloader", {}).get("dataset", {})
    meta = checkpoint.get("meta") or {}
    channels, height, width = described["input_size"]
    lines = [
        "---",
        f"tags:\n- {task}\n- timm\n- metala_vision",
        f"pipeline_tag: {task}",
        "library_name: timm",
        f"license: {license}",
        "---",
        f"# {title}",
        "",
        f"`{described['architecture']}`, {_parameters(model) / 1e6:.2f} M parameters"
        + (f", {described['num_classes']} classes." if task == "image-classification" else ", features."),
        "",
        "| | |",
        "|---|---|",
        f"| data | {train.get('type', 'not known')} |",
        f"| images | {height} x {width}, {channels} channels |",
        f"| mean | {_numbers(described['mean'])} |",
        f"| std | {_numbers(described['std'])} |",
        f"| recipe | {_recipe(settings, meta)} |",
        f"| weights | {'moving average' if used == 'ema' else 'as trained'} |",
        f"| licence | {license} |",
        "",
        "## Accuracy",
        "",
        *_table(scores),
        "",
        "## Images of other sizes",
        "",
        _resolution_rule(described, model),
        "",
        "## Use",
        "",
        "```python",
        "import timm",
        "import metala_vision",
        "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        "```",
        "",
        "FOLDER is where these files are; from the hub it is `hf-hub:OWNER/NAME`.",
    ]
    if described["label_names"]:
        lines += ["", "## Classes", "", ", ".join(described["label_names"])]
    return "\n".join(lines) + "\n"


def _recipe(settings: dict, meta: dict) -> str:
    epochs = settings.get("train_cfg", {}).get("max_epochs")
    optimizer = settings.get("optim_wrapper", {}).get("optimizer", {})
    batch = settings.get("train_dataloader", {}).get("batch_size")
    parts = [
        f"{meta.get('epoch', epochs)} of {epochs} epochs" if epochs else "",
        f"batches of {batch}" if batch else "",
        f"{optimizer.get('type')}, rate {optimizer.get('lr')}" if optimizer else "",
        f"seed {meta['seed']}" if "seed" in meta else "",
    ]
    return ", ".join(part for part in parts if part) or "not known"


def _table(scores: dict[str, dict[str, float]]) -> list[str]:
    if not scores:
        return ["No test has been run."]
    keys = [key for key in SCORES if any(key in values for values in scores.values())]
    lines = [
        "| pixels | " + " | ".join(f"{SCORES[key].name}{SCORES[key].unit and ' (percent)'}" for key in keys) + " |"
    ]
    lines.append("|---" * (1 + len(keys)) + "|")
    for size, values in scores.items():
        cells = [f"{values[key]:.{SCORES[key].digits}f}" if key in values else "" for key in keys]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return lines


def _resolution_rule(described: dict, model: nn.Module) -> str:
    grid = described.get("grid")
    if grid is None or not described["architecture"].startswith(("metala_vit", "linearized")):
        return "As timm's model of this name takes them."
    positions = ", and the position embedding is resampled" if getattr(model, "pos_embed", None) is not None else ""
    grid_text = f"The weights were trained on a grid of {grid[0]} x {grid[1]} tokens"
    if not any(hasattr(module, "nominal_grid") for module in model.modules() if module is not model):
        return f"Any height and width will do{positions}. {grid_text}."  # nothing in it forgets
    return (
        f"Any height and width will do{positions}. {grid_text}, which is saved with them; on another grid the decay of "
        f"the scans is scaled by the ratio of the tokens, so that they remember the same share of an image. "
        f'`decay_scale="none"` leaves it as it is.'
    )


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
