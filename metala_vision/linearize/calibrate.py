"""The first states of a linearized attention, from the keys that its teacher has on a few images."""

from collections.abc import Iterable
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from metala_vision.models.linearized_vit import LinearizedViT

KEYS = 100  # of each state: keys of a head that its classes are made from


@torch.no_grad()
def calibrate(model: LinearizedViT, teacher: VisionTransformer, batches: Iterable[Tensor], seed: int = 0) -> None:
    """Sets the states of every linear attention to classes of the teacher's keys, by k-means for each head.

    No label and no gradient is needed, and a few dozen images are enough.

    Args:
        model: what `linearize` has made of the teacher; changed in place.
        teacher: it, in evaluation mode.
        batches: images [B, in_chans, height, width], as the teacher takes them.
        seed: of the choice of keys, and of k-means.

    Raises:
        ValueError: no images, or fewer patches in them than a head has states.
    """
    from sklearn.cluster import KMeans

    blocks: Any = model.blocks
    linear = [i for i, block in enumerate(blocks) if block.is_linear]
    seen: dict[int, list[Tensor]] = {i: [] for i in linear}
    handles = [
        teacher.blocks[i].attn.register_forward_pre_hook(lambda _, inputs, i=i: seen[i].append(inputs[0]))
        for i in linear
    ]
    generator = torch.Generator().manual_seed(seed)
    # Of each block the keys of the highest numbers drawn: a fair choice of all, however many images there are.
    keys: dict[int, Tensor] = {}
    drawn: dict[int, Tensor] = {i: torch.empty(0) for i in linear}
    try:
        for images in batches:
            teacher.forward_features(images)
            for i in linear:
                attn = blocks[i].attn
                k = attn.project(seen[i].pop())[1][:, :, attn.num_prefix_tokens :].transpose(0, 1).flatten(1, 2)
                numbers = torch.cat([drawn[i], torch.rand(k.shape[1], generator=generator)])
                k = torch.cat([*([keys[i]] if i in keys else ()), k.float().cpu()], 1)
                chosen = numbers.argsort(descending=True)[: KEYS * model.states]
                keys[i], drawn[i] = k[:, chosen], numbers[chosen]
    finally:
        for handle in handles:
            handle.remove()
    if linear and not keys:
        raise ValueError("batches: got none, expected images")
    for i in linear:
        form, k = blocks[i].attn.form, keys.pop(i)
        if k.shape[1] < model.states:
            raise ValueError(f"batches: got {k.shape[1]} patches, expected {model.states} or more, one for each state")
        found = [KMeans(model.states, n_init=1, max_iter=20, random_state=seed).fit(head.numpy()) for head in k]
        centres = torch.stack([torch.from_numpy(classes.cluster_centers_) for classes in found])
        spread = torch.tensor([classes.inertia_ / k.shape[1] for classes in found])
        form.start(centres.to(form.key_weight), spread.to(form.key_weight))
