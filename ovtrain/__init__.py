"""ovtrain: pretraining of OneVision-Encoder-style vision encoders from codec-selected patches."""

__version__ = "0.1.0"
