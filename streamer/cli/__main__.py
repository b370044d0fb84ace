"""Run the `streamer` program with `python -m streamer.cli` where its script is not on PATH."""

from streamer.cli import main

main()
