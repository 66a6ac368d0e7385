"""The token mixers of a block: MetaLA, and those that it stands beside."""

from .gla import GLA
from .hgrn import HGRN
from .inline import InLine
from .metala import MetaLA
from .normalized import Normalized
from .registry import MIXERS, register_mixer
from .retnet import RetNet
from .softmax import Softmax
from .ssd import SSD
from .zeros import ZeroS

__all__ = [
    "GLA",
    "HGRN",
    "MIXERS",
    "SSD",
    "InLine",
    "MetaLA",
    "Normalized",
    "RetNet",
    "Softmax",
    "ZeroS",
    "register_mixer",
]
