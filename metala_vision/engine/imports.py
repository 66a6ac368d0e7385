"""Imports mmengine's optimisers without the package transformers, in which mmengine looks for one of them.

Where transformers is installed, its import takes seconds in every process of every tool. timm has that optimiser too.
"""

import sys

from metala_vision.yapf_cache import import_yapf

import_yapf()

if "mmengine.optim" not in sys.modules and "transformers" not in sys.modules:
    sys.modules["transformers"] = None  # type: ignore[assignment]  # Python then takes it for a package that is not there
    try:
        import mmengine.optim  # noqa: F401
    finally:
        del sys.modules["transformers"]
