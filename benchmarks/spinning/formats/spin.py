"""A model that only takes time (benchmarks/harness.py): {"spin": how often an empty loop goes round}."""

SUFFIX = ".spin"


def recognise(path, head):
    """From the first bytes."""
    return head.startswith(b'{"spin"')
