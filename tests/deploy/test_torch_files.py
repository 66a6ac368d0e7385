"""Programs of torch.export and AOTInductor: the model's numbers at every size, by our kernels, or with none of ours."""

import json
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from small_models import strong
from tolerances import FLOAT32, FLOAT64, relative_rms
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.cpp_extension import include_paths, library_paths

import metala_vision
from metala_vision.deploy import runtime
from metala_vision.deploy.job import Job
from metala_vision.deploy.torch_file import plain_program
from metala_vision.deploy.torch_operators import PlainOperators
from metala_vision.deploy.torch_scan import scan_in_graph
from metala_vision.errors import InputError
from metala_vision.kernels import SCAN_ORDERS
from metala_vision.kernels.reference import recurrence
from metala_vision.layers import MIXERS

SMALL = dict(embed_dim=32, depth=1, num_heads=2, img_size=64)
VIT = dict(depth=1, embed_dim=48, num_heads=3, img_size=64)
# Sides that are exchanged, that are padded, a single patch, a single row and column, more chunks than a group has.
SHAPES = [(2, 3, 64, 96), (1, 3, 96, 64), (3, 3, 70, 100), (1, 3, 16, 16), (2, 3, 16, 90), (2, 3, 90, 16)]
LARGE = (1, 3, 384, 400)
PACKAGED = [shape for shape in [*SHAPES, LARGE] if shape[2:] != (16, 16)]


@pytest.mark.parametrize("scan", [*((order,) for order in SCAN_ORDERS), SCAN_ORDERS], ids=",".join)
@pytest.mark.parametrize("grid", [(1, 1), (6, 5), (1, 33), (33, 17), (35, 31)], ids=str)
def test_the_scan_of_graphs_at_the_ends_of_the_gate(scan, grid):
    """Against the recurrence in float64: decays at the floor, next to one, and both beside each other; three groups."""
    generator = torch.Generator().manual_seed(0)
    tokens = grid[0] * grid[1]
    q, g, k, v = (torch.randn(2, tokens, 2, width, generator=generator) for width in (3, 3, 3, 5))
    for size in (1e-4, 1e-2, 1.0, 100.0):
        decay = (-size * g.abs()).clamp(min=-5)
        decay[:, tokens // 3 : tokens // 2] = -5.0
        wide = [x.double() for x in (q, decay, v, k)]
        wanted = recurrence(*wide, grid, scan, 0.5)
        assert relative_rms(scan_in_graph(q, decay, v, k, grid, scan, 0.5), wanted) <= FLOAT32, size
        assert relative_rms(scan_in_graph(*wide, grid, scan, 0.5), wanted) <= FLOAT64, size


class Operators(TorchDispatchMode):
    """Keeps the names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Called by torch in the place of each operator."""
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        *(dict(mixer=mixer) for mixer in MIXERS),
        dict(scan="alternate"),
        dict(scan="cross"),
        dict(scan=("column_reverse",), depth=1),
        dict(local_conv=False, self_aug=False, decay_bias=False),
        dict(mlp_conv=True, decay_scale="none"),
        dict(pos_embed="learn"),
    ],
    ids=str,
)
def test_plain_operators_give_the_numbers_of_ours(options):
    """Catches an operator of ours that is left, which a program without Python cannot call."""
    model = strong(timm.create_model("metala_vit_nano", **SMALL | dict(depth=4) | options))
    with torch.inference_mode():
        for shape in [*SHAPES, LARGE]:
            x = torch.randn(shape)
            with Operators() as operators, PlainOperators():
                found = model(x)
            assert relative_rms(found, model(x)) <= FLOAT32, shape
            assert not [name for name in operators.seen if "metala" in name]


@pytest.mark.parametrize("mixer", ["metala", "kernel", "classes"])
def test_plain_operators_in_linearized_vits(mixer):
    model = strong(timm.create_model("linearized_vit", teacher="vit_tiny_patch16_224", mixer=mixer, states=8, **VIT))
    with torch.inference_mode():
        for shape in SHAPES:
            x = torch.randn(shape)
            with Operators() as operators, PlainOperators():
                found = model(x)
            assert relative_rms(found, model(x)) <= FLOAT32, shape
            assert not [name for name in operators.seen if "metala" in name]


