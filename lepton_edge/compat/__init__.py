"""Which releases of runtimes load what: one JSON file a runtime family, measured by scripts/probe_runtimes.py or taken
from the public document that its "source" names.

"kind": "loader" (a file with an operator that is not there does not load) or "coverage" (such operators run elsewhere).
"releases": {release: {"operators": {name: highest version} or [names], "opset": [low, high], "ir": [low, high]}}.
"""
