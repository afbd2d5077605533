"""Pure models: tensors in, tensors out; they know nothing of ranks, labels or data config."""
