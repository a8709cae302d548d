"""The way to a device over SSH. The only importer of paramiko; its exceptions end here.

    with connect(resolve("pi@192.168.1.20")) as pi:
        pi.run(["uname", "-m"])

Only hosts whose key is known: nothing is ever accepted in silence. Keys first; a password is asked for where no key is taken, the server
lets passwords in, and somebody sits at a terminal. It is kept in this process's memory alone, for the connection that breaks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import paramiko
from paramiko.agent import AgentSSH
from paramiko.common import cMSG_CHANNEL_REQUEST
from paramiko.pkey import UnknownKeyType
from paramiko.ssh_exception import IncompatiblePeer

from edgesdk import transport
from edgesdk.errors import ConnectionFailed, DeviceError
from edgesdk.transport import MAX_REPLY_BYTES, Completed, command_line, known_hosts
from edgesdk.transport.known_hosts import HostKey
from edgesdk.transport.settings import Settings, resolve

# Without a handler Python prints paramiko's tracebacks on stderr; who wants them adds one.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_HANDSHAKE_TIMEOUT_S = 20
_KEEPALIVE_S = 15
_DEAD_LINK_MS = 60_000
_TICK_S = 0.1
_ENDS_WITHIN_S = 5.0
_GRACE_S = 1.0  # for what is still under way when a command has ended
_MAX_STDERR_BYTES = 1 << 16
_SIGNING_S = 60  # a key on a token wants to be touched
_PASSWORDS_ASKED = 3

_typed: dict[tuple[str, str, int], str] = {}  # passwords that were taken, by user, host and port
_asking = threading.Lock()


def connect(settings: Settings) -> SshTransport:
    """Reach the host, check its key, be let in. Raises ConnectionFailed."""
    connections: list[paramiko.Transport] = []
    try:
        _open(settings, connections)
    except BaseException:
        _close(connections)
        raise
    return SshTransport(settings, connections)


class SshTransport:
    """An SSH connection, with those of the hosts that it jumps over."""

    python = "python3"

    def __init__(self, settings: Settings, connections: list[paramiko.Transport]) -> None:
        self.host = settings.host
        self._settings = settings
        self._connections = connections

    def run(self, argv: Sequence[str], *, stdin: Iterable[bytes] = (), silence_s: float = 60, most_bytes: int = MAX_REPLY_BYTES) -> Completed:
        connection = self._connections[-1]
        with _translated(self._settings):
            channel = connection.open_session(timeout=min(silence_s, _HANDSHAKE_TIMEOUT_S))
            try:
                done = self._exchange(channel, command_line(argv), stdin, silence_s, most_bytes)
            finally:
                channel.close()
        if done.returncode < 0 and not connection.is_active():
            raise self._broken()
        return done

    def open(self, argv: Sequence[str], *, silence_s: float = 60) -> SshPipe:
        with _translated(self._settings):
            channel = self._connections[-1].open_session(timeout=min(silence_s, _HANDSHAKE_TIMEOUT_S))
            _execute(channel, command_line(argv))
            channel.settimeout(silence_s)
            return SshPipe(channel, self._settings, self._broken)

    def close(self) -> None:
        _close(self._connections)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(self, channel: paramiko.Channel, line: str, stdin: Iterable[bytes], silence_s: float, most_bytes: int) -> Completed:
        channel.settimeout(_TICK_S)
        feeder = _Feeder(channel, line, stdin)
        feeder.start()
        stdout, stderr, moved, ended = bytearray(), bytearray(), time.monotonic(), 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                data = channel.recv(1 << 16)
                if not data and channel.exit_status_ready():
                    break
                stdout += data
                moved = time.monotonic() if data else moved
                if not data:  # stdout has ended, the command has not
                    time.sleep(_TICK_S)
            while channel.recv_stderr_ready():
                stderr += channel.recv_stderr(1 << 16)
                moved = time.monotonic()
                del stderr[_MAX_STDERR_BYTES:]
            if feeder.error:
                raise feeder.error
            if len(stdout) > most_bytes:
                raise DeviceError(f"{self._settings.address} answers with more than {most_bytes} bytes", "is that the device you mean?")
            idle_s = time.monotonic() - max(moved, feeder.moved)
            # What it said at its very end may have come between our look for that and this one.
            if ended and time.monotonic() - max(moved, ended) > _GRACE_S:
                break
            if channel.exit_status_ready():
                ended = ended or time.monotonic()
            if idle_s > silence_s:
                self.close()
                raise ConnectionFailed(f"{self._settings.address} is silent: nothing moved for {silence_s:.0f} s", "what arrived is kept: try again")
        while channel.recv_stderr_ready():
            stderr += channel.recv_stderr(1 << 16)
        if feeder.error:
            raise feeder.error
        return Completed(channel.recv_exit_status(), bytes(stdout), stderr[:_MAX_STDERR_BYTES].decode(errors="replace"))

    def _broken(self) -> ConnectionFailed:
        return ConnectionFailed(f"the connection to {self._settings.address} broke", "what arrived is kept: try again")


class SshPipe:
    """A command on a device."""

    def __init__(self, channel: paramiko.Channel, settings: Settings, broken: Callable[[], ConnectionFailed]) -> None:
        self._channel, self._settings, self._broken = channel, settings, broken

    def send(self, data: bytes | bytearray | memoryview) -> None:
        try:
            with _translated(self._settings):
                self._channel.sendall(data)  # type: ignore[arg-type] # any buffer does
        except ConnectionFailed as error:
            raise self._broken() from error

    def receive(self, most_bytes: int) -> bytes:
        with _translated(self._settings):
            data: bytes = self._channel.recv(most_bytes)
        if not data and not self._channel.get_transport().is_active():
            raise self._broken()
        return data

    def close(self) -> Completed:
        stderr, until = b"", time.monotonic() + _ENDS_WITHIN_S
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.shutdown_write()
            while not self._channel.exit_status_ready() and time.monotonic() < until and self._channel.get_transport().is_active():
                if not self._channel.recv_ready() and not self._channel.recv_stderr_ready():
                    time.sleep(0.01)
                while self._channel.recv_ready():
                    self._channel.recv(1 << 16)
                while self._channel.recv_stderr_ready():
                    stderr = (stderr + self._channel.recv_stderr(1 << 16))[-_MAX_STDERR_BYTES:]
        ended = self._channel.exit_status_ready()
        done = Completed(self._channel.recv_exit_status() if ended else -1, b"", stderr.decode(errors="replace"))
        self._channel.close()
        return done


class _Feeder(threading.Thread):
    """Starts the command and writes its input, while the other thread reads and keeps the time."""

    def __init__(self, channel: paramiko.Channel, line: str, chunks: Iterable[bytes]) -> None:
        super().__init__(daemon=True)
        self.moved = time.monotonic()
        self.error: Exception | None = None
        self._channel, self._line, self._chunks = channel, line, chunks

    def run(self) -> None:
        try:
            _execute(self._channel, self._line)
            for chunk in self._chunks:
                if not self._send(memoryview(chunk)):
                    return
            with contextlib.suppress(OSError):
                self._channel.shutdown_write()
        except Exception as error:  # noqa: BLE001 - not swallowed: the reading thread raises it
            self.error = error

    def _send(self, view: memoryview) -> bool:
        """False where the command ended without reading everything, which is its own business."""
        while view:
            try:
                sent = self._channel.send(view)  # type: ignore[arg-type] # any buffer does
            except TimeoutError:
                if self._channel.closed:
                    return False
                continue
            except OSError:
                return False
            if not sent:
                return False
            view = view[sent:]
            self.moved = time.monotonic()
        return True


def _execute(channel: paramiko.Channel, line: str) -> None:
    """Start a command. What it is to read may follow at once, as with `ssh`: to wait for the server's yes costs a round trip each time.

    A server that says no closes the channel.
    """
    message = paramiko.Message()
    message.add_byte(cMSG_CHANNEL_REQUEST)
    message.add_int(channel.remote_chanid)
    message.add_string("exec")
    message.add_boolean(True)  # noqa: FBT003 - whether an answer is wanted
    message.add_string(line)
    channel.get_transport()._send_user_message(message)  # type: ignore[attr-defined] # as paramiko's own exec_command does


def _open(settings: Settings, connections: list[paramiko.Transport], way: tuple[str, ...] = ()) -> None:
    """Append the connection to ``settings``' host, after those of the hosts before it. ``way``: the hosts behind it."""
    if settings.alias in way:
        raise ConnectionFailed(f"the way to `{way[0]}` goes round in a circle: {' <- '.join((*way, settings.alias))}", "correct ProxyJump in ~/.ssh/config")
    with _translated(settings):
        connection = paramiko.Transport(_socket(settings, connections, (*way, settings.alias)))
        connections.append(connection)
        connection.daemon = True
        connection.banner_timeout = connection.handshake_timeout = connection.auth_timeout = _HANDSHAKE_TIMEOUT_S
        name = settings.host_key_alias or known_hosts.name_of(settings.hostname, settings.port)
        known = known_hosts.read(settings.known_hosts, name)
        options = connection.get_security_options()
        options.key_types = sorted(options.key_types, key=lambda algorithm: not _is_type_of(algorithm, known.accepted))
        # One pass over the bytes instead of two: for a large transfer that is what this side's processor does.
        options.ciphers = sorted(options.ciphers, key=lambda cipher: "gcm" not in cipher)
        connection.start_client()
        _check(connection.get_remote_server_key(), known, name, settings)
        _authenticate(connection, settings)
        connection.set_keepalive(_KEEPALIVE_S)


