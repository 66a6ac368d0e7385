"""What has to be imported before mmengine."""

from metala_vision.yapf_cache import import_yapf

import_yapf()
