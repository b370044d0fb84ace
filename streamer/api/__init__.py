"""The HTTP API: a thin layer over `streamer.client.Client`."""
