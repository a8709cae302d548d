"""Standard input, output and error of a program that somebody started."""

from __future__ import annotations

import os
import sys


def open_closed() -> None:
    """What starts a service may leave them closed: then they are empty, and no file that is opened later gets their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  # as long as the program
