"""A causal language model for mmengine's Runner: it answers where a sequence asks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from metala_vision.data.recall import IGNORED, AssociativeRecall
from metala_vision.description import plain
from metala_vision.errors import InputError, near_matches
from metala_vision.models.language import MetaLALanguageModel

from .base import TaskModel, place

NAME = "metala_lm"


@MODELS.register_module()
class SequenceModel(TaskModel):
    """Cross-entropy training of a `MetaLALanguageModel` where labels ask for a token.

    Args:
        backbone: arguments of the model, with `model_name="metala_lm"`.
        grad_checkpointing: recompute activations in the backward pass, for less memory.
        compile: run the model through torch.compile.

    Raises:
        InputError: a part that does not fit; the message names the argument.
    """

    part = "backbone"
    task = "sequences"

    def __init__(
        self,
        backbone: dict,
        grad_checkpointing: bool = False,
        compile: bool = False,
        data_preprocessor: dict | None = None,
    ):
        super().__init__(data_preprocessor or BaseDataPreprocessor())
        self.arguments, self.options = dict(backbone), {}
        arguments = dict(backbone)
        name = arguments.pop("model_name", None)
        if name != NAME:
            raise InputError(f"model: got model_name {name!r}, expected {NAME!r}{near_matches(str(name), [NAME])}")
        try:
            self.backbone = MetaLALanguageModel(**arguments)
        except (TypeError, ValueError) as error:
            raise InputError(f"model: {name}: {error}") from error
        if grad_checkpointing:
            self.backbone.set_grad_checkpointing()
        if compile:
            self.backbone.forward_features = torch.compile(self.backbone.forward_features)  # type: ignore[method-assign]

    @property
    def trunk(self) -> MetaLALanguageModel:
        return self.backbone

    def check(self, datasets: Sequence) -> None:
        for dataset in datasets:
            if not isinstance(dataset, AssociativeRecall):
                raise InputError(f"data: {place(dataset)} has no sequences of tokens")
            if dataset.vocab_size != self.backbone.vocab_size:
                raise InputError(
                    f"model: vocab_size is {self.backbone.vocab_size}, but {place(dataset)} has {dataset.vocab_size}"
                    f" tokens; set model.backbone.vocab_size={dataset.vocab_size}"
                )
            if 0 < self.backbone.max_tokens < dataset.tokens:
                raise InputError(
                    f"model: max_tokens is {self.backbone.max_tokens}, but {place(dataset)} has sequences of"
                    f" {dataset.tokens}; set model.backbone.max_tokens={dataset.tokens}, or 0 for no positions"
                )

    def describe(self, train: Any, evaluation: Any) -> dict:
        described = dict(
            task=self.task,
            kind=None,
            options={},
            architecture=NAME,
            model_args={key: value for key, value in self.arguments.items() if key != "model_name"},
            num_classes=self.backbone.vocab_size,
            label_names=None,
            input_size=[1, 1, train.tokens],
            crop_pct=None,
            interpolation=None,
            mean=[],
            std=[],
            grid=[1, train.tokens],
        )
        return plain(described, "description")

    def pictures(self, batch: dict, classes: Sequence[str], training: bool) -> list[tuple[np.ndarray, str]]:
        """A sequence as a strip: the place of each token in the vocabulary as its shade, red where an answer is due."""
        strips = []
        for tokens, labels in zip(batch["inputs"].cpu(), batch["labels"].cpu()):
            shade = (tokens.float() / self.backbone.vocab_size)[None, :, None].repeat(16, 1, 3)
            asked = labels != IGNORED
            shade[:, asked] = torch.tensor([0.8, 0.1, 0.1])
            strips.append((shade.numpy(), f"{int(asked.sum())} asked of {len(tokens)}"))
        return strips

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, errors: list[str] | None = None, mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[dict]:
        """Tokens [B, N] -> logits [B, N, vocab_size], dict(loss), or one dict(logits, labels, sequences).

        Predictions are of the places that ask; `sequences` is the one in the batch that each is in.
        """
        if mode == "tensor":
            return self.backbone(inputs)
        if labels is None:
            raise InputError("labels: got None, expected a token, or -100, for each place of a sequence")
        asked = labels != IGNORED
        # The head sees the places that ask alone: all of them would cost more than the blocks.
        logits = self.backbone.forward_head(self.backbone.forward_features(inputs)[asked]).float()
        if mode == "loss":
            return dict(loss=F.cross_entropy(logits, labels[asked]))
        return [dict(logits=logits, labels=labels[asked], sequences=asked.nonzero()[:, 0])]
