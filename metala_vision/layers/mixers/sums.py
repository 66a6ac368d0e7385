"""Linear attention without a decay: sums of k^T v over the tokens of a grid, or over those so far."""

from torch import Tensor

from metala_vision.layers.operators import attention


def number_of_tokens(grid: tuple[int, int]) -> float:
    """Of a grid: a float, since ONNX would keep the integer of the image at hand where it is divided by."""
    return 1.0 * grid[0] * grid[1]


def running_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """o_t = q_t sum_{i <= t} k_i^T v_i over a sequence: [B, N, H, K], the same, [B, N, H, V] -> [B, N, H, V].

    It is `gated_linear_attention` with decays of one.
    """
    q = q * q.shape[-1] ** 0.5  # the operator's scale undone
    return attention(q, q.new_zeros(1).expand(q.shape), k, v, (1, q.shape[1]), "row")
