"""model_zoo.md: what every model costs, how fast it is and what it reached, made from the files in results/."""

import ast
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import timm

import metala_vision  # noqa: F401  (registers the models)
from metala_vision.errors import InputError

from .gpu_report import page
from .speed.workers import Candidate
from .sweep.rows import derive, exponents, label
from .sweep.store import MEASURED

OURS = "metala_vit_"
REFERENCE = 224
SIZES = (REFERENCE, 384, 512, 1024, 2048)
# The softmax ViT of the same width and depth: what a model's speed is compared with.
SOFTMAX = {"tiny": "deit_tiny_patch16_224", "small": "deit_small_patch16_224", "base": "deit_base_patch16_224"}
VIT = "the softmax ViT of the same width (of others, `deit_tiny_patch16_224`)"
SAME = ":mixer=softmax"  # what the mixers of one model are compared with, where it was measured beside them
HEADER = """# Model zoo

Made by `python tools/model_zoo.py` from `results/` and the configs; a test fails when it is stale. Empty cells: nobody
has measured it. Figures marked "paper" are those of the papers named in the configs; nothing of them was reproduced
here.
"""
COSTS = """## Parameters and multiply-accumulates

GMACs are {convention}.
By fvcore with a count for every operator, equal to a formula by hand and, in the products, to PyTorch's FlopCounterMode
(`tools/flops.py`). Parameters and activations are those at 224 pixels.
"""
RUNS = """## Trained here

Top-1 in percent, mean and deviation of the seeds; processor and threads stand in the log. Rows of one log share their
config but for the option they are named by. Ours are from before there was a `decay_bias`: add `--cfg-options
model.backbone.decay_bias=False` to train the same models.
"""
AT_SIZES = """## Accuracy over image sizes

The weights of a training tested at other sizes than its own (`tools/test.py --resolutions`), beside the time of an
image (`tools/accuracy_at_sizes.py`).
"""
THROUGHPUT = """## Throughput and memory

{environment}.

Models take turns, round by round, in one process; medians. In brackets how many times as fast as {rival}, with the
attention kernel that PyTorch chooses, as the median over the same rounds, or with ~ out of two medians. "math" is a
softmax ViT with its attention map written out, as many comparisons have it.
\\* a single step, alone, for more would have taken too long. Peak memory in MB is that of the GPU, or the resident set
of a process that does nothing else, where some 400 MB are PyTorch's own. bfloat16 is autocast; training is forward,
backward and AdamW. Every cell with its rounds, made by `tools/throughput.py`:
[{name}]({folder}/{name}).
"""
GPUS = """## On a GPU

By `make gpu` (`tools/gpu_report.py`), which tests every kernel and times operators, models and training.
"""
NO_GPU = """Not measured: nobody has run it yet.
"""


def build(root: str | Path) -> str:
    """The page as Markdown, from a checkout at `root`.

    Raises:
        InputError: a result file is missing, or does not hold results.
    """
    root = Path(root)
    results = _results(root / "results")
    parts = [HEADER, _costs(root / "results" / "flops.json"), _imagenet(root / "configs" / "imagenet", results)]
    parts += [_runs(root, results), *_at_sizes(root)]
    parts += [_throughput(path, root) for path in sorted((root / "results").glob("throughput*/cells.json"))]
    parts += [_gpus(root)]
    return "\n".join(parts)


def _gpus(root: Path) -> str:
    """What `tools/gpu_report.py` has found on each card."""
    reports = {
        path: _read(path, "environment", "parts") for path in sorted((root / "results").glob("gpu_*/report.json"))
    }
    reports = {path: content for path, content in reports.items() if not content.get("rehearsal")}
    sections = [page.section(content, f"results/{path.parent.name}") for path, content in reports.items()]
    return "\n".join([GPUS, *(sections or [NO_GPU])])


def _read(path: Path, *keys: str) -> dict:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: see tools/model_zoo.py --help for what writes it") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}: see tools/model_zoo.py --help for what writes it")
    return content


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *rows])


