"""The console script. Ctrl-C is heard from the first line to the last: while the command line itself is still being imported, too."""

import signal
import sys
from types import FrameType

_LATER_S = 0.02


def main() -> int:
    """The exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell wants it ignored
        for number in (signal.SIGINT, signal.SIGALRM):
            signal.signal(number, _interrupt)
    try:
        from edgesdk.cli import main as run

        run()
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said: Python's own end takes no time worth stopping


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Not within a library's own start: onnxruntime takes an exception there for a failure, or dies of it."""
    if _starts_a_library(frame):
        signal.setitimer(signal.ITIMER_REAL, _LATER_S)  # then we are asked again
        return
    raise KeyboardInterrupt


def _starts_a_library(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap_external>" and type(frame.f_locals.get("self")).__name__ == "ExtensionFileLoader":
            return True
        frame = frame.f_back
    return False
