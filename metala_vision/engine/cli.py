"""What the tools of training and evaluation say, once for all processes."""

from pathlib import Path

from mmengine.dist import is_main_process

from metala_vision.files import write_json

from .metrics.scores import best_known


def say(text: str) -> None:
    """Prints a text, once for all processes."""
    if is_main_process():
        print(text, flush=True)


def write_result(result: dict, folder: str | Path) -> None:
    """Writes `result.json` into the folder and says in two lines what it holds; once for all processes."""
    path = Path(folder) / "result.json"
    if is_main_process():
        write_json(path, result)
    pictures = [result[key] for key in ("curves", "confusion_matrix", "pictures") if key in result]
    what = "sequences" if "asked" in result else "images"
    where = f"{result['images']} {what} ({result['dataset']}, {result['split']} split)"
    say(f"{best_known(result)} of {where}")
    say(f"pictures: {', '.join(pictures)}; result: {path}")
