"""Pytest plugin that shows timm's own test-suite our models, and only ours.

The suite picks models by name pattern and by module. It takes ours for plain ViTs: tokens [B, N, C], no pooling size.
"""

import pytest
import timm
from timm.models import _registry

import metala_vision  # noqa: F401  (registers the models)

_list_models = timm.list_models
OURS = sorted(name for name, create in _registry._model_entrypoints.items() if "metala_vision" in create.__module__)
# The feature tests select by the module a model is registered from.
_registry._module_to_models["vision_transformer"].update(OURS)


def _as_vit(patterns: str | list[str]) -> str | list[str]:
    return [*patterns, *OURS] if isinstance(patterns, (list, tuple)) and "vit_*" in patterns else patterns


def list_our_models(filter="", module="", pretrained=False, exclude_filters="", **kwargs) -> list[str]:
    names = _list_models(_as_vit(filter), module, pretrained, _as_vit(exclude_filters), **kwargs)
    return [name for name in names if name.split(".")[0] in OURS]


timm.list_models = list_our_models


def pytest_collection_modifyitems(config: pytest.Config, items: list) -> None:
    """Keeps the tests of our models, and lifts the suite's limits on images of a fixed size.

    Several of the suite's lists are written out or ask for pretrained weights, so that they hold models of timm's.
    Models trained at 288 or 448 pixels would be skipped.
    """
    names = {item: getattr(item, "callspec", None) and item.callspec.params.get("model_name") for item in items}
    config.hook.pytest_deselected(items=[item for item, name in names.items() if name not in OURS])
    items[:] = [item for item, name in names.items() if name in OURS]
    for module in {item.module for item in items}:
        for name in vars(module):
            if name.startswith("MAX_") and name.endswith("_SIZE"):
                setattr(module, name, max(512, getattr(module, name)))
