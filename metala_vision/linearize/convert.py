"""From a softmax ViT to a linear one with its weights."""

from typing import Any

from timm.models.vision_transformer import VisionTransformer

from metala_vision.models.linearized_vit import LinearizedViT


def linearize(
    teacher: VisionTransformer, mixer: str = "metala", keep_softmax: tuple[int, ...] = (), **settings: Any
) -> LinearizedViT:
    """A copy of a ViT of timm whose patches attend to each other in a linear form.

    Patch embedding, positions, class token, registers, norms, MLPs and the projections of the attention are the
    teacher's; the states that stand between queries and keys are random until `calibrate` has seen images.

    Args:
        teacher: a VisionTransformer of timm, with its weights; it is left as it is.
        mixer: the form of the attention between patches: "metala", "kernel" or "classes", see
            `metala_vision.layers.linearized.forms`.
        keep_softmax: indices of the blocks whose attention stays as it is; negative ones count from the last.
        settings: `states`, `scan` and `decay_scale`, see `LinearizedViT`.

    Raises:
        ValueError: a teacher that is no plain VisionTransformer, and what `LinearizedViT` refuses.
    """
    return LinearizedViT.of(teacher, mixer=mixer, keep_softmax=keep_softmax, **settings)
