"""The HTTP API: a thin layer over `streamer.service.Service`."""
