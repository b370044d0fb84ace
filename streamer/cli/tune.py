"""`streamer tune`: find the engine settings that suit this machine and the model."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from streamer.cli.context import Json, open_settings, options, require_model


def tune(
    seconds: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1, max=3600, help="Measure for about this long."),
    ] = 60.0,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Write the settings to this file.")
    ] = Path("tuned.yaml"),
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_HUB_ID", help="Measure this model instead of the one in the settings."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine and the model, write a settings file and report the gain.

    The new file keeps the other settings of the --config file. Run this while the machine is
    otherwise idle. Settings whose defaults perform as well keep their defaults.
    """
    import yaml
    from rich.text import Text

    settings = open_settings(model=model)
    require_model()
    from nvila_core.demo import CHECKPOINT
    from nvila_core.errors import NVILAError
    from streamer.errors import ErrorCode, StreamerError
    from streamer.terminal import console, print_hanging

    def say(line: str) -> None:
        if not as_json:
            print_hanging(out_console, Text("  "), Text(line.strip(), "dim"))

    path = str(CHECKPOINT) if settings.model == "demo" else settings.model
    base = yaml.safe_load(options.config.read_text()) if options.config is not None else {}
    out_console = console()
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
            say=say,
        )
    except NVILAError as error:
        raise StreamerError(ErrorCode.MODEL_FAILED, str(error)) from error
    if as_json:
        print(json.dumps(asdict(tuning) | {"summary": tuning.summary, "file": str(out)}))
        return
    print_hanging(out_console, Text(), Text(tuning.summary, "bold"))
    out_console.print(f"Wrote {out}. Use it with: streamer --config {out} up", soft_wrap=True)
