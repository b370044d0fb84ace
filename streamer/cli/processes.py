"""`streamer serve | ingest | worker | record | mqtt`: run one process in the foreground."""

import os
import sys
from typing import Annotated, NoReturn

import typer

from streamer.cli.context import (
    BackendOption,
    BaseUrlOption,
    QuantizeOption,
    open_settings,
    options,
    require_model,
)


def run_api(
    host: Annotated[
        str | None, typer.Option(help="Listen on this address. Default: 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Listen on this port. 0: any free one. Default: 8080."),
    ] = None,
) -> None:
    """Run the HTTP API."""
    from streamer.api.server import run_server

    run_server(open_settings(api_host=host, api_port=port))


def run_ingest_worker() -> None:
    """Run an ingest worker, which reads and samples streams."""
    _become("workers.ingest")


def run_model_worker(
    burst: Annotated[bool, typer.Option("--burst", help="Exit when the queues are empty.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_HUB_ID",
            help="Use this model instead of STREAMER_MODEL; with --backend openai, its name there.",
        ),
    ] = None,
    backend: BackendOption = None,
    base_url: BaseUrlOption = None,
    quantize: QuantizeOption = None,
) -> None:
    """Run a model worker, which answers questions about clips with NVILA-Lite, or asks a server."""
    if open_settings(model=model, backend=backend, base_url=base_url).backend == "nvila":
        require_model()
    _become(
        "workers.gpu",
        *(["--burst"] if burst else []),
        model=model,
        backend=backend,
        base_url=base_url,
        quantize=quantize,
    )


def run_recorder() -> None:
    """Run the recorder, which writes results to the timeline database."""
    _become("workers.recorder")


def run_mqtt_bridge() -> None:
    """Run the MQTT bridge, which shows streams to Home Assistant. Needs the setting mqtt_url."""
    _become("workers.mqtt")


def _become(module: str, *arguments: str, **overrides: str | None) -> NoReturn:
    open_settings(**overrides)  # report a bad setting before the worker starts
    environment = dict(os.environ)  # names the --config file since open_settings
    overrides.setdefault("redis_url", options.redis_url)
    for key, value in overrides.items():
        if value is not None:
            environment[f"STREAMER_{key.upper()}"] = value
    if options.debug:
        environment["STREAMER_LOG_LEVEL"] = "debug"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)
