"""Models under torch.func and with gradients of gradients: what timm's ViT can do, in float32."""

import pytest
import timm
import torch
from tolerances import FLOAT32, relative_rms
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap

import metala_vision

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")  # torch itself scripts functions when forward mode begins


def small(**kwargs) -> nn.Module:
    return timm.create_model("metala_vit_nano", depth=2, num_classes=3, **kwargs).eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def loss(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(model, parameters, (x,)).logsumexp(1).mean()


def test_gradients_by_torch_func(model):
    """Catches "must override the setup_context staticmethod", and other gradients than those of backward()."""
    x, parameters = torch.randn(3, 3, 24, 40), weights(model)
    found = grad(lambda p: loss(model, p, x))(parameters)
    expected = torch.autograd.grad(model(x).logsumexp(1).mean(), list(model.parameters()))
    assert all(relative_rms(a, b) <= FLOAT32 for a, b in zip(found.values(), expected))
    each = vmap(grad(lambda p, x: loss(model, p, x[None])), in_dims=(None, 0))(parameters, x)
    assert all(relative_rms(a.mean(0), b) <= FLOAT32 for a, b in zip(each.values(), expected))


def test_jacobians_and_hessians_by_torch_func(model, capfd):
    """Catches a transform, or two of them, that one operator of the model does not know."""
    x = torch.randn(2, 3, 16, 24)
    jacobian = jacrev(lambda x: model(x).sum(0))(x)
    (expected,) = torch.autograd.grad(model(x.requires_grad_())[:, 1].sum(), x)
    assert relative_rms(jacobian[1], expected) <= FLOAT32
    out, tangent = jvp(model, (x,), (torch.ones_like(x),))
    assert relative_rms(tangent.sum(0), jacobian.sum((1, 2, 3, 4))) <= FLOAT32
    assert relative_rms(out, model(x)) <= FLOAT32
    corner = torch.randn(3, 2, 2)
    image = x[0].detach()

    def of_corner(corner: Tensor) -> Tensor:
        return model(torch.cat([torch.cat([corner, image[:, :2, 2:]], 2), image[:, 2:]], 1)[None]).sum()

    twice = hessian(of_corner)(corner).reshape(12, 12)
    assert twice.abs().max() > 0
    assert relative_rms(twice, twice.T) <= 1e-4  # of a second derivative in float32, in two orders
    ensemble = [model, small()]
    stacked = stack_module_state(ensemble)
    found = vmap(lambda p, b: functional_call(model, (p, b), (x,)))(*stacked)
    assert all(relative_rms(a, m(x)) <= FLOAT32 for a, m in zip(found, ensemble))
    assert "batching rule" not in capfd.readouterr().err


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_gradient_penalty(grad_checkpointing):
    """Catches a penalty that raises, or that gives other gradients than those of the composed operators."""
    model = small().train()
    model.set_grad_checkpointing(grad_checkpointing)
    x = torch.randn(2, 3, 24, 24, requires_grad=True)

    def penalty() -> list[Tensor]:
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), list(model.parameters()), materialize_grads=True))

    found = penalty()
    with metala_vision.kernels.backend("chunked"):
        expected = penalty()
    assert all(relative_rms(a, b) <= FLOAT32 for a, b in zip(found, expected))
    unused = [name for (name, _), b in zip(model.named_parameters(), expected) if b.abs().max() == 0]
    assert unused == ["norm.bias", "head.bias"], "only these add to an output and to no slope"