@pytest.mark.parametrize(
    "options",
    [
        dict(stride=4),
        dict(stride=(4, 4), bias=False),
        dict(stride=2),
        dict(stride=4, padding=1),
        dict(stride=4, groups=2),
    ],
    ids=str,
)
def test_convolutions_are_what_they_were(options):
    """Catches patches that are padded where a convolution leaves out a rest, and options that are not seen."""
    layer = nn.Conv2d(4, 6, 4, **options)
    with torch.inference_mode():
        for sides in [(20, 24), (18, 24), (20, 23)]:
            x = torch.randn(2, 4, *sides)
            with PlainOperators():
                found = layer(x)
            assert relative_rms(found, layer(x)) <= FLOAT32, sides


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("metala_vit_nano", dict(mixer="gla", **SMALL)),
        ("metala_vit_nano", dict(scan="cross", mlp_conv=True, pos_embed="learn", **SMALL)),
        ("linearized_vit", dict(teacher="vit_tiny_patch16_224", mixer="kernel", states=8, **VIT)),
        ("deit_tiny_patch16_224", dict(dynamic_img_size=True, dynamic_img_pad=True, **VIT)),
        ("convnext_atto", {}),
    ],
    ids=["gla", "cross", "linearized", "softmax", "convolutional"],
)
def test_programs_of_other_models(name, options):
    """Catches a branch that depends on an open size, and a size that is taken for constant; AOTInductor checks none."""
    model = strong(timm.create_model(name, **options))
    with torch.no_grad():
        program = plain_program(model, Job((2, 3, 64, 96), ("batch", "size"), 20, {}, ["logits"]))
    assert not [node for node in program.graph.nodes if "metala" in str(node.target)]
    module = program.module()
    for shape in [(2, 3, 64, 96), (1, 3, 90, 70), (3, 3, 130, 64)]:
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_rms(module(x), model(x)) <= FLOAT32, shape


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.")  # torch.export itself, in torch 2.9 to 2.11
def test_a_torch_file(tmp_path):
    """Catches a baked-in size, a refused single patch, the example in the file, and kernels that are not called."""
    model = strong(timm.create_model("metala_vit_nano", **SMALL | dict(depth=4)))
    result = metala_vision.export(model, tmp_path / "a" / "m.pt2", img_size=(64, 480))
    assert result["format"] == "torch"
    assert list(result["differences"]) == ["torch"]
    assert len(result["differences"]["torch"]) == 3
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert weights < result["bytes"] < weights + 2 * 3 * 64 * 480 * 4
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["m.pt2"]
    run = runtime("torch", result["file"], threads=1)
    assert json.loads(run.metadata)["input_size"] == [3, 64, 480]
    threads = torch.get_num_threads()
    program = torch.export.load(result["file"])
    assert program.example_inputs is None
    assert {"metala.add_mixer.default", "metala.add_swiglu_mlp.default"} <= {str(n.target) for n in program.graph.nodes}
    for shape in [*SHAPES, LARGE]:
        x = torch.randn(shape)
        with torch.no_grad():
            wanted = model(x)
        (found,) = run(x)
        assert relative_rms(found, wanted) <= FLOAT32, shape
        assert relative_rms(program.module()(x), wanted) <= FLOAT32, shape
    assert torch.get_num_threads() == threads
    with pytest.raises(InputError, match=r"images: the file does not take .1, 4, 64, 64."):
        run(torch.randn(1, 4, 64, 64))
    with pytest.raises(InputError, match="file: aoti does not take"):
        runtime("aoti", result["file"])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.")
def test_a_torch_file_of_one_size_and_of_features(tmp_path):
    model = strong(timm.create_model("metala_vit_nano", **SMALL))
    run = runtime("torch", metala_vision.export(model, tmp_path / "m.pt2", dynamic=(), img_size=(48, 80))["file"])
    with pytest.raises(InputError, match="images: the file does not take .1, 3, 48, 96."):
        run(torch.randn(1, 3, 48, 96))
    arguments = dict(features_only=True, out_indices=(0, 1), **SMALL | dict(depth=2))
    result = metala_vision.export("metala_vit_nano", tmp_path / "f.pt2", **arguments)
    assert result["outputs"] == ["map0", "map1"]
    assert [x.shape for x in runtime("torch", result["file"])(torch.randn(2, 3, 40, 56))] == [(2, 32, 3, 4)] * 2


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("m.onnx", "aoti", "expected one that ends in .pt2 for the format 'aoti'"),
        ("m.pt", None, "expected one that ends in .onnx or .xml or .pt2$"),
        ("m.pt2", "onnx", "expected one that ends in .onnx for the format 'onnx'"),
    ],
)
def test_endings(name, format, message, tmp_path):
    with pytest.raises(InputError, match=message):
        metala_vision.export("metala_vit_nano", tmp_path / name, format=format)


def test_files_that_are_none_of_ours(tmp_path):
    (tmp_path / "m.pt2").write_bytes(b"nothing")
    for name in ("torch", "aoti"):
        with pytest.raises(InputError, match=f"file: {name} does not take .*m.pt2"):
            runtime(name, tmp_path / "m.pt2")
    with pytest.raises(InputError, match="runtime: got 'jax', expected one of .*'torch', 'aoti'"):
        runtime("jax", tmp_path / "m.pt2")


