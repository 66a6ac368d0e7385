"""Pictures as PNG files, which are either whole or not there; no display is needed."""

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .files import write_atomic


def save_png(figure: Figure, path: str | Path, dpi: int = 100) -> None:
    """Writes the figure as PNG, atomically."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=dpi)
    write_atomic(path, buffer.getvalue())
