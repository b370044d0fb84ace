"""The command tree, the global options and the handling of errors."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from streamer import __version__
from streamer.cli import (
    analyze,
    ask,
    attach,
    demo,
    doctor,
    edit,
    probe,
    processes,
    results,
    streams,
    tune,
    up,
)
from streamer.cli.context import options
from streamer.cli.report import report
from streamer.errors import StreamerError


class Commands(TyperGroup):
    """Command group that reports a StreamerError as one sentence on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except StreamerError as error:
            raise typer.Exit(report(error)) from error
        except Exception as error:
            _redact_usage(error)
            raise


def _redact_usage(error: Exception) -> None:
    # A usage error repeats the arguments, and one of them may be a URL with its password.
    from streamer.media.urls import redact

    if isinstance(getattr(error, "message", None), str):
        error.message = redact(error.message)  # type: ignore[attr-defined]


app = typer.Typer(
    name="streamer",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Attach camera streams and ask what they show, now or in the past.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"streamer {__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Read settings from this YAML file."),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            "--redis-url",
            metavar="URL",
            help="Connect to this Redis instead of STREAMER_REDIS_URL.",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Store the options that come before the command."""
    options.config, options.redis_url, options.debug = config, redis_url, debug


@app.command("version")
def version() -> None:
    """Show the version and exit."""
    _version(True)


app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("attach")(attach.attach)
app.command("detach")(attach.detach)
app.command("edit")(edit.edit)
app.command("streams")(streams.streams)
app.command("ask")(ask.ask)
app.command("analyze")(analyze.analyze)
app.command("results")(results.results)
app.command("probe")(probe.probe_source)
app.command("doctor")(doctor.doctor)
app.command("tune")(tune.tune)
app.command("serve")(processes.run_api)
app.command("ingest")(processes.run_ingest_worker)
app.command("worker")(processes.run_model_worker)
app.command("record")(processes.run_recorder)


def _hide_passwords() -> None:
    """Mask passwords in the process title: every user of the machine can read it."""
    from streamer.media.urls import normalise, redact

    shown = [redact(normalise(argument)) for argument in sys.argv[1:]]
    if shown != sys.argv[1:]:
        from setproctitle import setproctitle

        setproctitle(" ".join(["streamer", *shown]))


def run() -> None:
    """Run the command that the arguments name, then exit."""
    from streamer.logging_setup import configure_logging_on_demand

    _hide_passwords()
    configure_logging_on_demand()
    try:
        app()
    except Exception as error:
        sys.exit(report(error))
