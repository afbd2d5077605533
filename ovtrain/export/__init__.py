"""Public checkpoint directories: ``save_encoder`` writes them, ``load_encoder`` reads them."""

from ovtrain.export.hf import save_encoder
from ovtrain.export.load import load_encoder

__all__ = ["load_encoder", "save_encoder"]
