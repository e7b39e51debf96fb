"""Keras, SavedModel and TFLite files carried to TFLite and ONNX, without running code they carry.

Shared by the converters that start from them. Three parts; imports go from the later to the earlier:

1. the source: `config` and `scan` read what a file says it is made of and refuse what is unsafe before Keras or
   TensorFlow builds anything from it; `load` and `saved_model` open it; `source` makes it a function of tensors;
2. the graph: `shapes`, `recurrent` and `freeze` make a concrete function of fixed batch, variables folded into
   constants, inputs and outputs in the order and under the names of the source;
3. the emitters: `to_tflite` (with `flatbuffer`) and `to_onnx` (with `onnx_model`), each of which runs what it made
   beside the source (`check`) before it is published (`publish`). `tflite_source` opens and checks TFLite files
   for the converters that start from them.

Why not Keras 3's own exports: `export("onnx")` leaves captured constants as extra graph inputs
(Normalization, positions of a transformer), and both lose the order of several outputs.
"""
