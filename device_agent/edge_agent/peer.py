"""Who is at the other end of a connection on this device. Standard library only.

uid = Peer(sock).uid              # None: the kernel does not tell
"""

from __future__ import annotations

import functools
import socket
import struct
import sys

_CREDENTIALS = struct.Struct("3i")  # process, user, group
_ESTABLISHED = "01"


class Peer:
    """Asked for when somebody needs to know: over TCP it takes reading a list of all connections."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @functools.cached_property
    def uid(self) -> int | None:
        """The user: of the process that connected to the Unix socket, or who owns the other end of a connection over loopback."""
        try:
            if self._socket.family == socket.AF_UNIX:
                return int(_CREDENTIALS.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1])
            return _owner_of(self._socket.getpeername()[:2], self._socket.getsockname()[:2])
        except OSError:
            return None


def _owner_of(there: tuple[str, int], here: tuple[str, int]) -> int | None:
    """Whose socket is bound to ``there`` and connected to ``here``: the kernel lists both ends of what stays on this device."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        wanted = [_written(*there, wide=table.endswith("6")), _written(*here, wide=table.endswith("6")), _ESTABLISHED]
        try:
            with open(table, encoding="ascii") as lines:
                for line in lines:
                    fields = line.split()
                    if fields[1:4] == wanted:
                        return int(fields[7])
        except FileNotFoundError:  # a kernel without IPv6
            continue
    return None


def _written(address: str, port: int, *, wide: bool) -> str:
    """As the kernel writes an address: words of four bytes in the machine's own order. An IPv4 address may belong to an IPv6 socket."""
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
    else:
        packed = (bytes(10) + b"\xff\xff" if wide else b"") + socket.inet_aton(address)
    words = (int.from_bytes(packed[start : start + 4], sys.byteorder) for start in range(0, len(packed), 4))
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
