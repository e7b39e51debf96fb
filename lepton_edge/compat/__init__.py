"""Which releases of runtimes load what: one JSON file a runtime family, measured by scripts/probe_runtimes.py or taken
from the public document that its "source" names.

"kind": "loader" (a file with an operator that is not there does not load) or "coverage" (such operators run elsewhere).
A runtime that loads several formats has a file for each (openvino-ir.json: {"ir", "types", "operators": {name: [first
opset, last opset]}}). "refused": operators and types that a runtime has, and does not compute together.
"releases": {release: {"operators": {name: highest version} or [names], "opset": [low, high], "ir": [low, high]}}.
"""
