"""The console script. Ctrl-C is heard from the first line on: while the command line itself is still being imported, too."""

import sys


def main() -> int:
    """The exit code."""
    try:
        from edgesdk.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    run()
    return 0