def _socket(settings: Settings, connections: list[paramiko.Transport], way: tuple[str, ...]) -> socket.socket | paramiko.Channel:
    if settings.proxy_jump:
        *before, last = settings.proxy_jump
        hop = resolve(last.removeprefix("ssh://"), settings.config)
        _open(replace(hop, proxy_jump=tuple(before)) if before else hop, connections, way)
        return connections[-1].open_channel("direct-tcpip", (settings.hostname, settings.port), ("", 0), timeout=settings.timeout_s)
    if settings.proxy_command:
        return _through(settings.proxy_command)
    plain = socket.create_connection((settings.hostname, settings.port), timeout=settings.timeout_s)
    # With the keep-alive there is always something to acknowledge, so a pulled cable is noticed.
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_LINK_MS)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return plain


def _through(command: str) -> socket.socket:
    """The user's ProxyCommand, run as `ssh` runs it, at the other end of a socket. It ends when that is closed."""
    ours, theirs = socket.socketpair()
    with theirs:
        argv = ["sh", "-c", f"exec {command.removeprefix('exec ')}"]
        process = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=process.wait, daemon=True).start()
    return ours


def _is_type_of(algorithm: str, keys: Iterable[HostKey]) -> bool:
    """Whether a host key of one of these is asked for by that algorithm's name: RSA's has several."""
    return any(key.type == algorithm or (key.type == "ssh-rsa" and algorithm.startswith("rsa-sha2-")) for key in keys)


