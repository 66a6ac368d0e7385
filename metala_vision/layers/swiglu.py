"""The channel mixer of a MetaLA block."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

import metala_vision.kernels  # noqa: F401  (registers the operator)


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
            plain = _is_plain(self.fc1) and _is_plain(self.fc2)
        if plain:
            x = torch.ops.metala.swiglu_mlp(x, self.fc1.weight, self.fc2.weight)
        else:
            x = self.fc2(torch.ops.metala.swiglu(self.fc1(x)))
        return self.drop(x)


def adds_in_one_go(norm: nn.Module, mlp: nn.Module, drop_path: nn.Module) -> bool:
    """Whether x + drop_path(mlp(norm(x))) is `torch.ops.metala.add_swiglu_mlp`, and no module of it would be missed."""
    return (
        type(norm) is nn.LayerNorm
        and norm.bias is not None
        and type(mlp) is SwiGLU
        and not _is_watched(norm)
        and not _is_watched(mlp)
        and _is_plain(mlp.fc1)
        and _is_plain(mlp.fc2)
        and _is_idle(mlp.drop)
        and _is_idle(drop_path)
    )


def _is_idle(drop: nn.Module) -> bool:
    """Whether it hands on what it gets."""
    off = type(drop) is nn.Identity or (type(drop) is nn.Dropout and drop.p == 0.0)
    return (off or (type(drop) in (nn.Dropout, DropPath) and not drop.training)) and not _is_watched(drop)


def _is_plain(linear: nn.Module) -> bool:
    """Whether its weight says all: no adapter, quantised or wrapped module, no hook that expects to be called."""
    return type(linear) is nn.Linear and linear.bias is None and not _is_watched(linear)


def _is_watched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)
