"""The channel mixer of a MetaLA block."""

import torch
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


def _is_plain(linear: nn.Module) -> bool:
    """Whether its weight says all: no adapter, quantised or wrapped module, no hook that expects to be called."""
    hooks = (linear._forward_hooks, linear._forward_pre_hooks, linear._backward_hooks, linear._backward_pre_hooks)
    return type(linear) is nn.Linear and linear.bias is None and not any(hooks) and "forward" not in vars(linear)
