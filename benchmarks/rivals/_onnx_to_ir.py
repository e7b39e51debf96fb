"""Writes an ONNX file as OpenVINO IR with OpenVINO's own front end:  _onnx_to_ir.py SOURCE.onnx TARGET.xml"""

from __future__ import annotations

import sys


def main() -> None:
    """Read, and write without compressing anything."""
    import openvino as ov

    ov.save_model(ov.Core().read_model(sys.argv[1]), sys.argv[2], compress_to_fp16=False)


if __name__ == "__main__":
    main()