def _check(offered: paramiko.PKey, known: known_hosts.Known, name: str, settings: Settings) -> None:
    """Raises ConnectionFailed unless the host's key is known, with the command that would make it so."""
    key = HostKey(offered.get_name(), offered.asbytes())
    verdict = known.judge(key)
    if verdict == "revoked":
        raise ConnectionFailed(
            f"the host key of {settings.address} is revoked: {key.type} {key.fingerprint}",
            "whoever holds it is not to be trusted; ask who revoked it",
            final=True,
        )
    if verdict == "changed":
        raise ConnectionFailed(
            f"THE HOST KEY OF {settings.address} HAS CHANGED: it shows {key.type} {key.fingerprint}, "
            f"known is {', '.join(f'{old.type} {old.fingerprint}' for old in known.accepted)}",
            f"either the device was set up anew, or somebody is in between. If you know why: `ssh-keygen -R {shlex.quote(name)} "
            f"-f {shlex.quote(str(settings.known_hosts[0]))}`, then {_acceptance(key, name, settings)}",
            final=True,
        )
    if verdict == "unknown":
        passed_over = f" ({'; '.join(known.passed_over)})" if known.passed_over else ""
        raise ConnectionFailed(
            f"the host key of {settings.address} is not known: {key.type} {key.fingerprint}{passed_over}",
            f"if that is the device's fingerprint: {_acceptance(key, name, settings)}",
            final=True,
        )


