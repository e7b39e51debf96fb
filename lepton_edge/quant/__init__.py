"""The quantization core: one set of numbers, computed on the ONNX form of a model, written into every format."""
