"""A report as Markdown, for model_zoo.md."""

from .models import PAIRS, WAYS
from .summary import SHORT

MODES = {"infer": "inference", "train": "training step"}
MODELS = """Images a second in bfloat16, and in brackets how many times as long DeiT of the same size takes in the same
way: eager with eager, compiled with compiled, CUDA graphs with CUDA graphs; both in turn, medians.
"""
OPERATORS = """Nanoseconds for a head (K 32, V 64; softmax 64) and token, as CUDA graphs, one scan order, from a cold
cache; in brackets the share of the time that moving each input and result once would take. Empty: it does not run.
"""


def section(content: dict, folder: str) -> str:
    """The figures of one card.

    Args:
        content: what report.json holds.
        folder: where it is, relative to the page.
    """
    parts = {name: part["cells"] for name, part in content["parts"].items()}
    found = {key: value for cell in parts.get("environment", []) for key, value in cell.items()}
    card = found.get("card") or content["environment"]["processor"]
    lines = [f"### {card}", "", f"{_versions(found)} The whole report: [report.txt]({folder}/report.txt)."]
    lines += ["", *_tests(parts.get("correctness", []))]
    lines += _models(parts.get("models", [])) + _operators(parts.get("operators", []))
    return "\n".join(lines) + "\n"


def _versions(found: dict) -> str:
    if "torch" not in found:
        return "Versions were not recorded."
    ceilings = ""
    if "copy_gb_s" in found and "product_tflop_s" in found:
        ceilings = f" Measured: {found['copy_gb_s']:.0f} GB/s in a copy (read and written), "
        ceilings += f"{found['product_tflop_s']:.0f} TFLOP/s in a bfloat16 product."
    return f"PyTorch {found['torch']}, Triton {found['triton']}, driver {found.get('driver')}.{ceilings}"


def _tests(cells: list[dict]) -> list[str]:
    rows = [
        f"- {cell['cell']} (ptxas {cell['assembler']}): {cell['passed']} passed, {cell['failed']} failed, "
        f"{cell['not_run']} not run"
        for cell in cells
        if "passed" in cell
    ]
    rows += [f"- compute-sanitizer, {cell['cell']}: {cell['summary']}" for cell in cells if "summary" in cell]
    return [*rows, ""] if rows else []


def _models(cells: list[dict]) -> list[str]:
    figures = {
        (*cell["cell"].split()[:2], cell["mode"], cell["way"]): _speed(cell) for cell in cells if cell.get("models")
    }
    if not figures:
        return []
    sizes = sorted({key[1] for key in figures}, key=lambda at: int(at.split("x")[0]))
    named = [size for size in PAIRS if any(key[0] == size for key in figures)]
    columns = [(mode, way) for mode in MODES for way in WAYS]
    lines = [MODELS, _row(["model", "pixels x batch", *(f"{MODES[mode]}, {way}" for mode, way in columns)])]
    lines.append(_row(["---"] * (2 + len(columns))))
    for size in named:
        for at in sizes:
            row = [figures.get((size, at, *column), "") for column in columns]
            lines += [_row([f"`{PAIRS[size][0]}`", at, *row])] if any(row) else []
    return [*lines, ""]


def _speed(cell: dict) -> str:
    ours = next(iter(cell["models"].values()))
    if "images_per_second" not in ours:
        return "failed"
    ratio = f" ({cell['ratio']:.2f})" if "ratio" in cell else ""
    return f"{ours['images_per_second']:.0f}{ratio}"


def _operators(cells: list[dict]) -> list[str]:
    measured = [cell for cell in cells if cell.get("candidates")]
    if not measured:
        return []
    names = [name for name in SHORT if any(name in cell["candidates"] for cell in measured)]
    lines = [OPERATORS, _row(["batch x grid, dtype, pass", *names]), _row(["---"] * (1 + len(names)))]
    for cell in measured:
        lines.append(_row([cell["cell"], *(_nanoseconds(cell["candidates"].get(name)) for name in names)]))
    return [*lines, ""]


def _nanoseconds(found: dict | None) -> str:
    if found is None:
        return ""
    share = found.get("of_floor")
    return f"{found['ns_per_head_token']:.2f}" + ("" if share is None else f" ({share:.0%})")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
