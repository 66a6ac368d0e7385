"""A model as a program of PyTorch: torch.export's, which runs our kernels, and AOTInductor's, which needs no Python."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metala_vision.description import plain
from metala_vision.errors import InputError

from .job import Job, first_line
from .runtimes import KEY
from .torch_operators import PlainOperators
from .torch_scan import size_of_its_own


def write_torch(model: nn.Module, file: Path, job: Job) -> None:
    """Writes an ExportedProgram.

    Raises:
        InputError: torch's exporter does not take the model.
    """
    with _exporting():
        program = job.program(model)
        # The images of the example would be in the file, and torch would make checks of it that refuse single patches.
        program.example_inputs = None
        torch.export.save(program, file, extra_files={KEY: _described(job)})


def write_aoti(model: nn.Module, file: Path, job: Job) -> None:
    """Writes a package of AOTInductor, in operators of PyTorch's own.

    Raises:
        InputError: torch's exporter does not take the model, or does not compile it.
    """
    settings = {
        "aot_inductor.metadata": {KEY: _described(job)},
        "cpp.dynamic_threads": True,  # as many as there are where it runs, not where it was written
    }
    with _exporting():
        program = plain_program(model, job)
        torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=settings)


def plain_program(model: nn.Module, job: Job) -> torch.export.ExportedProgram:
    """The model in operators of PyTorch's own. Raises what torch's exporter raises, which may be anything."""
    patch = _patch(model)
    with PlainOperators():
        return job.program(_WholePatches(model, patch).eval() if patch and "size" in job.dynamic else model)


class _WholePatches(nn.Module):
    """A model, and before it the padding of images to whole patches, whose numbers are symbols of their own."""

    def __init__(self, model: nn.Module, patch: tuple[int, int]):
        super().__init__()
        self.model, self.patch = model, patch

    def forward(self, image: Tensor) -> Any:
        height, width = self.patch
        rows = size_of_its_own((image.shape[2] + height - 1) // height)
        cols = size_of_its_own((image.shape[3] + width - 1) // width)
        # AOTInductor asks whether the tokens are one, for the order of axes in memory, and would not be told.
        torch._check(rows * cols != 1)
        return self.model(F.pad(image, (0, cols * width - image.shape[3], 0, rows * height - image.shape[2])))


def _patch(model: Any) -> tuple[int, int] | None:
    """Height and width of the patches that a model pads images to; None if it does not."""
    embed = getattr(getattr(model, "model", model), "patch_embed", None)
    size = getattr(embed, "patch_size", None)
    return tuple(size) if size is not None and getattr(embed, "dynamic_img_pad", False) else None


def _described(job: Job) -> str:
    return json.dumps(plain(job.described, "description")) if job.described else ""


@contextmanager
def _exporting() -> Iterator[None]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own, about its own code
        try:
            yield
        except (InputError, OSError):
            raise
        except Exception as error:  # torch's exporter raises whatever its parts raise
            raise InputError(f"export: torch cannot export this model: {first_line(error)}") from error
