"""The house: what each room may import, that no two rooms import each other, and that no file is a hall of its own."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "metala_vision"
# From the ground up. A file imports from its own room and from lower floors; rooms of one floor do not know each other.
FLOORS = (
    ("errors", "yapf_cache"),
    ("kernels", "files", "description"),
    ("layers", "figures"),
    ("models", "command_line"),
    ("data", "dense", "linearize"),
    ("deploy", "engine.metrics", "profiling.environment"),
    ("prediction", "engine.tasks", "profiling.speed"),
    ("engine.run", "profiling.macs", "profiling.sweep", "profiling.gpu_report", "profiling.attention"),
    ("engine", "profiling"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Beside the standard library and torch. What is imported only where it is used is asked of nobody else.
LIBRARIES = {
    "kernels": {"triton", "fvcore"},
    "layers": {"timm"},
    "models": {"timm"},
    "dense": {"timm", "torchvision", "segmentation_models_pytorch"},
    "linearize": {"timm", "sklearn"},
    "deploy": {"timm", "torchvision", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino"},
}
SOURCES = [
    path
    for folder in (PACKAGE, "kernels")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != ROOT / PACKAGE / "__init__.py"
]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = (PACKAGE, *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, with the names of what it takes from it."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rsplit(".", 1)[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            base = f"{base}.{node.module}" if node.level and node.module else node.module or base
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str | None:
    """The room that a module, or a name in one, is in; None for what is not ours."""
    parts = module.split(".")
    if parts[0] != PACKAGE or len(parts) == 1:
        return None
    for depth in (3, 2):
        if ".".join(parts[1:depth]) in FLOOR:
            return ".".join(parts[1:depth])
    return None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_arrows_point_down(path):
    """Catches an import of a higher room, or of the one next door."""
    mine = room_of(module_of(path))
    assert mine is not None, "a file in no room: give it a floor above"
    others = {room for name in imported(path) if (room := room_of(name)) not in (None, mine)}
    assert {room: FLOOR[room] for room in others if FLOOR[room] >= FLOOR[mine]} == {}


def test_no_circles_between_files():
    """Catches two files of one room that need each other, the later import inside of a function included."""
    needs = {
        module: {m for name in imported(path) for m in (name, name.rsplit(".", 1)[0]) if m in MODULES} - {module}
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }
    while leaves := {module for module, others in needs.items() if not others & set(needs)}:
        needs = {module: others for module, others in needs.items() if module not in leaves}
    assert not needs, f"a circle among {sorted(needs)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_rooms_know_their_libraries_alone(path):
    """Catches mmengine below the engine, and anything but torch in the kernels."""
    room = room_of(module_of(path)).split(".")[0]
    others = {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names - {PACKAGE, "torch", "numpy"}
    if room in LIBRARIES:
        assert others <= LIBRARIES[room]
    elif room not in ("engine", "data"):
        assert "mmengine" not in others


@pytest.mark.parametrize("folder", ["metala_vision", "kernels", "tools", "tests", "configs"])
def test_no_file_is_too_long(folder):
    """Catches a file that has become two: 400 lines are the most, C apart."""
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {str(path): count for path, count in lengths.items() if count > 400} == {}
