"""Fast implementations of fused operations, as functions of arrays; they know nothing of tensors."""
