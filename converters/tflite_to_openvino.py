"""TFLite to OpenVINO IR, float and int8."""

COST = 2.0
REQUIRES = ("openvino>=2026",)
