"""A device that is not what it seems, over a real OpenSSH server; and whether secrets stay where they belong. See tests/ATTACKS.md."""

import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.bundle import Layout
from edgesdk import deploying, device, sending
from edgesdk.errors import DeviceError, EdgeSDKError
from tests.bundles import write_bundle
from tests.e2e.conftest import Bench, Device, keygen

pytestmark = pytest.mark.e2e

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\x00/etc/passwd"


def edgesdk(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgesdk.cli", *arguments], capture_output=True, text=True, check=False, timeout=120)


def impostor(pi: Device, script: str) -> None:
    """In the place of the agent."""
    program = pi.agent_home / "bin" / "edge-agent"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def harmless(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


@pytest.mark.parametrize("verb", ["status", "report", "logs", "rollback", "remove", "infer", "activate"])
def test_what_a_malicious_agent_says_steers_no_terminal(bench: Bench, verb: str) -> None:
    pi = bench.start()
    error = json.dumps({"error": {"message": f"no {EVIL}", "hint": f"try {EVIL}"}})
    (pi.home / "error").write_text(f"edge-agent-reply: {error}\n")
    impostor(pi, 'cat "$HOME/error"; exit 1')
    done = edgesdk(verb, "pi", *(["toy"] if verb in ("rollback", "remove", "infer", "activate") else []))
    assert done.returncode == 1
    assert harmless(done.stdout + done.stderr), done
    assert "owned" in done.stderr
    # Noise instead of a reply, on both streams.
    impostor(pi, f"printf '%b' '{EVIL.encode('unicode_escape').decode().replace(chr(92) + 'x', chr(92) + '0x')}'; printf '\\033[2J' >&2; exit 3")
    done = edgesdk(verb, "pi", *(["toy"] if verb in ("rollback", "remove", "infer", "activate") else []))
    assert done.returncode == 1
    assert harmless(done.stdout + done.stderr), done


def test_what_a_malicious_agent_reports_as_data_steers_no_terminal(bench: Bench) -> None:
    pi = bench.start()
    model = {"name": EVIL, "release": 1, "digest": EVIL, "state": EVIL, "provider": EVIL, "error": EVIL, "previous": EVIL, "profile": EVIL}
    staged = {"name": EVIL, "release": 1, "digest": EVIL, "at": EVIL, "error": EVIL}
    kept = {"name": EVIL, "why": EVIL, "release": 1, "digest": EVIL, "bytes": 1}
    status = {
        "agent": {"version": EVIL, "home": EVIL},
        "models": [model],
        "staged": [staged],
        "store": {"kept": [kept]},
        "device": {"board": EVIL, "governor": EVIL},
    }
    (pi.home / "status").write_text(f"edge-agent-reply: {json.dumps(status)}\n")
    (pi.home / "logs").write_text(f"edge-agent-reply: {json.dumps({'lines': [EVIL, json.dumps({'event': EVIL, 'cause': EVIL})]})}\n")
    impostor(pi, 'cat "$HOME/$1"')
    for verb in ("status", "logs"):
        done = edgesdk(verb, "pi")
        assert done.returncode == 0, done
        assert "owned" in done.stdout and harmless(done.stdout + done.stderr), done


@pytest.mark.parametrize("what", ["one line without end", "a JSON of a gigabyte", "many lines", "the other stream"])
def test_a_device_that_says_a_gigabyte_is_cut_off(bench: Bench, what: str) -> None:
    pi = bench.start()
    says = {
        "one line without end": "head -c 1073741824 /dev/zero | tr '\\0' x",
        "a JSON of a gigabyte": "printf 'edge-agent-reply: [\"'; head -c 1073741824 /dev/zero | tr '\\0' x; echo '\"]'",
        "many lines": "yes | head -c 1073741824",
        "the other stream": "head -c 1073741824 /dev/zero >&2; exit 1",
    }
    impostor(pi, says[what])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with device.connect("pi") as there, pytest.raises(EdgeSDKError, match=r"more than 4194304 bytes|gives no answer"):
        there.status()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_paths_in_a_reply_are_never_used(bench: Bench, tmp_path: Path) -> None:
    """What is missing is named by digests that the host knows, and a job by a word."""
    pi = bench.start()
    bundle = write_bundle(tmp_path / "b")
    with Layout.open(bundle) as layout:
        (manifest,) = layout.manifests().values()
        for missing in ("sha256:../../../../etc/passwd", "/etc/passwd", "../x", manifest.digest[:-1] + "/"):
            (pi.home / "reply").write_text(f"edge-agent-reply: {json.dumps({'missing': [{'digest': missing, 'offset': 0}]})}\n")
            impostor(pi, 'cat > /dev/null; cat "$HOME/reply"')
            with device.connect("pi") as there:
                facts = there.facts()
                with pytest.raises(DeviceError, match="asks for a blob that is not in the bundle"):
                    sending.push(there, layout, manifest, facts)
        for job in ("../../x", "$(touch pwned)", "a b", "-rf", "x" * 100):
            (pi.home / "reply").write_text(f"edge-agent-reply: {json.dumps({'job': job})}\n")
            with device.connect("pi") as there, pytest.raises(DeviceError):
                there.activate(manifest.digest)
    assert not list(pi.home.rglob("pwned"))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the bundles are for x86-cpu")
def test_no_secret_is_in_any_log_of_a_deployment_at_any_verbosity(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The key, its passphrase, the token of the TCP address; paramiko logs whatever it can."""
    pi = bench.start()
    passphrase = "open sesame 4711"
    locked = tmp_path / "locked"
    keygen(locked, passphrase=passphrase)
    logging.getLogger().setLevel(1)
    logging.getLogger("paramiko").setLevel(1)
    try:
        with device.connect("pi") as there:
            assert deploying.deploy(there, write_bundle(tmp_path / "b")).outcome == "active"
            there.ask("tcp", "0")
            there.status()
            there.logs()
        with bench.config.open("a") as config:
            config.write(
                f"Host again\n  HostName 127.0.0.1\n  Port {pi.port}\n  IdentityFile {locked}\n  UserKnownHostsFile {bench.known_hosts}\n  IdentitiesOnly yes\n"
            )
        with pytest.raises(EdgeSDKError):
            device.connect("again")
    finally:
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("paramiko").setLevel(logging.NOTSET)
    token = (pi.agent_home / "secrets" / "token").read_text().strip()
    secrets = [token, passphrase, *(line for line in bench.key.read_text().splitlines()[2:-2]), *(line for line in locked.read_text().splitlines()[2:-2])]
    said = caplog.text + "".join(capfd.readouterr())
    assert "userauth" in said, "paramiko did log"
    written = [path for path in (*pi.home.rglob("*"), pi.folder / "sshd.log") if path.is_file() and path.parent.name != "secrets"]
    texts = {"what was said": said.encode(), **{str(path): path.read_bytes() for path in written}}
    for secret in secrets:
        for where, text in texts.items():
            assert secret.encode() not in text, where
