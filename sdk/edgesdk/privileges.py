"""How commands are run as root on a device: the login user is root, or sudo makes him so. A password is asked for once, and kept nowhere.

root = become(transport, ask)
transport.run(root.argv(["id"]), stdin=root.stdin([]))
"""

import getpass
import itertools
import secrets
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from edgesdk.errors import Refused
from edgesdk.transport import Transport

Ask = Callable[[str], str]


# sudo reads the password, or leaves it: a rule may let this very command pass without one. The command's own input begins behind the mark ($1).
_BEHIND_THE_MARK = 'while IFS= read -r line; do [ "$line" = "$1" ] && shift && exec "$@"; done; exit 1'


@dataclass(frozen=True, slots=True)
class Root:
    """``prefix`` before each command; the password, where sudo wants one, as the first line of its input, which the command never sees."""

    prefix: tuple[str, ...] = ()
    _password: str | None = field(default=None, repr=False)
    _mark: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    def argv(self, command: Sequence[str]) -> list[str]:
        past = [] if self._password is None else ["sh", "-c", _BEHIND_THE_MARK, "sh", self._mark]
        return [*self.prefix, *past, *command]

    def stdin(self, chunks: Iterable[bytes]) -> Iterable[bytes]:
        return chunks if self._password is None else itertools.chain([f"{self._password}\n{self._mark}\n".encode()], chunks)


def on_terminal(question: str) -> str:
    """Raises Refused where nobody can be asked."""
    if not sys.stdin.isatty():
        raise Refused("sudo there asks for a password, and nobody is here to type it", "run this on a terminal, or log in as root")
    return getpass.getpass(question)


def become(transport: Transport, ask: Ask = on_terminal) -> Root:
    """Raises Refused where there is no way to be root."""
    host = transport.host
    who = transport.run(["id", "-un"]).stdout.decode(errors="replace").strip().splitlines()[-1:]
    name = who[0] if who else "this user"
    if name == "root":
        return Root()
    if transport.run(["sudo", "-n", "true"]).returncode == 0:
        return Root(("sudo", "-n", "--"))
    if transport.run(["sudo", "-V"]).returncode != 0:
        raise Refused(f"{name} on `{host}` is not root, and there is no sudo", f"log in as root: `edgesdk setup root@{host.rpartition('@')[2]} --system`")
    root = Root(("sudo", "-k", "-S", "-p", "", "--"), ask(f"password of {name} on {host}, for sudo: "))
    if transport.run(root.argv(["true"]), stdin=root.stdin([])).returncode != 0:
        raise Refused(f"sudo on `{host}` does not make {name} root with that password", "is it the right one, and is the user in sudoers?")
    return root
