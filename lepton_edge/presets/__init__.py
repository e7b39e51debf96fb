"""Presets of `compress --recipe`: chains of steps as data, one TOML file a preset (read by ``chains.py``)."""
