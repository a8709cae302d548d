"""`edgesdk profile …`: profiles as data."""

from pathlib import Path
from typing import Annotated

import typer

from edgesdk.cli.output import AsJson, Group, show, table

app = typer.Typer(cls=Group, no_args_is_help=True, help="Hardware targets: list, show, check, detect.")


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """The profiles that come with edgesdk."""
    from edgesdk import profiles

    found = [profiles.find(name) for name in profiles.names()]
    rows = [
        (p.name, p.title, ", ".join(p.quantization.schemes), p.providers[0].name.removesuffix("ExecutionProvider"), "yes" if p.deployable else "no")
        for p in found
    ]
    show([p.to_dict() for p in found], table(rows, head=("profile", "hardware", "tries", "provider", "deployable")), as_json=as_json)


@app.command("show")
def show_(name: Annotated[str, typer.Argument(help="a profile's name, or a .toml file")], *, as_json: AsJson = False) -> None:
    """One profile with everything that it inherits."""
    from edgesdk import profiles

    data = profiles.find(name).to_dict()
    rows = [(key, str(value)) for key, value in _flat(data)]
    show(data, table(rows, head=("key", "value")), as_json=as_json)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="a .toml file")], *, as_json: AsJson = False) -> None:
    """Whether a profile of your own says only what a profile can say."""
    from edgesdk import profiles

    profile = profiles.load(file)
    show(profile.to_dict(), f"{file}: a valid profile ({profile.title})", as_json=as_json)


@app.command()
def detect(host: Annotated[str, typer.Argument(help="a name of ~/.ssh/config, user@host[:port], or local")] = "local", *, as_json: AsJson = False) -> None:
    """Which profiles fit a device, the closest first."""
    from edgesdk import device, profiles

    with device.connect(host) as opened:
        facts = opened.facts().to_dict()
    fitting = profiles.recognise(facts)
    lines = [f"{host}: {facts['board'] or facts['cpu_model'] or facts['architecture']}, {facts['architecture']}, Python {facts['python']}"]
    lines += [f"  {profile.name}: {profile.title}" for profile in fitting] or ["  no profile fits"]
    show({"facts": facts, "profiles": [profile.name for profile in fitting]}, "\n".join(lines), as_json=as_json)


def _flat(data: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, entry in enumerate(value):
                rows += _flat(entry, f"{prefix}{key}.{index}.")
        elif isinstance(value, list):
            rows.append((prefix + key, ", ".join(map(str, value)) or "–"))
        else:
            rows.append((prefix + key, "–" if value in (None, "") else value))
    return rows
