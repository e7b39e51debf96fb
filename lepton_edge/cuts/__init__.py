"""The beginning of a model, up to one of its tensors: a file a format, run in a worker, for bisection (locate.py)."""