def _costs(path: Path) -> str:
    report = _read(path, "rows", "convention")
    by_model: dict[str, dict[int, dict]] = {}
    for row in report["rows"]:
        if row["size"][0] == row["size"][1]:
            by_model.setdefault(row["model"], {})[row["size"][0]] = row
    missing = sorted(set(timm.list_models(f"{OURS}*")) - set(by_model))
    if missing:
        raise InputError(f"{path} has no counts of {', '.join(missing)}; run tools/flops.py for all models again")
    rows = []
    for name, sizes in by_model.items():
        if REFERENCE not in sizes:
            raise InputError(f"{path} has no counts of {name} at {REFERENCE} pixels; run tools/flops.py again")
        first = sizes[REFERENCE]
        share = "" if first["mixer"] is None else f"{first['mixer'] / first['macs']:.0%}"
        macs = [f"{sizes[size]['macs'] / 1e9:.2f}" if size in sizes else "" for size in SIZES]
        rows.append(
            [f"`{name}`", f"{first['parameters'] / 1e6:.2f}", *macs, share, f"{first['activations'] / 1e6:.1f}"]
        )
    titles = [
        "model",
        "parameters, M",
        *(f"GMACs at {size}" for size in SIZES),
        "mixers' share at 224",
        "activations, M",
    ]
    picture = "![GMACs against resolution](results/flops.png)"
    return f"{COSTS.format(convention=report['convention'])}\n{_table(titles, rows)}\n\n{picture}\n"


def _imagenet(folder: Path, results: Sequence[dict]) -> str:
    measured = {row["config"]: f"{row['mean']:.2f}" for row in results if row["images"] == 50_000}
    rows = []
    for path in sorted(folder.glob("*.py")):
        name = re.fullmatch(r"(.+)_(\d+)_imagenet_(\d+)e_(\w+)", path.stem)
        target = re.search(r"^Target:\s+(.*)", ast.get_docstring(ast.parse(path.read_text())) or "", re.M | re.S)
        if name is None or target is None:
            raise InputError(f"{path}: expected MODEL_SIZE_imagenet_EPOCHSe_RECIPE.py with a Target in its header")
        model, size, epochs, recipe = name.groups()
        text = " ".join(target[1].split())
        figure = re.match(r"([\d.]+) percent top-1 is [\w' ]+ figure \((.*?)\)", text)
        if figure is None and "percent" in text:
            raise InputError(f"{path}: Target: got {text!r}, expected 'N percent top-1 is ... figure (SOURCE)'")
        paper, source = figure.groups() if figure else ("", "")
        link = f"[{path.stem}](configs/imagenet/{path.name})"
        rows.append([f"`{model}`", size, epochs, recipe, link, measured.get(path.name, ""), paper, source])
    titles = ["model", "pixels", "epochs", "recipe", "config", "top-1 measured", "top-1 (paper)", "paper"]
    return f"## ImageNet-1k\n\n{_table(titles, rows)}\n"


