"""`edgesdk key …`: who signs bundles, and whose signature a device takes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesdk.cli.output import AsJson, Group, show, table

if TYPE_CHECKING:
    from edgesdk.replies import Trusted
    from edgesdk.signing import Signer

app = typer.Typer(cls=Group, no_args_is_help=True, help="Sign bundles with an SSH key, and say which keys a device trusts.")
Host = Annotated[str, typer.Argument(help="a name of ~/.ssh/config, user@host[:port], or local")]


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """Your SSH keys, and which of them signs."""
    from edgesdk import signing

    chosen, keys = signing.in_use(), signing.found()
    if chosen and chosen.key not in {one.key for one in keys}:  # in a folder of its own
        keys.append(chosen)
    rows = [("signs" if chosen and one.key == chosen.key else "", one.principal, one.kind, one.fingerprint, str(one.file)) for one in keys]
    told = [
        {"principal": one.principal, "kind": one.kind, "fingerprint": one.fingerprint, "file": str(one.file), "signs": bool(chosen and one.key == chosen.key)}
        for one in keys
    ]
    text = table(rows, head=("", "name", "kind", "fingerprint", "file")) if rows else "you have no SSH key: `ssh-keygen -t ed25519` makes one"
    show(told, text, as_json=as_json)


@app.command()
def use(
    key: Annotated[Path, typer.Argument(help="a public key, or the private one beside it")] = Path("~/.ssh/id_ed25519.pub"),
    principal: Annotated[str | None, typer.Option(help="the name under which devices know it; the key's comment if not given")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Sign what `package` writes with this key from now on. Devices that are set up from now on take nothing unsigned."""
    from edgesdk import signing

    chosen = signing.use(key, principal)
    show({"principal": chosen.principal, "fingerprint": chosen.fingerprint}, f"{chosen.principal} signs with {chosen.fingerprint}", as_json=as_json)


@app.command()
def off(*, as_json: AsJson = False) -> None:
    """Sign no longer."""
    from edgesdk import signing

    signing.off()
    show({}, "bundles are not signed", as_json=as_json)


@app.command("show")
def show_(
    expires: Annotated[str | None, typer.Option(help="the day from which it is no longer trusted, YYYYMMDD")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """The line for a device's allowed_signers."""
    line = _signer().line(expires=expires)
    show({"line": line}, line, as_json=as_json)


@app.command()
def trust(
    host: Host,
    key: Annotated[Path | None, typer.Option(help="a public key; the one that signs here if not given")] = None,
    principal: Annotated[str | None, typer.Option(help="its owner's name")] = None,
    expires: Annotated[str | None, typer.Option(help="the day from which it is no longer trusted, YYYYMMDD")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Have a device take bundles that this key signed, and from then on no unsigned ones."""
    from edgesdk import device, signing

    signer = signing.read(key.expanduser(), principal) if key else _signer()
    line = signer.line(expires=expires)
    with device.connect(host) as opened:
        _show(opened.trust(line), host, as_json=as_json)


@app.command()
def revoke(host: Host, fingerprint: Annotated[str, typer.Argument(help="SHA256:…, as `edgesdk key trusted` shows it")], *, as_json: AsJson = False) -> None:
    """Have a device refuse whatever that key signed, then and from now on. What is active stays so."""
    from edgesdk import device

    with device.connect(host) as opened:
        _show(opened.revoke(fingerprint), host, as_json=as_json)


@app.command()
def trusted(host: Host = "local", *, as_json: AsJson = False) -> None:
    """Whose signatures a device takes."""
    from edgesdk import device

    with device.connect(host) as opened:
        _show(opened.trusted(), host, as_json=as_json)


def _signer() -> "Signer":
    from edgesdk import signing
    from edgesdk.errors import SigningError

    chosen = signing.in_use()
    if chosen is None:
        raise SigningError("no key signs here yet", "`edgesdk key use ~/.ssh/id_ed25519.pub`; `edgesdk key list` shows yours")
    return chosen


def _show(found: "Trusted", host: str, *, as_json: bool) -> None:
    rows = [(one.principals, one.kind, one.fingerprint, "revoked" if one.revoked else one.expires or "–") for one in found.signers]
    text = table(rows, head=("signer", "kind", "fingerprint", "until")) if rows else f"{host} takes any bundle: `edgesdk key trust {host}` changes that"
    show({"host": host, **found.to_dict()}, text, as_json=as_json)
