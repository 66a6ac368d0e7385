"""torch.compile(dynamic=True): one compilation for all sizes, and one for a single image."""

import pytest
import timm
import torch
from tolerances import FLOAT32, relative_rms
from torch import nn

import metala_vision  # noqa: F401  (registers the models)

SHAPES = [
    (2, 3, 64, 96),
    (3, 3, 96, 64),
    (5, 3, 70, 100),
    (2, 3, 33, 200),
    (1, 3, 64, 96),
    (1, 3, 128, 80),
    (3, 3, 80, 80),
]
SMALL = dict(depth=2, img_size=64)
VIT = dict(teacher="vit_tiny_patch16_224", embed_dim=48, num_heads=3, states=8)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("metala_vit_nano", dict(embed_dim=32, num_heads=2)),
        ("metala_vit_nano", dict(embed_dim=32, num_heads=2, scan="cross", mlp_conv=True)),
        *(("linearized_vit", dict(mixer=mixer, **VIT)) for mixer in ("metala", "kernel", "classes")),
    ],
    ids=lambda x: x if isinstance(x, str) else x.get("mixer", x.get("scan", "cycle")),
)
def test_no_compilation_for_each_size(name, options):
    """Catches a size that a graph takes for constant, a comparison that divides sizes, and a graph that breaks."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model: nn.Module = timm.create_model(name, **SMALL, **options).eval()
    graphs = []

    def keep(graph, example):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, dynamic=True, backend=keep)
    with torch.no_grad():
        for shape in SHAPES:
            x = torch.randn(shape)
            assert relative_rms(compiled(x), model(x)) <= FLOAT32, shape
    assert not torch._dynamo.utils.counters["graph_break"]
    assert len(graphs) <= 2