def _results(folder: Path) -> list[dict]:
    """The rows of all comparisons of tools/compare_runs.py, each with the `log` that it is from."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        content = _read(path)
        for row in content.get("rows", []) if isinstance(content, dict) else ():
            if "size" in row:  # of tools/accuracy_at_sizes.py or tools/flops.py
                continue
            if "top1" in row and not {"config", "dataset"} <= set(row):
                raise InputError(
                    f"{path}: row {row.get('name')!r} has no config and dataset: run compare_runs.py again"
                )
            rows += [{**row, "log": path.name}] if "top1" in row else []
    return rows


def _runs(root: Path, results: Sequence[dict]) -> str:
    configs = {path.name: path.relative_to(root) for path in (root / "configs").rglob("*.py")}
    rows = []
    for row in results:
        config = configs.get(row["config"])
        spread = "" if row["deviation"] is None else f" ± {row['deviation']:.2f}"
        rows.append(
            [
                f"{row['dataset']}, {row['images']} test images",
                row["name"],
                f"{row['parameters'] / 1e6:.2f}",
                str(row["epochs"]),
                f"{row['mean']:.2f}{spread} ({len(row['seeds'])})",
                f"{row['seconds_per_epoch']['median']:.0f}",
                f"[{config.stem}]({config.as_posix()})" if config else "",
                f"[{row['log']}](results/{row['log']})",
            ]
        )
    titles = ["data", "model", "parameters, M", "epochs", "top-1 (seeds)", "s per epoch", "config", "log"]
    return f"{RUNS}\n{_table(titles, rows)}\n"


def _at_sizes(root: Path) -> list[str]:
    """What `tools/accuracy_at_sizes.py` has put together, as its pictures."""
    found: list[str] = []
    for path in sorted((root / "results").glob("*.json")):
        content = _read(path)
        if not isinstance(content, dict) or not any("size" in row and "mean" in row for row in content.get("rows", [])):
            continue
        if not found:
            found.append(AT_SIZES)
        pictures = [path.with_suffix(".png"), path.with_name(f"{path.stem}_time.png")]
        titles = ("top-1 against the size", "top-1 against the time of an image")
        lines = [f"![{title}](results/{file.name})" for title, file in zip(titles, pictures) if file.is_file()]
        found += [f"[{path.name}](results/{path.name})\n", "\n\n".join(lines) + "\n"]
    return found


def _throughput(path: Path, root: Path) -> str:
    content = _read(path, "environment", "cells", "races")
    cells = dict(sorted(content["cells"].items(), key=lambda item: item[1]["size"]))
    folder = path.parent.relative_to(root).as_posix()
    series = {cell["series"] for cell in cells.values()}
    if len(series) > 1:
        raise InputError(f"{path} mixes {', '.join(sorted(series))}, expected one folder for each")
    models = {cell["model"] for cell in cells.values()}
    where = ", ".join(f"{key} {value}" for key, value in content["environment"].items())
    mixers = any(model.endswith(SAME) for model in models)
    rival = f"the same model with `{SAME[1:]}`" if mixers else VIT
    parts = [THROUGHPUT.format(environment=where, folder=folder, name=path.name, rival=rival)]
    for mode, title in (("infer", "Inference"), ("train", "Training")):
        for dtype in ("float32", "bfloat16", "float16"):
            mine = {key: cell for key, cell in cells.items() if (cell["mode"], cell["dtype"]) == (mode, dtype)}
            if mine:
                parts += [f"### {title}, {dtype}\n", _speeds(mine, content["races"]), ""]
                parts += [f"![speed, memory and ratio]({folder}/throughput_{mode}_{dtype}.png)\n"]
    fits = exponents(derive(cells, content["races"], Candidate(SOFTMAX["tiny"])))
    rows = [
        [f"`{fit['model']}`{fit['line'].removeprefix(fit['model'])}", fit["mode"], fit["dtype"]]
        + [f"{fit['exponent']:.2f}", f"{fit['sizes'][0]} to {fit['sizes'][-1]}"]
        for fit in fits
    ]
    titles = ["model", "mode", "dtype", "p", "pixels"]
    parts += [f"### How time grows: time ~ tokens^p\n\n{_table(titles, rows)}\n"]
    return "\n".join(parts)


def _speeds(cells: dict[str, dict], races: dict) -> str:
    """Images per second with the ratio, and peak memory, of one mode and dtype: a row for each model."""
    sizes = sorted({cell["size"] for cell in cells.values()})
    models = dict.fromkeys((cell["model"], label(cell)) for cell in cells.values())
    baselines = {model: _baseline(model, {name for name, _ in models}) for model, _ in models}
    derived = {name: derive(cells, races, Candidate(name)) for name in set(baselines.values())}
    tables = []
    for title, write in (("images/s", _speed), ("MB", _memory)):
        rows = []
        for model, line in models:
            mine = {r["size"]: r for r in derived[baselines[model]] if label(r) == line}
            name = f"`{model}`" + line.removeprefix(model)
            rows.append([name, *(write(mine[size]) if size in mine else "" for size in sizes)])
        rows.sort(key=lambda row: OURS not in row[0])
        batches = {cell["size"]: cell["requested"] for cell in cells.values()}
        tables.append(_table([title, *(f"{size}, batch {batches[size]}" for size in sizes)], rows))
    return "\n\n".join(tables)


def _baseline(model: str, models: set[str]) -> str:
    same = model.split(":")[0] + SAME
    return same if same in models else next((SOFTMAX[size] for size in SOFTMAX if f"_{size}" in model), SOFTMAX["tiny"])


def _speed(row: dict) -> str:
    if row["status"] not in MEASURED:
        return row["status"]
    speed = f"{row['images_per_second']:.3g}" if row["images_per_second"] < 100 else f"{row['images_per_second']:.0f}"
    mark = "\\*" if row["status"] == "alone" else ""
    batch = f" [{row['batch']}]" if row["batch"] != row["requested"] else ""
    return f"{speed}{mark}{batch}" + (
        "" if row["ratio"] in (None, 1.0) else f" ({'' if row['paired'] else '~'}{row['ratio']:.2f})"
    )


def _memory(row: dict) -> str:
    if row["status"] not in MEASURED:
        return row["status"]
    return "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}"