def _acceptance(key: HostKey, name: str, settings: Settings) -> str:
    """The command that makes this very host's key known."""
    if shutil.which("ssh"):
        return f"`ssh -o StrictHostKeyChecking=accept-new {settings.ssh_arguments} exit`"
    return f"`echo {shlex.quote(f'{name} {key.text}')} >> {shlex.quote(str(settings.known_hosts[0]))}`"


def _authenticate(connection: paramiko.Transport, settings: Settings) -> None:
    """Offer the user's keys until one is taken, then ask for a password where that is let in. Raises ConnectionFailed."""
    tried: list[str] = []
    locked: list[Path] = []
    who = f"`{settings.user}` at {settings.address}"
    with _agent_keys(settings) as held:
        for label, key in _keys(settings, held, locked):
            tried.append(label)
            try:
                if not connection.auth_publickey(settings.user, key):
                    return
            except paramiko.BadAuthenticationType as error:
                if _by_password(connection, settings, error.allowed_types):
                    return
                allowed = ", ".join(error.allowed_types)
                raise ConnectionFailed(
                    f"{who} is not let in by key, only by {allowed}",
                    "allow PubkeyAuthentication in its sshd_config, or type the password at a terminal",
                    final=True,
                ) from error
            except paramiko.AuthenticationException:
                pass  # not this one; the next
            if not connection.is_active():
                raise ConnectionFailed(
                    f"{who} was cut off after {len(tried)} keys", "name the right one: IdentityFile and `IdentitiesOnly yes` in ~/.ssh/config"
                )
    if transport.ask_password and _by_password(connection, settings, _let_in(connection, settings)):
        return
    bring = f"`ssh-copy-id {settings.ssh_arguments}`"
    if locked:
        raise ConnectionFailed(
            f"{who} is not let in: the key {locked[0]} is locked by a passphrase", f"unlock it: `ssh-add {shlex.quote(str(locked[0]))}`", final=True
        )
    if tried:
        raise ConnectionFailed(f"{who} is not let in with {', '.join(tried)}", f"bring your key there: {bring}; or is it another user?", final=True)
    raise ConnectionFailed(f"there is no SSH key for {who}", f"make one with `ssh-keygen`, then bring it there: {bring}", final=True)


def _let_in(connection: paramiko.Transport, settings: Settings) -> list[str]:
    """By what the server lets this user in."""
    try:
        connection.auth_none(settings.user)
    except paramiko.BadAuthenticationType as error:
        return list(error.allowed_types)
    except paramiko.SSHException:  # it may have heard enough
        pass
    return []


def _by_password(connection: paramiko.Transport, settings: Settings, allowed: Iterable[str]) -> bool:
    """The last resort. Whether the user typed one that was taken; False where nobody can be asked, or passwords are not let in."""
    if not {"password", "keyboard-interactive"} & set(allowed):
        return False
    place = (settings.user, settings.hostname, settings.port)
    with _asking:
        for _ in range(_PASSWORDS_ASKED):
            password = _typed.pop(place, None)
            if password is None and transport.ask_password:
                password = transport.ask_password(f"password of {settings.user} at {settings.address}")
            if password is None or not connection.is_active():
                return False
            try:
                if connection.auth_password(settings.user, password):
                    return False  # it wants something else, too
            except paramiko.AuthenticationException:
                continue
            _typed[place] = password
            return True
    raise ConnectionFailed(
        f"`{settings.user}` at {settings.address} is not let in: none of {_PASSWORDS_ASKED} passwords is right", "is it another user?", final=True
    )


