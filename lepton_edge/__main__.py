"""``python -m lepton_edge``."""

from lepton_edge.cli import main

main()
