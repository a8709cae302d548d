"""The verbs about devices: setup, deploy, activate, status, infer, report, rollback, logs, remove, teardown."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesdk.cli import reports
from edgesdk.cli.output import AsJson, bytes_text, confirm, fail, progress, rollout_progress, say, show, table

if TYPE_CHECKING:
    from datetime import datetime

    from edgesdk.deploying import Deployment
    from edgesdk.fleet import Member
    from edgesdk.replies import DeviceFacts, StoreStatus, Waiting

Host = Annotated[str, typer.Argument(help="a name of ~/.ssh/config, user@host[:port], or local")]
Name = Annotated[str, typer.Argument(help="the model's name on the device")]
At = Annotated[
    str | None, typer.Option(help="when it becomes active: 03:00, +90m or 2027-01-31T03:00, by this machine's clock; the device does it, connected or not")
]
AllowSlow = Annotated[bool, typer.Option("--allow-slow", help="activate it even if it misses its latency budget there")]
AllowDowngrade = Annotated[bool, typer.Option("--allow-downgrade", help="activate an older release than the device has had")]
AllowSignatureChange = Annotated[
    bool, typer.Option("--allow-signature-change", help="activate it even if its inputs, outputs or labels are others than those of what is active")
]
Retry = Annotated[bool, typer.Option("--retry", help="activate it even if it was rolled back there")]
Volatile = Annotated[bool, typer.Option("--volatile", help="set it up although its folder there lies in memory, and is gone with the power")]
Wheelhouse = Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="numpy and onnxruntime for it come from this folder, from nowhere else")]

_MOST_SHOWN = 8  # numbers of an answer


def register(app: typer.Typer) -> None:
    """The verbs in the order in which one needs them."""
    for verb in (setup, deploy, activate, status, infer, reports.report, rollback, logs, remove, teardown):
        app.command()(verb)


def setup(
    host: Host = "local",
    wheelhouse: Wheelhouse = None,
    *,
    system: Annotated[
        bool,
        typer.Option(
            "--system", help="for all users there: systemd runs the agent as a user of its own. Wants root, or sudo, whose password is asked for once"
        ),
    ] = False,
    volatile: Volatile = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be done; wheels are fetched to this machine for that")] = False,
    as_json: AsJson = False,
) -> None:
    """Prepare a device: the agent, and onnxruntime where there is none. `deploy` does it when needed."""
    from edgesdk import device, preflight, setting_up

    with device.connect(host) as opened, progress() as advance:
        facts = opened.facts()
        preflight.check_lasting(facts, host, ["volatile"] * volatile)
        systems = system or facts.mode == "system"
        if dry_run:
            if systems:
                setting_up.check_for_system(facts, host)
            would = setting_up.set_up_words(
                facts, setting_up.plan_set_up(facts, wheelhouse=wheelhouse, progress=advance), setting_up.first_signer(facts), system=systems
            )
            show({"host": host, "would": would}, "\n".join(f"{host}: would {line}" for line in would) or f"{host}: nothing is left to do", as_json=as_json)
            return
        if systems:
            plan = setting_up.set_up_system(opened, wheelhouse=wheelhouse, progress=advance)
        else:
            plan = setting_up.plan_set_up(facts, wheelhouse=wheelhouse, progress=advance)
            setting_up.set_up(opened, facts, plan, advance, setting_up.first_signer(facts))
        found = opened.status()
    sent = ["agent"] * bool(plan.agent) + [wheel.name.split("-")[0] for wheel in plan.wheels]
    text = f"{host}: agent {found.agent.version} runs with onnxruntime {found.agent.onnxruntime} ({', '.join(sent) or 'nothing'} sent)"
    show({"host": host, "sent": sent, "agent": found.agent.to_dict()}, text, as_json=as_json)


def deploy(
    host: Annotated[str | None, typer.Argument(help="a name of ~/.ssh/config, user@host[:port], or local; without one, edgesdk.toml's devices")] = None,
    bundle: Annotated[Path | None, typer.Argument(help="folder or .tar; without one, the newest packaged here")] = None,
    as_profile: Annotated[str | None, typer.Option(help="try this profile's model on a device that is something else")] = None,
    fleet: Annotated[Path | None, typer.Option(help="a .toml file with the devices; the bundle is then the only argument")] = None,
    select: Annotated[list[str] | None, typer.Option(help="only devices with this label; hall-2,camera: with both; repeat it for others as well")] = None,
    parallel: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="devices at a time")] = 8,
    canary: Annotated[str, typer.Option(help="so many, or such a share, come first, and the others only if all of these work: 2, or 5%")] = "0",
    max_failures: Annotated[int | None, typer.Option(min=0, metavar="N", help="begin no further device when more than these have failed")] = None,
    at: At = None,
    wheelhouse: Wheelhouse = None,
    *,
    stage_only: Annotated[bool, typer.Option("--stage-only", help="all but the switch: `edgesdk activate` does that, or with --at the device")] = False,
    allow_slow: AllowSlow = False,
    allow_downgrade: AllowDowngrade = False,
    allow_signature_change: AllowSignatureChange = False,
    retry: Retry = False,
    volatile: Volatile = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="end with `probation`, exit 1, once it has answered: the device goes on by itself")] = False,
    as_json: AsJson = False,
) -> None:
    """Ship a bundle to a device, or to many, have it tried there, and switch to it only if it answers correctly."""
    from edgesdk import device, project, transport
    from edgesdk import fleet as fleets
    from edgesdk.cli import files

    here = project.load(Path())
    if fleet is not None:
        if bundle is not None:
            raise typer.BadParameter(f"with --fleet the devices are the file's, not {host!r}: name the bundle alone, and --select some of them")
        bundle = Path(host) if host is not None else None
        members = fleets.select(fleets.load(fleet), select or [])
    else:
        members = _named(host, here.devices, select)
    allowed = (*_allowed(allow_slow, allow_downgrade, allow_signature_change, retry), *["volatile"] * volatile)
    when = _moment(at)
    stage = device.Stage(when) if stage_only or when else None
    given_for_all = {"as_profile": as_profile, "wheelhouse": wheelhouse}
    members = tuple(
        member.model_copy(update={key: value or getattr(member, key) for key, value in given_for_all.items()} | {"allow": (*member.allow, *allowed)})
        for member in members
    )
    if len(members) > 1:
        transport.ask_password = transport.tell_slow = None  # of many nobody is asked for theirs
    chosen = bundle or (None if all(member.bundle for member in members) else project.newest_bundle(Path(), here))
    plan = fleets.Plan(parallel=parallel, canary=canary, max_failures=max_failures, wait=not no_wait, stage=stage)
    state = fleet.with_suffix(".state.json") if fleet is not None else None
    if state is not None:
        files.check(state)
    rollout = fleets.Rollout(members, chosen, plan, state=state)
    if rollout.resumed:
        say(f"{len(rollout.resumed)} of {len(members)} were done by an earlier run")
    done = []
    with rollout_progress(len(members)) as watch:
        for one in rollout.run(watch):
            done.append(one)
            watch(one.host, one.outcome, 1, 1)
    done.sort(key=lambda one: [member.host for member in members].index(one.host))
    show([one.to_dict() for one in done], "\n".join(_deployed(one) for one in done if not one.error), as_json=as_json)
    for one in done:
        if one.error:
            fail(f"{one.host}: {one.outcome}: {one.error['message']}", one.error["hint"])
    if rollout.unkept:
        say(f"{rollout.unkept}; the same command again asks every device that is not in it")
    if len(done) > 1:
        say(", ".join(f"{count} {outcome}" for outcome, count in sorted(fleets.summary(done).items())))
    if not all(one.worked for one in done):
        raise typer.Exit(1)


def activate(
    host: Host,
    what: Annotated[str, typer.Argument(metavar="NAME|DIGEST", help="a model that is staged there, by its name or its bundle's digest")],
    at: At = None,
    *,
    cancel: Annotated[bool, typer.Option("--cancel", help="keep it there no longer")] = False,
    allow_slow: AllowSlow = False,
    allow_downgrade: AllowDowngrade = False,
    allow_signature_change: AllowSignatureChange = False,
    retry: Retry = False,
    as_json: AsJson = False,
) -> None:
    """Switch to what `deploy --stage-only` has put there, now or at a time."""
    from edgesdk import device

    when = _moment(at)
    if cancel and when:
        raise typer.BadParameter("--at and --cancel do not go together")
    with device.connect(host) as opened, progress() as advance:
        if cancel or when:
            waiting = opened.schedule(what, when) if when else opened.unstage(what)
            said = f"becomes active at {waiting.at} by the device's clock" if when else "is staged no longer"
            show(waiting.to_dict(), f"{host}: {waiting.name} release {waiting.release} {said}", as_json=as_json)
            return
        done = opened.activate(what, allowed=_allowed(allow_slow, allow_downgrade, allow_signature_change, retry), progress=advance)
    show(done.to_dict(), f"{host}: {done.name} release {done.release} is {done.outcome}, it answered correctly there ({done.digest[7:19]})", as_json=as_json)


def _allowed(*given: bool) -> tuple[str, ...]:
    from edgesdk.device import PERMISSIONS

    return tuple(name for name, is_given in zip(PERMISSIONS, given, strict=True) if is_given)


def _moment(text: str | None) -> "datetime | None":
    from edgesdk import moments

    try:
        return moments.moment(text) if text is not None else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _named(host: str | None, devices: tuple[str, ...], select: list[str] | None) -> "tuple[Member, ...]":
    from edgesdk.errors import ProjectError
    from edgesdk.fleet import Member

    if select:
        raise ProjectError("--select chooses from a fleet", "name its file: --fleet fleet.toml")
    if not host and not devices:
        raise ProjectError("no device was named", "`edgesdk deploy local` tries it on this machine; or give `devices` in edgesdk.toml")
    return tuple(Member(host=each) for each in ([host] if host else devices))


def status(host: Host = "local", *, as_json: AsJson = False) -> None:
    """What a device runs, through which provider, and what stays on its disk."""
    from edgesdk import device

    with device.connect(host) as opened:
        found = opened.status()
    rows = [
        (
            m.name,
            m.release or "–",
            (m.digest or "–")[-64:][:12],
            m.profile or "–",
            m.state,
            m.nodes or m.provider or "–",
            m.previous[7:19] if m.previous else "–",
            m.count or 0,
        )
        for m in found.models
    ]
    lines = [
        f"agent {found.agent.version} on {host}, onnxruntime {found.agent.onnxruntime or '–'}, since {found.agent.since or '–'}",
        *([found.agent.problem] if found.agent.problem else []),
        f"store {bytes_text(found.store.bytes or 0)} in {found.store.blobs or 0} blobs, {bytes_text(found.store.free_bytes or 0)} free",
        *_retention(found.store),
        *_condition(found.device),
        "",
        table(rows, head=("model", "release", "digest", "profile", "state", "runs on", "previous", "requests")) if rows else "no model is active",
        *(f"{m.name}: {m.error}" for m in found.models if m.error),
        *(f"staged: {one.name} release {one.release} ({one.digest[7:19]}): {one.error or _when(one, host)}" for one in found.staged),
    ]
    show(found.to_dict(), "\n".join(lines), as_json=as_json)


def infer(
    host: Host,
    name: Name,
    input_file: Annotated[Path | None, typer.Option("--input", help=".npz with the model's inputs; without one, its first golden input")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the outputs to this .npz")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Ask a model on a device once."""
    import numpy as np

    from edge_agent.golden import write_arrays
    from edge_agent.store import write_atomically
    from edgesdk import arrays, device
    from edgesdk.cli import files

    if output:
        files.check(output, sources=(input_file,))
    feeds = arrays.read(input_file) if input_file else None
    with device.connect(host) as opened:
        answer = opened.infer(name, feeds)
    if output:
        write_atomically(output, write_arrays(answer.arrays()), 0o644)
    with np.printoptions(precision=5, threshold=_MOST_SHOWN, edgeitems=_MOST_SHOWN // 2):
        lines = [f"{key}: {array.dtype} {list(array.shape)} {array.ravel()}" for key, array in answer.arrays().items()]
    agrees = {True: ", the golden answer", False: ", NOT the golden answer", None: ""}[answer.agrees]
    show(answer.to_dict(), "\n".join([*lines, f"{answer.latency_ms:.3f} ms{agrees}"]), as_json=as_json)
    if answer.agrees is False:
        raise typer.Exit(1)


def rollback(host: Host, name: Name, *, as_json: AsJson = False) -> None:
    """Go back to the version that ran before."""
    from edgesdk import device

    with device.connect(host) as opened, progress() as advance:
        done = opened.rollback(name, progress=advance)
    show(done.to_dict(), f"{host}: {done.name} is back at release {done.release} ({done.digest[7:19]})", as_json=as_json)


def logs(host: Host = "local", lines: Annotated[int, typer.Option(min=1, help="the newest so many")] = 100, *, as_json: AsJson = False) -> None:
    """The agent's log, the newest last; with --json its lines as they are, a JSON object each."""
    from edge_agent import log
    from edgesdk import device
    from edgesdk.replies import printable

    with device.connect(host) as opened:
        found = opened.logs(lines)
    show({"lines": list(found)}, "\n".join(printable(log.in_words(line)) for line in found), as_json=as_json)


def remove(host: Host, name: Name, *, as_json: AsJson = False) -> None:
    """Take a model and its earlier version off a device."""
    from edgesdk import device

    with device.connect(host) as opened:
        done = opened.remove(name)
    show(done.to_dict(), f"{host}: {done.removed} is gone, {bytes_text(done.freed_bytes)} freed", as_json=as_json)


def teardown(
    host: Host,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="without asking")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what there is to remove")] = False,
    as_json: AsJson = False,
) -> None:
    """Leave nothing behind on a device: agent, models, runtime, services, and what lets programs find the client."""
    from edgesdk import device

    with device.connect(host) as opened:
        found = opened.tear_down(dry_run=True)
        if found.removed and not dry_run:
            if not yes:
                confirm(f"stop the agent of {host}, and remove {', '.join(found.removed)}?", otherwise="say --yes if that is meant")
            found = opened.tear_down()
    word = "would be removed" if found.dry_run else "removed"
    lines = [f"{host}: {word}: {path}" for path in found.removed] or [f"{host}: there is nothing to remove"]
    show(
        {"host": host, **found.to_dict()}, "\n".join([*lines, *(f"{host}: kept, since it is not the agent's: {path}" for path in found.kept)]), as_json=as_json
    )


