"""Codec signals: motion, residuals and bits out of compressed video, and what is made of them."""

from ovtrain.codec.bitstream import ORIGINS, CodecSignals, SignalSource, Want
from ovtrain.codec.ladder import open_signals

__all__ = ["ORIGINS", "CodecSignals", "SignalSource", "Want", "open_signals"]
