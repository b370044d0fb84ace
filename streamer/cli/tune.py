"""`streamer tune`: the engine settings that suit this machine and the model."""

from pathlib import Path
from typing import Annotated

import typer

from streamer.cli.context import open_settings, options


def tune(
    seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="How long to measure, about.")
    ] = 60.0,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The settings file to write.")] = Path(
        "tuned.yaml"
    ),
    model: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_HUB_ID", help="Instead of the one in the settings."),
    ] = None,
) -> None:
    """Measure this machine and the model, write a settings file, and say how much it gains.

    What the file of --config says otherwise is kept in the new one. Run it while nothing else
    needs the machine. Where the defaults are as good, they are written.
    """
    import yaml

    settings = open_settings(model=model)
    from nvila_core.demo import CHECKPOINT
    from nvila_core.errors import NVILAError
    from streamer.errors import ErrorCode, StreamerError
    from streamer.terminal import console

    path = str(CHECKPOINT) if settings.model == "demo" else settings.model
    base = yaml.safe_load(options.config.read_text()) if options.config is not None else {}
    told = console()
    try:
        with console(stderr=True).status("Importing PyTorch ..."):
            from nvila_core.tuning.tuner import tune_to_file
        tuning = tune_to_file(
            path,
            settings.device,
            seconds,
            out,
            quantize=settings.quantize,
            name=settings.model,
            base=base,
            say=lambda line: told.print(line, style="dim", soft_wrap=True),
        )
    except NVILAError as error:
        raise StreamerError(ErrorCode.MODEL_FAILED, str(error)) from error
    told.print(tuning.summary, style="bold", soft_wrap=True)
    told.print(f"Written: {out}. Use it: streamer --config {out} up", soft_wrap=True)