def _retention(store: "StoreStatus") -> list[str]:
    """What stays and why: `keep = 2`."""
    kept = [f"  {one.name} release {one.release or '–'}: {one.why}, {bytes_text(one.bytes)}" for one in store.kept]
    head = [f"of each model {store.keep} stay, what is active and what was before, and what is staged; all else goes at the next activation"] if kept else []
    arriving = [f"  {bytes_text(store.arriving_bytes)} that arrived and belong to no bundle yet: they stay for an hour"] if store.arriving_bytes else []
    return [*head, *kept, *arriving]


def _when(waiting: "Waiting", host: str) -> str:
    return f"becomes active at {waiting.at} by the device's clock" if waiting.at else f"`edgesdk activate {host} {waiting.name}` switches to it"


def _deployed(one: "Deployment") -> str:
    first = f", first answer {one.first_answer_ms:.2f} ms" if one.first_answer_ms is not None else ""
    sent = f"{one.blobs_sent} blobs, {bytes_text(one.bytes_sent)} sent"
    sent += f" after {bytes_text(one.set_up_bytes)} of set-up" if one.set_up_bytes else ""
    placed = f"; {one.placement}" if one.placement else ""
    placed += f"; converted for its onnxruntime, {one.converted}" if one.converted else ""
    if one.outcome == "staged":
        when = f"becomes active at {one.at} by its clock" if one.at else "waits for `edgesdk activate`"
        return f"{one.host}: staged {(one.digest or '')[7:19]}, it answered correctly there and {when} ({sent}, {one.seconds:.1f} s){placed}"
    return f"{one.host}: {one.outcome} {(one.digest or '')[7:19]}, it answered correctly there ({sent}, {one.seconds:.1f} s{first}){placed}"


def _condition(device: "DeviceFacts") -> list[str]:
    words = device.in_words()
    return [f"device: {words}"] if words else []
