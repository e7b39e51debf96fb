"""Pruning without training: channels removed from ONNX graphs, weights set to zero, what is left repaired."""
