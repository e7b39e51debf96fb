"""What ``report`` makes of results of ``bench``: pages of any number of them, limits, changes since a baseline."""
