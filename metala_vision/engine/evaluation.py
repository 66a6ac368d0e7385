"""Tests checkpoints: several in one go, at several resolutions, with the results of each class."""

import copy
import gc
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import MODELS
from rich.console import Console
from rich.table import Table

from metala_vision.deploy.runtimes import ENDINGS
from metala_vision.description import read_description, size_name
from metala_vision.errors import InputError
from metala_vision.files import to_csv, write_atomic, write_json

from .exported import ExportedBackbone, check_sizes, is_exported, open_exported
from .metrics.scores import SCORES
from .metrics.size_plots import plot_sizes
from .run.agreement import class_order, warn_of_preprocessing
from .run.checkpoint import BEST, HISTORY, LAST, from_portable, read_checkpoint
from .run.config import config_errors
from .run.options import apply_test_options
from .run.runner import VisionRunner
from .run.settings import changed_for_test, check_model


def evaluate_checkpoints(
    config: Config,
    checkpoints: Sequence[str],
    out: str | None = None,
    resolutions: Sequence[int | tuple[int, int] | None] = (None,),
    crop_ratio: float | None = None,
    weights: str = "auto",
    device: str = "auto",
) -> list[dict]:
    """Tests every checkpoint at every resolution; writes all results and pictures under `out`.

    Args:
        config: with the model and the test split.
        checkpoints: files of the same model, or classifiers that `tools/export.py` has written. Classes that they name
            in another order than the test set are matched by name.
        out: folder for the results; None is `test` beside the first checkpoint.
        resolutions: sides of square test images, or (height, width); None for the config's own.
        crop_ratio: share of the short side that the central crop keeps; None for the config's own.
        weights: "auto" (the moving average where there is one), "ema" or "raw".
        device: as for `tools/test.py`.

    Returns:
        One result for each pair. `out` holds those so far as `result.json` and `results.csv`, for each pair a folder
        with its confusion matrix and `per_class.csv`, and with several resolutions the picture `resolutions.png`.

    Raises:
        InputError: a file or an option that does not fit, before anything is tested; images that do not fit the memory.
    """
    folder = Path(out) if out is not None else Path(checkpoints[0]).parent / "test"
    _check_place(folder)
    if len(set(resolutions)) < len(resolutions):
        raise InputError(f"--resolutions: got {' '.join(size_name(s) for s in resolutions if s)}, expected none twice")
    names = _short_names(checkpoints)
    cells = []
    for (checkpoint, name), size in itertools.product(zip(checkpoints, names), resolutions):
        cell = copy.deepcopy(config)  # its own `copy` shares the transforms
        apply_test_options(cell, checkpoint, size, crop_ratio, device)
        size = (cell.test_dataloader.dataset.get("transform") or {}).get("img_size")
        size = tuple(size) if isinstance(size, list) else size
        if len(checkpoints) > 1:
            place = folder / (name if size is None else f"{name}_{size_name(size)}")
        else:
            place = folder / size_name(size) if size is not None and len(resolutions) > 1 else folder
        cell.work_dir = str(place)
        cell.experiment_name = f"test {place}"  # mmengine keeps one message hub for each name
        cells.append((checkpoint, size, cell))
    described, changed = _check_weights(cells[0][2], checkpoints, weights)
    for file, size, cell in cells:
        if is_exported(file):
            check_sizes(file, described[file], [size], cell.test_dataloader.batch_size)
    orders: dict[str, list[int] | None] = {}
    results = []
    for checkpoint, size, cell in cells:
        runner = VisionRunner.from_cfg(cell)
        if not orders:
            (dataset,) = runner.build_parts()
            orders = {file: class_order(one, dataset, file) for file, one in described.items()}
            for file, one in described.items():
                warn_of_preprocessing(one, runner.description, file)
        results.append(_test(runner, checkpoint, size, weights, orders[checkpoint]) | {"changed": changed[checkpoint]})
        del runner
        gc.collect()  # a runner is a circle of references: its workers and its model would stay
        if is_main_process():  # after each: whatever happens to the next one
            write_json(folder / "result.json", results if len(cells) > 1 else results[0])
            write_atomic(folder / "results.csv", to_csv([_flat(result) for result in results]))
    if is_main_process() and len(resolutions) > 1:
        labels = dict(zip(checkpoints, names))
        score = next(key for key in SCORES if key in results[0])
        rows = [
            dict(name=labels[r["checkpoint"]], size=r["img_size"], mean=r[score], low=r[score], high=r[score])
            for r in results
        ]
        plot_sizes(rows, folder / "resolutions.png", title=results[0]["model"], score=score)
    return results


