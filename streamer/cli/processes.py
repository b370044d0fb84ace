"""`streamer serve | ingest | worker | record | mqtt`: run one process in the foreground."""

import os
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from streamer.cli.context import (
    BackendOption,
    BaseUrlOption,
    GpusOption,
    QuantizeOption,
    open_settings,
    options,
    require_model,
)
from streamer.errors import ErrorCode, StreamerError

if TYPE_CHECKING:
    from streamer.settings import Settings


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
    gpus: GpusOption = None,
) -> None:
    """Run a model worker, which answers questions about clips with NVILA-Lite, or asks a server."""
    chosen = {"model": model, "backend": backend, "base_url": base_url, "quantize": quantize}
    settings = open_settings(**chosen, log_level="debug" if options.debug else None)
    if settings.backend == "nvila":
        require_model()
    if gpus is None:
        _become("workers.gpu", *(["--burst"] if burst else []), **chosen)
    if burst or settings.backend != "nvila":
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            "--gpus goes neither with --burst nor with --backend openai: leave one of them out.",
        )
    _run_on_gpus(settings, gpus)


def _run_on_gpus(settings: "Settings", wanted: str) -> None:
    """Run a model worker for each of the GPUs that are wanted, until a signal ends them.

    The log has the lines of all of them: it is ready when the first one is.
    """
    from streamer.local.gpu_workers import GpuWorkers, SickGpuReporter, worker_of_gpu
    from streamer.local.gpus import choose_gpus
    from streamer.local.signals import StopSignals
    from streamer.logging_setup import configure_logging

    gpus = choose_gpus(wanted, os.environ)
    configure_logging(settings.log_level)
    program = [sys.executable, "-m", "workers.gpu"]
    with (
        StopSignals() as stop,
        GpuWorkers(
            gpus, lambda gpu: worker_of_gpu(settings, gpu, program), relay=_to_stderr
        ) as workers,
        SickGpuReporter(settings, workers),
    ):
        while not stop.wait(0.25):
            workers.poll()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
