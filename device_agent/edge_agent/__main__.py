"""The verbs of `edge-agent`. Each prints one framed line, `edge-agent-reply: ` and JSON; text instead where a person looks on.

Only `serve`, `start`, `stop` and `probe` do without the agent's socket. All others ask the agent there, and start it first if it
does not run. Heavy imports wait for the verb that needs them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent import home as homes
from edge_agent import streams

if TYPE_CHECKING:
    import argparse

FRAME = "edge-agent-reply: "

# What `edge_agent.jobs.Permissions` has.
PERMISSIONS = {
    "as_profile": "try another device's profile here: a missing provider is no reason to refuse",
    "allow_slow": "take it although it misses its latency budget",
    "allow_downgrade": "take a release that is lower than one accepted here, or another bundle of the same",
    "allow_signature_change": "take other inputs, outputs or labels than those of what is active",
    "retry": "take a bundle that was rolled back here",
}

# What the supervisor starts, and the module whose `serve` it is.
CHILDREN = {"racer": "race", "looker": "look", "answerer": "answering", "measurer": "measure"}


def main(argv: list[str] | None = None) -> int:
    streams.open_closed()
    argv, home, begun = sys.argv[1:] if argv is None else argv, homes.resolve(), None
    if argv[:1] == ["serve"]:
        from edge_agent import zygote

        begun = zygote.begun(home)  # it imports while we do
    arguments = _parser().parse_args(argv)
    arguments.begun = begun
    from edge_agent import verbs

    try:
        reply = arguments.verb(verbs, home, arguments)
    except verbs.Failure as failure:
        return _failed(arguments, {"message": str(failure), "hint": failure.hint, **({"again": True} if failure.again else {})})
    except KeyboardInterrupt:
        return 130
    if reply is not None:
        _show(reply, arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(prog="edge-agent", description="Runs models for local programs. Its folder is EDGE_AGENT_HOME.")
    parser.add_argument("--json", action="store_true", help="the framed reply, on a terminal too")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, description: str | None, run: Callable[[Any, Path, argparse.Namespace], Any]) -> argparse.ArgumentParser:
        options: Any = {"help": description} if description else {}  # without, `--help` does not list it
        one = verbs.add_parser(name, description=description, **options)
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="the framed reply, on a terminal too")
        one.set_defaults(verb=run, name_of_verb=name)
        return one

    verb("probe", "facts of this device", lambda v, home, _: v.probe(home))
    verb("serve", "run the agent in the foreground", lambda v, home, a: v.serve(home, a.begun))
    verb("start", "start the agent and wait until it answers", lambda v, home, _: v.start(home))
    verb("stop", "end the agent", lambda v, home, _: v.stop(home))
    verb("status", "what runs, and from which bundle", lambda v, home, _: v.get(home, "/edge/status"))
    missing = verb("missing", "which blobs have to be sent; a list of digests on standard input", lambda v, home, a: v.missing(home, a.race))
    put = verb("put", "receive a blob from standard input", lambda v, home, a: v.put(home, a.digest, a.size, a.offset, a.race))
    receive = verb("receive", "receive blobs from standard input, their list before them", lambda v, home, a: v.receive(home, a.race))
    for one in (missing, put, receive):
        one.add_argument("--race", metavar="SESSION", help="for a race, not for the store")
    put.add_argument("digest")
    put.add_argument("size", type=int)
    put.add_argument("--offset", type=int, default=0, help="how many bytes are here already")
    patch = verb(
        "patch",
        "receive a blob from standard input, as what differs from another",
        lambda v, home, a: v.patch(home, a.digest, a.size, a.base, a.length),
    )
    patch.add_argument("digest")
    patch.add_argument("size", type=int)
    patch.add_argument("base", help="the digest of the blob that is here")
    patch.add_argument("length", type=int, help="bytes of the delta")
    activate = verb(
        "activate",
        "make a bundle active: verify, try, swap, ask",
        lambda v, home, a: v.activate(
            home, a.what, signed=a.signed, stage=a.stage, in_s=a.in_s, by=a.by, wait_s=a.wait, permissions={name: getattr(a, name) for name in PERMISSIONS}
        ),
    )
    activate.add_argument("--wait", type=_count, metavar="SECONDS", help="answer when it has begun to load, has ended, or after so long")
    activate.add_argument("what", metavar="DIGEST|NAME", help="its manifest's digest, or the name of a model that is staged")
    activate.add_argument("--stage", action="store_true", help="all but the swap: it waits for another `activate`")
    activate.add_argument("--in", dest="in_s", type=float, metavar="SECONDS", help="not now, but so long from now; what it is about is staged, or with --stage")
    activate.add_argument("--signed", action="store_true", help="its SSH signature comes on standard input")
    current = verb(
        "current",
        "whether that bundle is active, and answers correctly",
        lambda v, home, a: v.current(home, a.digest, signature=a.signature, as_profile=a.as_profile),
    )
    current.add_argument("digest")
    current.add_argument("--signature", metavar="TEXT", help="its SSH signature")
    current.add_argument("--as-profile", action="store_true", help=PERMISSIONS["as_profile"])
    install = verb(
        "install",
        "make a bundle active that lies here, a folder or .tar",
        lambda v, home, a: v.install(home, a.bundle, a.profile, permissions={name: getattr(a, name) for name in PERMISSIONS}),
    )
    install.add_argument("bundle", type=Path)
    install.add_argument("--profile", metavar="NAME", help="which of the bundle's models; needed only where it holds several")
    for one in (activate, install):
        for name, meaning in PERMISSIONS.items():
            one.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=meaning)
    verb("unstage", "keep what is staged no longer", lambda v, home, a: v.unstage(home, a.what)).add_argument("what", metavar="DIGEST|NAME")
    trust = verb("trust", "whose signatures this device takes", lambda v, home, a: v.trust(home, add=a.add, revoke=a.revoke))
    trust.add_argument("--add", action="store_true", help="one more, a line of allowed_signers on standard input")
    trust.add_argument("--revoke", metavar="FINGERPRINT", help="no longer that key, SHA256:…")
    job = verb("job", "how a job goes", lambda v, home, a: v.job(home, a.id, a.wait, a.stage))
    job.add_argument("id")
    job.add_argument("--wait", type=_count, default=0, metavar="SECONDS", help="answer when it has ended, or after so long")
    job.add_argument("--stage", help="answer when it is no longer at that stage, too")
    race = verb("race", "time two models against each other; what, as JSON on standard input", lambda v, home, a: v.race(home, a.session, end=a.end))
    race.add_argument("session")
    race.add_argument("--end", action="store_true", help="remove what the session left")
    stream = verb(
        "stream",
        "answer questions that come on standard input, one after the other, until it ends: what a host's evaluation asks",
        lambda v, home, a: v.stream(home, a.name, a.race),
    )
    stream.add_argument("name", nargs="?", help="a model that is active")
    stream.add_argument("--race", metavar="SESSION", help="one whose files were put there for that session; which, as a line of JSON before the first question")
    measure = verb("measure", "time one model; what, as JSON on standard input", lambda v, home, a: v.measure(home, a.session, stop=a.stop))
    measure.add_argument("session")
    measure.add_argument("--stop", action="store_true", help="end it with what there is by now")
    rollback = verb("rollback", "make the previous bundle active again", lambda v, home, a: v.rollback(home, a.name, by=a.by))
    rollback.add_argument("name")
    for one in (activate, rollback):
        one.add_argument("--by", metavar="WHO", help="who others are told is at work here")
    verb("remove", "forget a model", lambda v, home, a: v.remove(home, a.name)).add_argument("name")
    report = verb("report", "latency and counts", lambda v, home, a: v.report(home, a.name, histograms=a.histograms))
    report.add_argument("name", nargs="?")
    report.add_argument("--histograms", action="store_true", help="with all that is counted of every version and phase")
    infer = verb("infer", "ask a model; its inputs as .npz on standard input", lambda v, home, a: v.infer(home, a.name, golden=a.golden, npz=a.npz))
    infer.add_argument("name")
    infer.add_argument("--golden", action="store_true", help="ask the first golden question, and compare")
    infer.add_argument("--npz", action="store_true", help="the outputs as .npz on standard output, and nothing else")
    bench = verb(
        "bench", "time the golden questions, as a local program would ask them", lambda v, home, a: v.bench(home, a.name, runs=a.runs, warmup=a.warmup)
    )
    bench.add_argument("name")
    bench.add_argument("--runs", type=_positive, default=200)
    bench.add_argument("--warmup", type=_count, default=20)
    logs = verb("logs", "what the agent said, newest last", lambda v, home, a: v.get(home, f"/edge/logs?lines={a.lines}"))
    logs.add_argument("--lines", type=_count, default=100)
    tcp = verb("tcp", "open or close TCP, on loopback unless told otherwise", lambda v, home, a: v.tcp(home, a.port, a.address))
    tcp.add_argument("port", type=_port, help="a number, 0 for any, or `off`")
    tcp.add_argument("--address", default="127.0.0.1", help="of this device, in digits; what it carries is not encrypted")
    service = verb(
        "service",
        "systemd's units for the agent; with --install, have systemd run it",
        lambda v, home, a: v.service(home, system=a.system, user=a.user, group=a.group, providers=a.providers, install=a.install),
    )
    service.add_argument("--install", action="store_true", help="put them where systemd reads them, and start the agent by it")
    service.add_argument("--system", action="store_true", help="a service of the system, root's to install, instead of the user's own")
    service.add_argument("--user", help="with --system: whom it runs as (edge-agent)")
    service.add_argument("--group", help="with --system: who may ask, too")
    service.add_argument("--providers", help="of the onnxruntime that it is to run with, joined by commas; without, they are looked for")
    verb(
        "client-path",
        "the folder by which a virtual environment finds the client: name it in a .pth file there",
        lambda v, _, a: v.client_path(as_json=a.json),
    )
    teardown = verb(
        "teardown",
        "stop the agent, and remove everything that was put on this device",
        lambda v, home, a: v.teardown(home, yes=a.yes, dry_run=a.dry_run),
    )
    teardown.add_argument("--yes", action="store_true", help="without asking")
    teardown.add_argument("--dry-run", action="store_true", help="only say what there is to remove")
    verb("golden", "the golden answers of the active bundle, as .npz", lambda v, home, a: v.golden_answers(home, a.name)).add_argument("name")
    for name, module in CHILDREN.items():
        child = verb(name, None, _child(module))
        child.add_argument("folder", type=Path)
        child.add_argument("descriptors", type=int, nargs="+")
    return parser


def _child(module: str) -> Callable[[Any, Path, argparse.Namespace], Any]:
    return lambda v, home, a: v.child(home, module, a.folder, *a.descriptors)


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise ValueError
    return count


def _positive(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def _port(text: str) -> int | None:
    return None if text == "off" else int(text)


def _show(reply: Any, arguments: argparse.Namespace) -> None:
    if isinstance(reply, bytes):
        sys.stdout.buffer.write(reply)
        sys.stdout.buffer.flush()
    elif arguments.json or not sys.stdout.isatty():
        print(FRAME + json.dumps(reply, allow_nan=False), flush=True)
    else:
        from edge_agent import text

        print(text.render(arguments.name_of_verb, reply))


def _failed(arguments: argparse.Namespace, error: dict[str, Any]) -> int:
    if arguments.json or not sys.stdout.isatty():
        print(FRAME + json.dumps({"error": error}), flush=True)
    else:
        print(f"error: {error['message']}" + (f"\n  try: {error['hint']}" if error["hint"] else ""), file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
