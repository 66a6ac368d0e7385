"""The channel mixer of a MetaLA block."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

import metala_vision.kernels  # noqa: F401  (registers the operator)

from .watched import is_plain


class SwiGLU(nn.Module):
    """(SiLU(x W1) * x W2) W3 without biases (MetaLA, arXiv 2411.10741, eq. A43); W1 and W2 are one projection."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0, device=None, dtype=None):
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden_dim, bias=False, device=device, dtype=dtype)
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        plain = True
        if not torch.jit.is_scripting():
            plain = _says_all(self.fc1) and _says_all(self.fc2)
        if plain:
            x = torch.ops.metala.swiglu_mlp(x, self.fc1.weight, self.fc2.weight)
        else:
            x = self.fc2(torch.ops.metala.swiglu(self.fc1(x)))
        return self.drop(x)


def adds_in_one_go(norm: nn.Module, mlp: nn.Module, drop_path: nn.Module) -> bool:
    """Whether x + drop_path(mlp(norm(x))) is `torch.ops.metala.add_swiglu_mlp`, and no module of it would be missed."""
    return (
        is_plain(norm, nn.LayerNorm)
        and norm.bias is not None
        and is_plain(mlp, SwiGLU)
        and _says_all(mlp.fc1)
        and _says_all(mlp.fc2)
        and _is_idle(mlp.drop)
        and _is_idle(drop_path)
    )


def _says_all(linear: nn.Module) -> bool:
    """Whether its weight does."""
    return is_plain(linear, nn.Linear) and linear.bias is None


def _is_idle(drop: nn.Module) -> bool:
    """Whether it hands on what it gets."""
    off = is_plain(drop, nn.Identity) or (is_plain(drop, nn.Dropout) and drop.p == 0.0)
    return off or (not drop.training and (is_plain(drop, nn.Dropout) or is_plain(drop, DropPath)))
