"""`streamer up`: run the whole service on this machine until Ctrl-C."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamer.cli.become_server import BecomeServer
from streamer.cli.context import (
    BackendOption,
    BaseUrlOption,
    GpusOption,
    QuantizeOption,
    open_settings,
    require_local,
    require_model,
)
from streamer.errors import ErrorCode, StreamerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from streamer.local.fork_server import ForkServer
    from streamer.local.installation import Installation
    from streamer.local.signals import StopSignals
    from streamer.settings import Settings

DEMO_MODEL = (
    "demo: a tiny model that knows only a rendered street. "
    "For the real model: --model Efficient-Large-Model/NVILA-Lite-2B"
)


def up(
    host: Annotated[
        str | None, typer.Option(help="Let the API listen on this address. Default: 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Let the API listen on this port. 0: any free one. Default: 8080.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Start this number of model workers.")
    ] = 1,
    ingest: Annotated[
        int, typer.Option(min=1, max=64, help="Start this number of ingest workers.")
    ] = 1,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_HUB_ID", help="Run this model. Default: the small demo model."
        ),
    ] = None,
    backend: BackendOption = None,
    base_url: BaseUrlOption = None,
    quantize: QuantizeOption = None,
    gpus: GpusOption = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep streams, results and logs in this folder. Default: the user's data folder.",
        ),
    ] = None,
) -> None:
    """Start the whole service on this machine: Redis, workers, recorder and API."""
    from streamer.api.listen import listen
    from streamer.file_pages import IdleRelease
    from streamer.local.gpus import choose_gpus
    from streamer.local.installation import Installation
    from streamer.local.signals import Interrupted, StopSignals
    from streamer.terminal import console

    if data_dir is not None:
        data_dir = data_dir.expanduser().absolute()
    settings = open_settings(
        api_host=host,
        api_port=port,
        model=model,
        backend=backend,
        base_url=base_url,
        quantize=quantize,
        data_dir=data_dir,
    )
    require_local(settings, "up")
    if settings.backend == "nvila":
        require_model()
    if gpus is not None and (workers > 1 or settings.backend != "nvila"):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            "--gpus goes neither with --workers nor with --backend openai: leave one of them out.",
        )
    chosen_gpus = choose_gpus(gpus, os.environ) if gpus is not None else []
    say = console(stderr=True).print
    out = console()
    with (
        _fork_server(settings, say) as fork_server,
        StopSignals() as stop,
        Installation(
            settings,
            model_workers=workers,
            ingest_workers=ingest,
            gpus=chosen_gpus,
            say=say,
            fork_server=fork_server,
        ) as installation,
    ):
        installation.claim()
        listen(settings).close()  # fail before anything starts if the API cannot listen there
        try:
            start(installation, stop)
            loaded = installation.ready()
            _print_next_steps(out, installation, loaded=loaded)
            idle = IdleRelease()
            while not stop.wait(0.25):
                if not loaded and (loaded := installation.ready()):
                    out.print("The model is ready.")
                installation.poll()
                idle.step()
        except Interrupted:
            pass
        out.print("Stopping ...")
    out.print("Stopped.")


def _fork_server(
    settings: "Settings", say: "Callable[[str], None]"
) -> "AbstractContextManager[ForkServer | None]":
    """Start the fork server, unless the settings say no; without it, programs need more memory.

    Raises BecomeServer in its process.
    """
    from streamer.local import fork_server

    if not settings.fork_programs:
        return nullcontext()
    try:
        started = fork_server.start_fork_server()
    except fork_server.CannotFork as error:
        say(f"Programs need more memory, because {error}.")
        return nullcontext()
    if isinstance(started, fork_server.ForkServer):
        return started
    raise BecomeServer(started)


def start(installation: "Installation", stop: "StopSignals") -> None:
    """Start everything and wait until all but the model is ready; a spinner names what is not."""
    from streamer.terminal import console

    with console(stderr=True).status("Starting ...") as status:
        installation.start()
        while not installation.reachable():
            stop.wait(0.1)
            stop.check()
            status.update(f"Starting: waiting for the {', the '.join(installation.waiting_for())}")


def _print_next_steps(out: "Console", installation: "Installation", *, loaded: bool) -> None:
    from rich.text import Text

    from streamer.settings import Settings

    settings = installation.settings
    url = installation.api_url
    out.print(Text("NVILA Streamer is running.", "bold green"))
    model = DEMO_MODEL if settings.model == "demo" else settings.model
    if settings.backend == "openai":
        model = f"{model} at {settings.base_url}"
    out.print(Text.assemble("Open ", (url, "bold")), soft_wrap=True)
    rows = [("API", f"{url}/docs"), ("Model", model), ("Data", str(settings.data_dir))]
    for name, value in rows:
        out.print(Text.assemble((f"  {name:<7}", "dim"), value), soft_wrap=True)
    if not loaded:
        out.print("The model is loading: captions and answers begin when it is ready.")
    out.print("\nIn another terminal:")
    if settings.data_dir != Settings.model_fields["data_dir"].get_default(
        call_default_factory=True
    ):
        out.print(f"  export STREAMER_DATA_DIR={settings.data_dir}", soft_wrap=True)
    for command, does in (
        ("streamer attach rtsp://user:password@camera/stream --name door", "attach a camera"),
        ("streamer results --follow", "see its captions"),
        ('streamer ask door "Is the door open?"', "ask about the present"),
        ('streamer ask door "What happened?" --since -5m', "ask about the past"),
        ("streamer analyze clip.mp4", "caption a recording"),
    ):
        out.print(Text.assemble(f"  {command:<66}", (does, "dim")), soft_wrap=True)
    out.print("\nPress Ctrl-C to stop everything.")
