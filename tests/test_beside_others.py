"""The checkout on sys.path, beside packages that have names of its folders: transformers and peft import `kernels`."""

import os
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(sysconfig.get_path("purelib"))
OURS = """
    import metala_vision, timm, torch
    model = timm.create_model("metala_vit_nano", depth=2, num_classes=3).eval()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
"""
THEIRS = """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, TimmWrapperConfig, TimmWrapperModel
    from transformers.utils import is_kernels_available
"""
BOTH = """
    adapted = get_peft_model(model, LoraConfig(target_modules=["head"]))
    adapted(torch.randn(1, 3, 32, 32)).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in adapted.named_parameters() if "lora_" in n)
    wrapped = TimmWrapperModel(TimmWrapperConfig(architecture="metala_vit_nano", model_args=dict(depth=2)))
    assert wrapped(torch.randn(1, 3, 32, 32)).last_hidden_state.shape[-1] == 128
    assert metala_vision.kernels.__name__ == "metala_vision.kernels"
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """What is installed here, but for `kernels` and an editable installation of ours."""
    folder = tmp_path_factory.mktemp("site")
    for entry in SITE.iterdir():
        if entry.name != "kernels" and not entry.name.startswith(("kernels-", "metala_vision", "__editable__")):
            (folder / entry.name).symlink_to(entry)
    return folder


def run(code: str, *path: Path) -> str:
    """Standard output of a fresh interpreter in the checkout, which alone is on its path beside `path`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))}
    command = [sys.executable, "-S", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "installed"),
    [
        ("theirs", True),
        pytest.param("ours", False, marks=pytest.mark.slow),
        pytest.param("ours", True, marks=pytest.mark.slow),
        pytest.param("theirs", False, marks=pytest.mark.slow),
    ],
)
def test_transformers_and_peft(site, first, installed):
    """Catches our folder `kernels` being imported for the package of that name, with and without that one installed."""
    code = OURS + THEIRS if first == "ours" else THEIRS + OURS
    tail = f"""
    import sys
    assert is_kernels_available() is {installed}
    module = sys.modules.get("kernels")
    print(getattr(module, "__file__", None))
    """
    where = run(textwrap.dedent(code + BOTH + tail), SITE if installed else site)
    assert where.strip() == (str(SITE / "kernels" / "__init__.py") if installed else "None")


@pytest.mark.long
def test_tools_do_not_wait_for_transformers(tmp_path):
    """Catches seconds of every process for an optimiser of mmengine's, and a package that cannot be imported after."""
    (tmp_path / "transformers.py").write_text("Adafactor = print('imported')\n")
    code = """
        import metala_vision.engine
        from mmengine.registry import OPTIMIZERS
        assert OPTIMIZERS.get("AdamW") is not None
        print("ours is there")
        import transformers
    """
    assert run(code, tmp_path, SITE).split("\n")[:2] == ["ours is there", "imported"]


@pytest.mark.parametrize("name", ["kernels", "tools", "tests", "configs", "results", "shared"])
def test_no_folder_is_a_package(name, tmp_path):
    """Catches a folder of the checkout that is imported in the place of somebody's package of the same name."""
    assert not (ROOT / name / "__init__.py").exists()
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("mine = True\n")
    run(f"import {name}; assert {name}.mine", tmp_path)


def test_tools_stand_behind_what_is_installed(tmp_path):
    """Catches tools/test.py imported for the standard library's `test`: a script's folder comes first on its path."""
    code = """
        import sys
        sys.path.insert(0, "tools")  # as Python does for a script in it
        import arguments, test
        assert hasattr(test, "__path__"), test.__file__
    """
    run(code)
