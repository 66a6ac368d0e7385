"""Which kernel PyTorch runs for softmax attention: the one that was asked for, and the one that it took."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

SDPA = {
    "default": None,  # PyTorch chooses by device, dtype and shape, and its choice changes with its releases
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,  # the attention map written out
}
_RAN = {
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_attention_math": "math",
}


def attention(sdpa: str) -> AbstractContextManager:
    """A context in which softmax attention runs by the kernel of this name, or raises where that kernel cannot run."""
    kernel = SDPA[sdpa]
    return nullcontext() if kernel is None else sdpa_kernel([kernel])


def attention_that_ran(run: Callable[[], object]) -> str | None:
    """The kernel that PyTorch took for softmax attention in `run`, as its profiler saw it; several joined by "+".

    None where PyTorch's softmax attention was not called. A compiled model shows the other kernels but not "math",
    which it has as separate products: ask about the model before it is compiled.
    """
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        run()
    names = {_RAN[event.key] for event in profiler.key_averages() if event.key in _RAN}
    return "+".join(sorted(names)) or None


def calls_softmax(run: Callable[[], object]) -> bool:
    """Whether PyTorch's softmax attention is called with more than one query: only then does its kernel matter."""
    with _Watch() as watch:
        run()
    return watch.found


class _Watch(TorchFunctionMode):
    found = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and (args[0] if args else kwargs["query"]).shape[-2] > 1:
            self.found = True
        return func(*args, **kwargs)
