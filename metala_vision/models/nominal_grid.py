"""The grid that weights were trained on. It is saved with them and decides how far scans remember on other grids."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Self = TypeVar("Self", bound="HasNominalGrid")


class HasNominalGrid(nn.Module):
    """A model with modules in its `blocks` that scale their memory by a `nominal_grid`, see `layers.decay`.

    Attributes:
        nominal_grid: rows and columns, as a buffer; zeros if the weights were saved before there was such a buffer.
        decay_scale: "grid", or "none" if the blocks are not to scale their memory.
    """

    nominal_grid: Tensor
    decay_scale: str

    @torch.jit.ignore
    def _set_nominal_grid(self, grid: tuple[int, int]) -> None:
        """Sets the grid that the weights are trained on; (0, 0) means that it is not known."""
        if not self.nominal_grid.is_meta:
            self.nominal_grid.copy_(torch.tensor(grid))
        self._tell_blocks(grid)

    def train(self: Self, mode: bool = True) -> Self:
        """As every module's, also by `eval`; a grid that was copied into the buffer, by DDP say, counts from now on."""
        if type(self.nominal_grid) is Tensor and not self.nominal_grid.is_meta:
            rows, cols = self.nominal_grid.tolist()
            self._tell_blocks((rows, cols))
        return super().train(mode)

    @torch.jit.ignore
    def _tell_blocks(self, grid: tuple[int, int]) -> None:
        blocks: Any = self.blocks
        for part in blocks.modules():
            if hasattr(part, "nominal_grid"):  # softmax attention, for one, forgets nothing
                part.nominal_grid = grid if self.decay_scale == "grid" else (0, 0)

    @torch.jit.ignore
    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Takes the grid of the weights, or (0, 0) for older weights, which remember as many tokens on any grid.

        Where no blocks are loaded, as with a head alone, the model keeps its grid.
        """
        key = f"{prefix}nominal_grid"
        if key not in state_dict and any(name.startswith(f"{prefix}blocks.") for name in state_dict):
            state_dict[key] = torch.zeros_like(self.nominal_grid, device="cpu")
        super()._load_from_state_dict(state_dict, prefix, *args)
        found = state_dict.get(key)
        if found is not None and not found.is_meta:
            rows, cols = found.tolist()
            self._set_nominal_grid((rows, cols))