def _keys(settings: Settings, held: Sequence[paramiko.PKey], locked: list[Path]) -> Iterator[tuple[str, paramiko.PKey]]:
    """Keys in the order in which they should be offered, since a server listens to six or so. Those that need a passphrase land in ``locked``."""
    named = {blob: file for file in settings.identity_files if (blob := _public_part(file))}
    for key in held:
        if key.asbytes() in named:
            yield f"{named[key.asbytes()]} (ssh agent)", key
    in_agent = {key.asbytes() for key in held}
    for file in settings.identity_files:
        try:
            own = paramiko.PKey.from_path(file)
        except (TypeError, paramiko.PasswordRequiredException):
            if _public_part(file) not in in_agent:
                locked.append(file)
        except (OSError, ValueError, UnknownKeyType, paramiko.SSHException):
            continue  # missing, or no private key: ssh passes over it too
        else:
            if own.asbytes() not in in_agent:
                yield str(file), own
    if not settings.identities_only:
        for key in held:
            if key.asbytes() not in named:
                yield f"{key.get_name()} {key.fingerprint} (ssh agent)", key


@contextlib.contextmanager
def _agent_keys(settings: Settings) -> Iterator[Sequence[paramiko.PKey]]:
    """The keys of the ssh agent, which signs as long as this lasts. None where nobody listens at its socket any more."""
    path = settings.identity_agent or os.environ.get("SSH_AUTH_SOCK", "")
    if path in ("", "none"):
        yield ()
        return
    agent = AgentSSH()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.settimeout(_SIGNING_S)
            connection.connect(str(Path(path).expanduser()))
            agent._connect(connection)  # type: ignore[attr-defined] # paramiko's public Agent() knows SSH_AUTH_SOCK only
            keys = agent.get_keys()
        except (OSError, paramiko.SSHException):
            keys = ()
        yield keys


def _public_part(file: Path) -> bytes | None:
    """The public key beside a private one, as it travels."""
    for candidate in (file.with_name(f"{file.name}.pub"), file):
        with contextlib.suppress(OSError, ValueError, IndexError, paramiko.SSHException):
            return bytes(paramiko.pkey.PublicBlob.from_string(candidate.read_text(encoding="ascii")).key_blob)
    return None


def _close(connections: list[paramiko.Transport]) -> None:
    for connection in reversed(connections):
        connection.close()


@contextlib.contextmanager
def _translated(settings: Settings) -> Iterator[None]:
    """Every foreign error becomes ConnectionFailed, with what to try."""
    try:
        yield
    except (paramiko.SSHException, OSError, EOFError, UnicodeError) as error:
        message, hint = _explained(error, settings)
        raise ConnectionFailed(message, hint) from error


def _explained(error: Exception, settings: Settings) -> tuple[str, str]:
    where = settings.address
    if isinstance(error, (socket.gaierror, UnicodeError)):  # the latter: a name of which a part has more than 63 letters, or none
        return f"there is no host `{settings.hostname}`", "is it spelled right? its IP address works too"
    if isinstance(error, TimeoutError):
        return f"{where} does not answer within {settings.timeout_s:.0f} s", "is it on, and in this network? a firewall may be in between"
    if isinstance(error, ConnectionRefusedError):
        return f"{where} refuses the connection", "does sshd run there, at that port? (`user@host:port`)"
    if isinstance(error, paramiko.ChannelException):
        return f"{where} opens no more sessions: {error.text}", "close other sessions there, or allow TCP forwarding where it is a jump host"
    if isinstance(error, IncompatiblePeer):
        return f"{where} and this machine share no algorithm: {error}", "its SSH server is too old or too new; update it, or paramiko here"
    if "banner" in str(error) and settings.proxy_command:
        return f"the ProxyCommand for {where} leads to no SSH server", f"does `{settings.proxy_command}` work by hand?"
    if "banner" in str(error):
        return f"what answers at {where} does not speak SSH", "is the port right? (`user@host:port`); if it is, too many may be connecting: try again"
    if isinstance(error, (EOFError, ConnectionError)) or not str(error):
        by_hand = f"; does the ProxyCommand `{settings.proxy_command}` work by hand?" if settings.proxy_command else ""
        return f"the connection to {where} broke", f"what arrived is kept: try again{by_hand}"
    if isinstance(error, OSError):
        return f"{where} cannot be reached: {error.strerror or error}", "is it on, and in this network?"
    return f"the connection to {where} failed: {error}", f"does `ssh {settings.ssh_arguments}` work?"
