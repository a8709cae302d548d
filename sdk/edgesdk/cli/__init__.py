"""The command line: parses, calls, shows. Data goes to stdout, talk to stderr.

Exit 0: worked; 1: you can fix it; 2: wrong usage; 70: our bug, with its traceback; 130: interrupted.
Nothing heavy is imported here or at the top of the files beside: `edgesdk --help` must stay quick.
"""

import platform
import sys
import traceback
from typing import Annotated, Any

import typer

from edgesdk.cli import devices, keys, measuring, models, profiles, tuning
from edgesdk.cli.output import Group, fail, open_streams, password, say, say_connecting, show

INTERRUPTED = 130


class Verbs(Group):
    """Runs a verb and turns what it raises into a sentence and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's own subclass of click's
        from edge_agent.bundle import BundleError
        from edgesdk import transport
        from edgesdk.errors import EdgeSDKError

        transport.ask_password = password if sys.stdin.isatty() else None
        transport.tell_slow = say_connecting if sys.stderr.isatty() else None
        try:
            return super().invoke(ctx)
        except (EdgeSDKError, BundleError) as error:
            _refuse(str(error), error.hint)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(INTERRUPTED) from interrupt
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            _refuse(_system_error(error), "")
            raise typer.Exit(1) from error


def _tell_version(wanted: bool) -> None:  # noqa: FBT001  # so typer calls it
    if wanted:
        import edge_agent

        show({}, f"edgesdk {edge_agent.__version__}, Python {platform.python_version()}", as_json=False)
        raise typer.Exit


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def edgesdk(
    *,
    version: Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="say which edgesdk this is, and with which Python")] = False,
) -> None:
    """Take a trained model to a small computer and keep it running there."""


models.register(app)
measuring.register(app)
tuning.register(app)
app.add_typer(profiles.app, name="profile")
devices.register(app)
app.add_typer(keys.app, name="key")


def main() -> None:
    """The console script. An exception that gets this far is our bug."""
    open_streams()
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # here or before a verb began, which typer itself hears
            say("interrupted")
        raise
    except Exception:  # noqa: BLE001  # the outermost border: shown whole, exit 70
        traceback.print_exc()
        say("this is a bug of edgesdk: please report it with the lines above")
        sys.exit(70)


def _refuse(message: str, hint: str) -> None:
    """Whichever it is, a script that asked for JSON gets it."""
    if "--json" in sys.argv:
        show({"error": {"message": message, "hint": hint}}, "", as_json=True)
    fail(message, hint)


def _system_error(error: OSError) -> str:
    """`bundles/ocr: No space left on device`, without Python's numbers."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error.strerror or str(error)