def _check_place(folder: Path) -> None:
    """Checks that a test may write into a folder: it leaves files of the names that a run leaves."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out: {folder} is a file; name a folder")
    of_run = [name for name in (LAST, BEST, HISTORY) if (folder / name).exists()]
    if of_run:
        raise InputError(
            f"--out: {folder} is the folder of a run, with {of_run[0]} in it, whose config and result a test would "
            f"replace; name another, such as {folder / 'test'}"
        )


def _check_weights(
    config: Config, checkpoints: Sequence[str], weights: str
) -> tuple[dict[str, dict], dict[str, list[str]]]:
    """Checks that all checkpoints fit the config's model and have the weights asked for.

    Returns:
        Their descriptions, and what each is tested with that it was not trained with.
    """
    with config_errors():
        model = MODELS.build(config.model)
    described: dict[str, dict] = {}
    changed: dict[str, list[str]] = {}
    for file in checkpoints:
        if is_exported(file):
            if weights != "auto" and all(map(is_exported, checkpoints)):
                raise InputError(f"--weights: got {weights!r}, but {file} is exported and has one kind; leave it out")
            described[file], changed[file] = open_exported(file, model)[1], []
            continue
        checkpoint = read_checkpoint(file)
        changed[file] = changed_for_test(config["model"], checkpoint)
        check_model(config, file, checkpoint, "python tools/test.py", file)
        try:
            described[file] = read_description(checkpoint)
            from_portable(checkpoint, model, weights)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
    return described, changed


def _test(
    runner: VisionRunner,
    checkpoint: str,
    size: int | tuple[int, int] | None,
    weights: str,
    order: Sequence[int] | None,
) -> dict:
    """One checkpoint at one image size; the model is resized where its position embedding asks for it.

    `order` is the result of `class_order` for the checkpoint.
    """
    runner.prepare()
    if order is not None:
        runner.task.take_order(order)
    if is_exported(checkpoint):
        used = ENDINGS[Path(checkpoint).suffix]
        runner.task.backbone = ExportedBackbone(open_exported(checkpoint, runner.task)[0])
    else:
        used = runner.load_checkpoint(checkpoint, weights=weights)["weights"]
    if size is not None and not is_exported(checkpoint):
        runner.task.resize(*(size if isinstance(size, tuple) else (size, size)))
    try:
        result = runner.evaluate()
    except torch.OutOfMemoryError as error:
        batch = runner.cfg.test_dataloader.batch_size
        raise InputError(
            f"memory: {batch} images of this size do not fit: {error}. Lower test_dataloader.batch_size"
        ) from error
    transform = runner.cfg.test_dataloader.dataset.get("transform") or {}
    return {
        **result,
        "img_size": size,
        "crop_ratio": transform.get("crop_ratio"),
        "weights": used,
        "checkpoint": str(checkpoint),
    }


def render(results: Sequence[dict]) -> str:
    """The results as a table to read."""
    table = Table(box=None)
    settings = {key: name for key, name in (("img_size", "pixels"), ("crop_ratio", "crop")) if results[0][key]}
    scores = {key: score for key, score in SCORES.items() if any(key in r for r in results)}
    for column in ("checkpoint", "weights"):
        table.add_column(column, overflow="fold")
    for column in (*settings.values(), "images", *(score.name for score in scores.values())):
        table.add_column(column, justify="right", overflow="fold")
    for r in results:
        texts = ["" if r[key] is None else str(_text(r[key])) for key in settings]
        numbers = [f"{r[key]:.{score.digits}f}" if key in r else "" for key, score in scores.items()]
        table.add_row(r["checkpoint"], r["weights"], *texts, str(r["images"]), *numbers)
    text = io.StringIO()
    Console(file=text, width=140).print(table)
    return text.getvalue().rstrip()


def _short_names(checkpoints: Sequence[str]) -> list[str]:
    """A name for each file that no other has: its own, or with the folders that tell them apart."""
    whole = [Path(path).absolute() for path in checkpoints]
    if len(set(whole)) < len(whole):
        raise InputError("checkpoint: the same file is named twice")
    paths = [path.with_suffix("").parts for path in whole]
    if len(set(paths)) < len(paths):  # best.pth and best.onnx
        paths = [path.with_name(path.name.replace(".", "_")).parts for path in whole]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["_".join(parts[-depth:]).replace("/", "") for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise InputError("checkpoint: names that cannot be told apart")


def _flat(result: dict) -> dict:
    return {key: _text(value) for key, value in result.items() if not isinstance(value, dict)}


def _text(value: object) -> object:
    """A size that is not square as "320x160"; anything else as it is."""
    return size_name(value) if isinstance(value, tuple) else value
