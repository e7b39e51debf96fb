"""``lepton-edge`` and ``python -m lepton_edge``: what is here runs before anything else is imported."""

import sys


def main() -> None:
    """The entry point. Ctrl-C while typer is still being imported ends it like any later one."""
    try:
        from lepton_edge.cli import app, clikit

        sys.exit(clikit.run(app))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
