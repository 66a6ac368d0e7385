"""mmengine's optimisers, imported without the whole of transformers, which it looks into for one of them.

Where transformers is installed that takes seconds, in every process of every tool. timm has that optimiser too.
"""

import sys

from metala_vision.yapf_cache import import_yapf

import_yapf()

if "mmengine.optim" not in sys.modules and "transformers" not in sys.modules:
    sys.modules["transformers"] = None  # type: ignore[assignment]  # what Python takes for a package that is not there
    try:
        import mmengine.optim  # noqa: F401
    finally:
        del sys.modules["transformers"]
