"""The report as a table of at most sixty lines, for a terminal that shows its last lines only."""

from collections.abc import Callable

LINES = 60
WIDTH = 150
SHORT = {
    "operator": "operator",
    "fused mixer": "mixer",
    "softmax (cudnn)": "cudnn",
    "softmax (flash)": "flash",
    "softmax (efficient)": "efficient",
    "softmax (math)": "math",
    "fla chunk_gla": "fla gla",
}
WAYS = ("eager", "compiled", "graphs")


def render(content: dict) -> str:
    """The table; what does not fit is in report.json, and the last line says so."""
    lines: list[str] = []
    for name, part in content["parts"].items():
        done = sum(cell["status"] == "ok" for cell in part["cells"])
        reason = f": {part['reason']}" if "reason" in part else ""
        lines.append(f"{part['title'].upper()} ({done} of {len(part['cells'])} ok, {part['seconds']:.0f} s){reason}")
        lines += SECTIONS.get(name, _plain)(part["cells"])
    lines = [line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in lines]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"… and {len(lines) - LINES + 1} lines more: all of it is in report.json"]
    return "\n".join(lines)


def _failures(cells: list[dict], most: int = 3) -> list[str]:
    """Cells without figures, by their reasons; those that were not reached are only counted."""
    bad = [cell for cell in cells if cell["status"] not in ("ok", "not reached")]
    lines = [f"  {cell['status']}: {cell['cell']}: {cell.get('reason', '')}" for cell in bad[:most]]
    if len(bad) > most:
        lines.append(f"  and {len(bad) - most} more that failed")
    missed = sum(cell["status"] == "not reached" for cell in cells)
    return [*lines, *([f"  {missed} not reached: the time was over"] if missed else [])]


def _plain(cells: list[dict]) -> list[str]:
    return _failures(cells)


def _environment(cells: list[dict]) -> list[str]:
    found = {key: value for cell in cells if cell["status"] == "ok" for key, value in cell.items()}
    lines = []
    if "card" in found:
        lines.append(
            f"  {found['card']}, {found['memory_gb']} GB, driver {found['driver']}, {found['multiprocessors']}"
            f" multiprocessors, L2 {found['l2_mb']} MB"
        )
    if "torch" in found:
        assemblers = ", ".join(f"{name} {version}" for name, version in found["assemblers"].items())
        lines.append(
            f"  torch {found['torch']}, triton {found['triton']}, cuDNN {found['cudnn']}, timm {found['timm']}, python"
            f" {found['python']}, {assemblers or 'no ptxas'}"
        )
    if "copy_gb_s" in found and "product_tflop_s" in found:
        lines.append(
            f"  copy {found['copy_gb_s']:.0f} GB/s read and written, bf16 product {found['product_tflop_s']:.0f}"
            " TFLOP/s"
        )
    return lines + _failures(cells)


def _correctness(cells: list[dict]) -> list[str]:
    lines = []
    for cell in cells:
        if "passed" in cell:
            text = f"  {cell['cell']} ({cell['assembler']}): {cell['passed']} passed, {cell['failed']} failed"
            text += f", {cell['not_run']} not run" if cell["not_run"] else ""
            if "compared" in cell:
                text += f"; {cell['equal_bits']} of {cell['compared']} results have the first one's bits"
            lines += [text, *(f"    {failure}" for failure in cell["failures"][:3])]
        elif "summary" in cell:
            lines.append(f"  {cell['cell']}: {cell['summary']}")
    return lines + _failures([cell for cell in cells if "passed" not in cell])


def _operators(cells: list[dict]) -> list[str]:
    measured = [cell for cell in cells if cell.get("candidates")]
    titles = "".join(f"{title:>11}" for title in SHORT.values())
    lines = [f"  {'ns per head and token':34}{titles}   floor reached: operator, mixer"] if measured else []
    for cell in measured:
        row = cell["candidates"]
        figures = "".join(_figure(row.get(name), lambda x: f"{x['ns_per_head_token']:.2f}", 11) for name in SHORT)
        floors = [row.get(name, {}).get("of_floor") for name in ("operator", "fused mixer")]
        shares = ", ".join("?" if share is None else f"{share:.0%}" for share in floors)
        lines.append(f"  {cell['cell'].replace('forward and backward', 'f+b'):34}{figures}   {shares}")
    return lines + _failures(cells)


def _models(cells: list[dict]) -> list[str]:
    """A line for a size and resolution: images a second, and in brackets DeiT's time over ours, of the same kind."""
    groups: dict[str, dict] = {}
    for cell in cells:
        if cell.get("models"):
            size, at, *_ = cell["cell"].split()
            groups.setdefault(f"{size} {at}", {})[cell["mode"], cell["way"]] = cell
    lines = []
    if groups:
        titles = "".join(f"{mode + ' ' + way:>21}" for mode in ("infer", "train") for way in WAYS)
        lines.append(f"  {'images/s (DeiT)':16}{titles}")
    for name, found in groups.items():
        texts = [_figure(found.get((mode, way)), _speed, 21) for mode in ("infer", "train") for way in WAYS]
        lines.append(f"  {name:16}{''.join(texts)}")
    return lines + _failures(cells, most=2)


def _speed(cell: dict) -> str:
    ours = next(iter(cell["models"].values()))
    if "images_per_second" not in ours:
        return "failed"
    return f"{ours['images_per_second']:.0f} ({cell['ratio']:.2f})" if "ratio" in cell else "alone"


def _training(cells: list[dict]) -> list[str]:
    lines = [
        f"  {cell['cell']}: loss {cell['first']:.3f} to {cell['last']:.3f} in {cell['steps']} steps of"
        f" {cell['step_ms']:.1f} ms"
        for cell in cells
        if cell["status"] == "ok"
    ]
    return lines + _failures(cells)


def _hotspots(cells: list[dict]) -> list[str]:
    lines = []
    for cell in cells:
        if cell["status"] == "ok":
            longest = ", ".join(f"{x['kernel'][:28]} {x['share']:.0%}" for x in cell["kernels"][:3])
            lines.append(f"  {cell['cell']} ({cell['milliseconds']:.1f} ms): {longest}")
    return lines + _failures(cells)


def _figure(value: dict | None, text: Callable[[dict], str], width: int) -> str:
    return f"{text(value) if value else '':>{width}}"


SECTIONS = {
    "environment": _environment,
    "correctness": _correctness,
    "operators": _operators,
    "models": _models,
    "training": _training,
    "hotspots": _hotspots,
}
