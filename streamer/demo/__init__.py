"""`streamer demo`: the whole service on one machine, shown in the terminal."""
