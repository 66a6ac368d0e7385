"""The channel mixer of a MetaLA block."""

import torch
from torch import Tensor, nn

from .operators import is_traced_for_onnx, swiglu
from .watched import is_plain_product


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
            plain = is_plain_product(self.fc1) and is_plain_product(self.fc2) and not is_traced_for_onnx()
        if plain:
            return self.drop(torch.ops.metala.swiglu_mlp(x, self.fc1.weight, self.fc2.weight))
        return self.drop(self.fc2(swiglu(self.fc1(x))))
