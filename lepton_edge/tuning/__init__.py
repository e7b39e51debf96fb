"""Training a compressed ONNX model towards the answers of the model it was made of."""
