"""ONNX graphs as PyTorch functions that can be differentiated: what training any model needs."""
