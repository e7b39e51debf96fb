"""Lepton Edge's own ONNX to TFLite writer: it writes the flatbuffer directly, without TensorFlow.

The stages, one file each:
- `load`: ONNX file -> static, optimised `Graph` (ONNX Runtime, basic level);
- `fold`: constants computed at build time, dead nodes removed;
- `fuse`: patterns TFLite has one operator for (batch norm, GELU, fused activations);
- `emit` + `layout`: walks the nodes, choosing for every tensor the order its axes are stored in;
- `ops_*`: one small function per ONNX operator, joined in `table`;
- `flatbuffer` + `opcodes`: the file itself, with operator versions as low as they can be;
- `check`: runs the file against ONNX Runtime before anyone may see it.
"""
