"""Run the service on one machine: programs, supervision, the embedded Redis server."""
