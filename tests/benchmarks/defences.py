"""Whether each attack of tests/ATTACKS.md finds its defence missing: it is taken out of a copy of the source, and the tests named have to fail.

    python -m tests.benchmarks.defences            # all of them: a quarter of an hour
    python -m tests.benchmarks.defences archive shared

Exit 1 where a test passes all the same, or where the source has changed so much that there is nothing to take out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
AGENT, SDK = "device_agent/edge_agent", "sdk/edgesdk"
PATIENCE_S = 240


@dataclass(frozen=True)
class Defence:
    """``what`` keeps an attack out, where it is in the source, what it is without it, and the test that is to fail then."""

    what: str
    file: str
    text: str
    without: str
    test: str


DEFENCES = (
    Defence(
        "a bundle's digests",
        f"{AGENT}/bundle.py",
        '        if "sha256:" + state.hexdigest() != blob.digest:\n',
        "        if False:\n",
        "agent/test_attacks.py -k flipped_it_is_refused_or_the_same",
    ),
    Defence(
        "a stored blob's digest",
        f"{AGENT}/store.py",
        "if size_of(file) != layer.size or digest_of_file(file) != layer.digest:",
        "if size_of(file) != layer.size:",
        "agent/test_agent.py -k bit_rot",
    ),
    Defence(
        "an arriving blob's digest",
        f"{AGENT}/blobs.py",
        'if arrived > size or "sha256:" + state.hexdigest() != digest:',
        "if arrived > size:",
        "agent/test_store.py -k wrong_content",
    ),
    Defence(
        "what a signature is of",
        f"{AGENT}/trust.py",
        "            raise self._reason(signature, now)\n        write_atomically",
        "            pass\n        write_atomically",
        "agent/test_attacks.py -k byte_of_a_signature",
    ),
    Defence(
        "releases that only rise",
        f"{AGENT}/releases.py",
        'if highest is None or release > highest or digest == known.get("digest") or allow_downgrade:',
        "if True:",
        "agent/test_attacks.py -k older_bundle_in_the_place",
    ),
    Defence(
        "revoked keys",
        f"{AGENT}/trust.py",
        '["-r", str(self.revoked)] if self.revoked.exists() else []',
        "[]",
        "agent/test_trust.py -k 'revoked or own_sentence or signed_and_nothing'",
    ),
    Defence("the moment of a check", f"{AGENT}/trust.py", "return max(time.time(), _BUILT, last)", "return time.time()", "agent/test_trust.py -k set_back"),
    Defence(
        "that a bundle is signed",
        f"{AGENT}/trust.py",
        "            if unsigned:\n                return None\n",
        "            return None\n",
        "agent/test_trust.py -k signed_and_nothing",
    ),
    Defence(
        "an archive's names",
        f"{AGENT}/archive.py",
        "if not plain or name in found or not re.fullmatch",
        "if False and not re.fullmatch",
        "agent/test_attacks.py -k crafted_archive",
    ),
    Defence(
        "the names of a set-up's archive", f"{AGENT}/bootstrap.py", 'if {"", ".", ".."} & set(parts) or', "if False or", "agent/test_bootstrap.py -k leads_out"
    ),
    Defence(
        "links in a set-up's archive",
        f"{AGENT}/bootstrap.py",
        " or stat.S_ISLNK(info.external_attr >> 16):",
        ":",
        "agent/test_bootstrap.py -k link_in_an_archive",
    ),
    Defence("an archive's members", f"{AGENT}/archive.py", "if count >= 10_000:", "if False:", "agent/test_attacks.py -k more_members"),
    Defence(
        "an archive's headers",
        f"{AGENT}/archive.py",
        "if self.size < 0 or (extended and self.size > _MAX_HEADER_BYTES):",
        "if False:",
        "agent/test_attacks.py -k 'claims_gigabytes or below_zero'",
    ),
    Defence("a delta's size", f"{AGENT}/delta.py", "        if made > size:\n", "        if False:\n", "sdk/test_delta.py -k no_more_comes_out"),
    Defence(
        "where weights lie",
        f"{AGENT}/externals.py",
        'if pair.get(1) == b"location" and location != ALLOWED:',
        "if False:",
        "agent/test_externals.py -k 'beside_the_model'",
    ),
    Defence(
        "where weights lie, on the host",
        f"{SDK}/graph.py",
        'if not location or lexical.is_absolute() or ".." in lexical.parts or not (folder / location).resolve().is_relative_to(folder):',
        "if not location:",
        "sdk/test_attacks.py -k lie_elsewhere",
    ),
    Defence("how deep graphs are", f"{AGENT}/externals.py", "if depth > _MAX_DEPTH:", "if False:", "agent/test_attacks.py -k whatever_their_number"),
    Defence(
        "that nobody loads a library",
        f"{SDK}/source.py",
        "import numpy as np\n",
        "import numpy as np\n\n# register_custom_ops_library\n",
        "sdk/test_attacks.py -k no_other_way",
    ),
    Defence(
        "no pickle in golden answers",
        f"{AGENT}/golden.py",
        "np.load(io.BytesIO(data), allow_pickle=False)",
        "np.load(io.BytesIO(data), allow_pickle=True)",
        "agent/test_attacks.py -k pickle",
    ),
    Defence(
        "a user's word for a pickle",
        f"{SDK}/convert/__init__.py",
        "if suffix in CODE and not trust:",
        "if False:",
        "sdk/test_convert_sklearn.py -k pickle_is_code",
    ),
    Defence("what arrays claim", f"{AGENT}/golden.py", "if not dtype.hasobject and (", "if False and (", "agent/test_attacks.py -k claims_more_than"),
    Defence(
        "what samples unpack to",
        f"{AGENT}/golden.py",
        "if sum(info.file_size for info in archive.infolist()) > most_bytes:",
        "if False:",
        "sdk/test_attacks.py -k unpack_to_more",
    ),
    Defence(
        "quotes", f"{SDK}/transport/__init__.py", 'f"exec {shlex.join(argv)}"', 'f"exec {chr(32).join(argv)}"', "e2e/test_ssh_connect.py -k arguments_arrive"
    ),
    Defence("a host's form", f"{SDK}/transport/settings.py", "if not target or (port", "if target and (port", "sdk/test_attacks.py -k shell_text"),
    Defence(
        "names that are words",
        f"{AGENT}/bundle.py",
        "if isinstance(name, str) and NAME.fullmatch(name):",
        "if isinstance(name, str):",
        "sdk/test_attacks.py -k plain_words",
    ),
    Defence(
        "a host key that is unknown",
        f"{SDK}/transport/ssh.py",
        "    verdict = known.judge(key)\n",
        '    verdict = "accepted"\n    return\n',
        "e2e/test_ssh_connect.py -k 'host_key_is_refused'",
    ),
    Defence("control characters", f"{SDK}/replies.py", "if char.isprintable() or char ==", "if True or char ==", "e2e/test_attacks.py -k 'reports_as_data'"),
    Defence(
        "how much a device says",
        f"{SDK}/transport/ssh.py",
        "if len(stdout) > most_bytes:",
        "if len(stdout) > (300 << 20):",
        "e2e/test_attacks.py -k 'gigabyte and many'",
    ),
    Defence(
        "which blobs a device asks for",
        f"{SDK}/device.py",
        "if not {entry.digest for entry in missing} <= set(wanted):",
        "if False:",
        "e2e/test_attacks.py -k paths_in_a_reply",
    ),
    Defence(
        "the token",
        f"{AGENT}/server.py",
        'if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):',
        "if False:",
        "agent/test_server.py -k wants_the_token",
    ),
    Defence(
        "the name that we are called by",
        f"{AGENT}/server.py",
        "if name not in {",
        "if False and name not in {",
        "agent/test_server.py -k 'wants_the_token or forwarded_to_a_port'",
    ),
    Defence(
        "other pages",
        f"{AGENT}/server.py",
        'if origin != f"http://{host}" or (',
        "if False and (",
        "agent/test_server.py -k 'wants_the_token or forwarded_to_a_port'",
    ),
    Defence("a body's size", f"{AGENT}/bodies.py", "        if self._left > limit:\n", "        if False:\n", "agent/test_server.py -k large_body"),
    Defence(
        "a body's pace", f"{AGENT}/bodies.py", "max(0.001, min(self._pace.idle_s, deadline - time.monotonic()))", "60", "agent/test_bodies.py -k now_and_then"
    ),
    Defence("a region's bounds", f"{AGENT}/regions.py", "if offset + size > self.byte_size:", "if False:", "agent/test_regions.py"),
    Defence(
        "a region's name",
        f"{AGENT}/regions.py",
        're.compile(r"/?(?!\\.{1,2}$)([A-Za-z0-9._-]{1,200})")',
        're.compile(r"(.*)")',
        "agent/test_regions.py -k key_is_one_name",
    ),
    Defence("whose a region is", f"{AGENT}/regions.py", " or about.st_uid != uid or", " or", "agent/test_regions.py -k 'ones_own'"),
    Defence(
        "links that are not followed",
        f"{AGENT}/blobs.py",
        "os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW",
        "os.O_RDWR | os.O_CREAT",
        "agent/test_attacks.py -k planted",
    ),
    Defence(
        "the folder's mode",
        f"{AGENT}/process.py",
        "    os.umask(0o027)\n    try:\n        home.mkdir(parents=True, exist_ok=True, mode=0o750)",
        "    os.umask(0)\n    try:\n        home.mkdir(parents=True, exist_ok=True, mode=0o777)",
        "agent/test_attacks.py -k outside_of_the_group",
    ),
    Defence(
        "a token in no file",
        f"{AGENT}/supervisor.py",
        'self.journal.append("tcp", address=where)',
        'self.journal.append("tcp", address=where, token=_token(self.home))',
        "agent/test_attacks.py -k neither_the_token",
    ),
    Defence(
        "a wheel's pin",
        f"{SDK}/agent_package.py",
        "if pin.exists() and pin.read_text",
        "if False and pin.read_text",
        "sdk/test_attacks.py -k no_longer_what_was_fetched",
    ),
    Defence(
        "an arriving archive's digest",
        f"{AGENT}/bootstrap.py",
        '        if "sha256:" + state.hexdigest() != digest:\n',
        "        if False:\n",
        "agent/test_bootstrap.py -k arrives_damaged",
    ),
    Defence(
        "a password that is no input",
        f"{SDK}/privileges.py",
        "past = [] if self._password is None else",
        "past = [] if True else",
        "e2e/test_system_mode.py -k sudo",
    ),
    Defence(
        "the report's data block",
        f"{SDK}/reporting/page.py",
        "data.translate(_IN_JSON)",
        "data",
        "sdk/test_reporting.py -k markup",
    ),
    Defence(
        "the report's cells",
        f"{SDK}/reporting/page.py",
        "<td{side}>{escape(text)}</td>",
        "<td{side}>{text}</td>",
        "sdk/test_reporting.py -k markup",
    ),
    Defence(
        "the report's printable texts",
        f"{SDK}/reporting/__init__.py",
        "made.append(clean(section))",
        "made.append(section)",
        "sdk/test_reporting.py -k obeyed",
    ),
)


def main() -> int:
    chosen = [defence for defence in DEFENCES if not sys.argv[1:] or any(word in defence.what for word in sys.argv[1:])]
    missed = 0
    for defence in chosen:
        begin = time.monotonic()
        said = tried(defence)
        missed += said != "fails"
        print(f"{defence.what:34} {said:8} {defence.test}, {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{len(chosen)} defences taken out, {missed} not missed")
    return 1 if missed else 0


def tried(defence: Defence) -> str:
    """What the test does without it: `fails`, as it should; `passes`; or why it could not be tried."""
    source = (ROOT / defence.file).read_text(encoding="utf-8")
    if source.count(defence.text) != 1:
        return "is elsewhere"
    with tempfile.TemporaryDirectory(prefix="defences-") as folder:
        copy = Path(folder)
        for part in ("device_agent", "sdk", "tests", "profiles"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "*.onnx.data"))
        for part in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / part, copy)
        (copy / defence.file).write_text(source.replace(defence.text, defence.without), encoding="utf-8")
        path = os.pathsep.join(str(copy / part) for part in ("", "sdk", "device_agent"))
        command = f"{sys.executable} -m pytest -q -x -n 0 -p no:cacheprovider tests/{defence.test}"
        try:
            done = subprocess.run(
                ["sh", "-c", command], cwd=copy, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )
        except subprocess.TimeoutExpired:
            return "hangs"
    if os.environ.get("VERBOSE"):
        print(done.stdout[-3000:], done.stderr[-500:])
    return "fails" if done.returncode == 1 and " failed" in done.stdout else "passes" if not done.returncode else f"ends with {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())
