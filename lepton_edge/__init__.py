"""Lepton Edge: compress trained models for the edge, and prove what came out."""

__version__ = "0.1.0"
