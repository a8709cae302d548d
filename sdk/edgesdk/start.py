"""The console script. Ctrl-C is heard from the first line to the last: while the command line itself is still being imported, too."""

import signal
import sys


def main() -> int:
    """The exit code."""
    try:
        from edgesdk.cli import main as run

        run()
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said: Python's own end takes no time worth stopping
