"""Public checkpoint directories: ``hf`` writes them, ``load`` reads them."""
