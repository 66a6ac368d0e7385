"""What compute-sanitizer watches: both operators, forward and backward, whole and in segments."""

import torch

from metala_vision.kernels import SCAN_ORDERS, gated_linear_attention, mixer


def main(device: str = "cuda") -> None:
    """Two small shapes: one sequence for each head, and one that is cut into segments."""
    for batch, rows, cols in ((2, 5, 7), (1, 16, 32)):
        heads, tokens = 2, rows * cols
        leaves = [torch.randn(batch, tokens, heads, width, device=device) for width in (32, 32, 64)]
        leaves[1] = torch.nn.functional.logsigmoid(leaves[1])
        leaves = [x.to(torch.bfloat16).requires_grad_() for x in leaves]
        out = gated_linear_attention(*leaves, grid=(rows, cols), scan=SCAN_ORDERS)
        out.sum().backward()
        channels = 64 * heads
        projected = torch.randn(batch, tokens, 3 * channels, device=device).to(torch.bfloat16).requires_grad_()
        bias, weight = (torch.randn(size, device=device).requires_grad_() for size in (channels, channels // 2))
        mixer(projected, bias, weight, heads, rows, cols, "row,column_reverse").sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
