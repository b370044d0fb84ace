"""The command tree, the global options and the handling of errors."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from streamer import __version__
from streamer.cli import (
    analyze,
    ask,
    attach,
    demo,
    discover,
    doctor,
    edit,
    incidents,
    keys,
    mcp,
    probe,
    processes,
    query,
    results,
    silence,
    streams,
    summarize,
    tune,
    up,
    watch,
)
from streamer.cli.context import (
    ConfigOption,
    DebugOption,
    RedisOption,
    options,
    with_global_options,
)
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
    config: ConfigOption = None,
    redis_url: RedisOption = None,
    debug: DebugOption = False,
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Store the options that come before the command; a command takes them as well."""
    options.config, options.redis_url, options.debug = config, redis_url, debug


@app.command("version")
@with_global_options
def version() -> None:
    """Show the version and exit."""
    _version(True)


watches = typer.Typer(
    no_args_is_help=True, help="Add, list, change and remove the standing questions of a stream."
)
watches.command("add")(with_global_options(watch.watch_add))
watches.command("list")(with_global_options(watch.watch_list))
watches.command("edit")(with_global_options(watch.watch_edit))
watches.command("remove")(with_global_options(watch.watch_remove))

api_keys = typer.Typer(
    no_args_is_help=True, help="Add, list and revoke the keys of programs that call the HTTP API."
)
api_keys.command("add")(with_global_options(keys.keys_add))
api_keys.command("list")(with_global_options(keys.keys_list))
api_keys.command("revoke")(with_global_options(keys.keys_revoke))

silences = typer.Typer(
    no_args_is_help=True, help="Keep incidents from being delivered for a while."
)
silences.command("add")(with_global_options(silence.silence_add))
silences.command("list")(with_global_options(silence.silence_list))
silences.command("end")(with_global_options(silence.silence_end))

app.command("up")(with_global_options(up.up))
app.command("demo")(with_global_options(demo.demo))
app.command("attach")(with_global_options(attach.attach))
app.command("detach")(with_global_options(attach.detach))
app.command("edit")(with_global_options(edit.edit))
app.add_typer(watches, name="watch")
app.command("streams")(with_global_options(streams.streams))
app.command("ask")(with_global_options(ask.ask))
app.command("query")(with_global_options(query.show_or_cancel))
app.command("analyze")(with_global_options(analyze.analyze))
app.command("incidents")(with_global_options(incidents.incidents))
app.add_typer(silences, name="silence")
app.command("results")(with_global_options(results.results))
app.command("summarize")(with_global_options(summarize.summarize))
app.add_typer(api_keys, name="keys")
app.command("discover")(with_global_options(discover.discover))
app.command("probe")(with_global_options(probe.probe_source))
app.command("doctor")(with_global_options(doctor.doctor))
app.command("tune")(with_global_options(tune.tune))
app.command("serve")(with_global_options(processes.run_api))
app.command("ingest")(with_global_options(processes.run_ingest_worker))
app.command("worker")(with_global_options(processes.run_model_worker))
app.command("mcp")(with_global_options(mcp.mcp))
app.command("record")(with_global_options(processes.run_recorder))
app.command("mqtt")(with_global_options(processes.run_mqtt_bridge))


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
