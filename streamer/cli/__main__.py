"""`python -m streamer.cli`: the same program where its script is not on PATH."""

from streamer.cli import main

main()
