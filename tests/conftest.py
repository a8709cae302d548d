"""Devices of the tests lie on a disk, as devices should: some machines have /tmp in memory."""

import tempfile

from edge_agent import probe

if probe.volatile(tempfile.gettempdir()):
    tempfile.tempdir = "/var/tmp"  # noqa: S108 - every test makes a folder of its own there