class Unknown(nn.Module):
    """A model that no exporter takes."""

    def forward(self, x: Tensor) -> Tensor:
        """Has a branch that depends on a number."""
        return x if float(x.sum()) > -1e9 else -x


@pytest.mark.parametrize("format", ["torch", "aoti"])
def test_a_model_that_torch_does_not_take(format, tmp_path):
    with pytest.raises(InputError, match="export: torch cannot export this model: "):
        metala_vision.export(Unknown().eval(), tmp_path / "m.pt2", format=format)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package of AOTInductor, what `export` has said of it, and its model."""
    if shutil.which("g++") is None:
        pytest.skip("AOTInductor needs a C++ compiler, and there is no g++")
    model = strong(timm.create_model("metala_vit_nano", scan=("column_reverse",), **SMALL))
    folder = tmp_path_factory.mktemp("aoti")
    result = metala_vision.export(model, folder / "m.pt2", format="aoti")
    return folder / "m.pt2", result, model


def assert_equal(found: Tensor, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        assert relative_rms(found, model(x)) <= FLOAT32, x.shape


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_package_of_aotinductor(package):
    file, result, model = package
    assert list(result["differences"]) == ["aoti"]
    assert len(result["differences"]["aoti"]) == 3
    run = runtime("aoti", file, threads=1)
    assert json.loads(run.metadata)["input_size"] == [3, 64, 64]
    for x in map(torch.randn, PACKAGED):
        assert_equal(run(x)[0], model, x)
    with pytest.raises(InputError, match="images: the file does not take .1, 3, 16, 16."):  # a single patch
        run(torch.randn(1, 3, 16, 16))
    with pytest.raises(InputError, match="file: torch does not take"):
        runtime("torch", file)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_package_runs_without_us(package, tmp_path):
    """In a process that has torch alone: catches an operator of ours that somebody else has registered."""
    file, _, model = package
    images = [torch.randn(shape) for shape in PACKAGED]
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch\n"
        "run = torch._inductor.aoti_load_package(sys.argv[1])\n"
        "torch.save([run(x) for x in torch.load(sys.argv[2])], sys.argv[3])\n"
        "assert not [name for name in sys.modules if name.startswith('metala_vision')]\n"
    )
    files = [str(file), str(tmp_path / "images.pt"), str(tmp_path / "outputs.pt")]
    subprocess.run([sys.executable, "-c", code, *files], check=True, cwd=tmp_path)
    for found, x in zip(torch.load(tmp_path / "outputs.pt"), images, strict=True):
        assert_equal(found, model, x)


PROGRAM = """
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <cstdio>
#include <cstdlib>

int main(int count, char** arguments) {
    torch::inductor::AOTIModelPackageLoader package(arguments[1]);
    std::printf("%s\\n", package.get_metadata().at("metala_vision").c_str());
    for (int i = 2; i < count; i += 3) {
        const long batch = std::atol(arguments[i]);
        const long rows = std::atol(arguments[i + 1]), cols = std::atol(arguments[i + 2]);
        const auto images = at::arange(batch * 3 * rows * cols).remainder(7).sub(3).to(at::kFloat);
        const auto found = package.run({images.reshape({batch, 3, rows, cols})})[0].contiguous();
        for (long j = 0; j < found.numel(); ++j) std::printf("%.9g ", found.data_ptr<float>()[j]);
        std::printf("\\n");
    }
}
"""


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_package_in_cpp(package, tmp_path):
    """There is no Python at all."""
    file, _, model = package
    (tmp_path / "main.cpp").write_text(PROGRAM)
    folders = [f"-L{folder}" for folder in library_paths()] + [f"-Wl,-rpath,{folder}" for folder in library_paths()]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    sources = [
        "-std=c++20",
        "-O0",
        abi,
        *(f"-isystem{folder}" for folder in include_paths()),
        str(tmp_path / "main.cpp"),
    ]
    libraries = [*folders, "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", *sources, *libraries, "-o", str(tmp_path / "main")], check=True)
    sizes = [str(size) for batch, _, height, width in PACKAGED for size in (batch, height, width)]
    printed = subprocess.run([str(tmp_path / "main"), str(file), *sizes], check=True, capture_output=True, text=True)
    described, *lines = printed.stdout.splitlines()
    assert json.loads(described)["architecture"] == "metala_vit_nano"
    for shape, line in zip(PACKAGED, lines, strict=True):
        images = torch.arange(torch.Size(shape).numel()).remainder(7).sub(3).float().reshape(shape)
        assert_equal(torch.tensor([float(x) for x in line.split()]).reshape(shape[0], -1), model, images)
