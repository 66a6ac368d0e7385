"""A model beside the one that is trained."""

import torch

from .backbone import TimmModel


class Frozen:
    """A teacher that is in no checkpoint, no optimiser and no gradient exchange, and always in evaluation mode."""

    def __init__(self, model: TimmModel):
        self.model = model.eval().requires_grad_(False)

    def to(self, device: torch.device) -> TimmModel:
        """The model, on a device."""
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        return self.model
