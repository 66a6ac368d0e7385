"""Segmenters on our pyramid and on plain backbones: sizes, gradients, windows, and that they learn."""

import sys

import pytest
import torch
from small_models import DECODERS

from metala_vision.dense import SEGMENTERS, segmenter, sliding_window
from metala_vision.errors import InputError

pytest.importorskip("segmentation_models_pytorch")
SMALL = dict(embed_dim=32, depth=4, num_heads=1)


def build(kind: str, name: str = "metala_vit_nano", classes: int = 3):
    return segmenter(kind, name, classes, out_channels=16, backbone_arguments=SMALL, **DECODERS[kind])


@pytest.mark.parametrize("name", ["metala_vit_nano", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("kind", SEGMENTERS)
def test_sizes_and_gradients(kind, name):
    model = build(kind, name).train()
    out = model(torch.randn(2, 3, 70, 101))
    assert out.shape == (2, 3, 70, 101)
    out.square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.long
@pytest.mark.parametrize("kind", SEGMENTERS)
def test_it_overfits_one_image(kind):
    """Catches maps in the wrong order or place: halves of an image could not be told apart at their border."""
    torch.manual_seed(0)
    model = build(kind, classes=2).train()
    x = torch.randn(2, 3, 64, 64) * 0.1
    x[:, 0, :, 24:] += 1
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    target[:, :, 24:] = 1
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(x).argmax(1) == target).float().mean() > 0.97


@pytest.mark.parametrize(
    ("size", "window", "stride"), [((50, 70), 32, 20), ((32, 32), 32, 32), ((20, 90), 32, 31), ((64, 64), 32, 32)]
)
def test_windows_cover_an_image_once(size, window, stride):
    """Against the function itself, pixel by pixel: it looks at nothing around them."""
    image = torch.randn(1, 3, *size)

    def run(x):
        assert x.shape[-2:] == (window, window)
        return torch.stack([x.sum(1), x[:, 0] * 2], 1)

    torch.testing.assert_close(sliding_window(run, image, window, stride, batch=3), _plain(image))


def _plain(x):
    return torch.stack([x.sum(1), x[:, 0] * 2], 1)


def test_overlapping_windows_are_averaged():
    """A function of the place in the window: by hand, in one dimension."""
    image = torch.zeros(1, 1, 4, 6)
    ramp = torch.arange(4.0).expand(4, 4)
    out = sliding_window(lambda x: ramp.expand(len(x), 1, 4, 4), image, 4, 2)
    assert out[0, 0, 0].tolist() == [0, 1, (2 + 0) / 2, (3 + 1) / 2, 2, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: segmenter("deeplab", "metala_vit_nano", 2), "kind: got 'deeplab', expected one of"),
        (lambda: segmenter("fpn", "metala_vit_nano", 0), "num_classes: got 0"),
        (lambda: segmenter("fpn", "metala_nano", 2), "backbone: unknown model 'metala_nano'"),
        (lambda: segmenter("dpt", "metala_nano", 2), "backbone: unknown model 'metala_nano'"),
        (lambda: segmenter("dpt", torch.nn.Identity(), 2), "backbone: Identity is no plain timm model"),
        (lambda: segmenter("fpn", "metala_vit_nano", 2, decoder_depth=3), "segmenter: fpn: .*decoder_depth"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=f"^{message}"):
        make()


@pytest.mark.parametrize("size", [64, 96])
def test_by_its_name_in_smp(size):
    """smp.DPT makes our model itself."""
    import segmentation_models_pytorch as smp

    options = dict(encoder_weights=None, decoder_readout="ignore", classes=3, embed_dim=32, num_heads=1)
    model = smp.DPT("tu-metala_vit_nano", **options).eval()
    assert model(torch.randn(1, 3, size, 128)).shape == (1, 3, size, 128)


def test_a_stride_that_leaves_gaps():
    with pytest.raises(ValueError, match="stride: got 5, expected 1 to the window's 4"):
        sliding_window(lambda x: x, torch.zeros(1, 1, 8, 8), 4, 5)


def test_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(InputError, match=r"pip install segmentation-models-pytorch"):
        build("fpn")
