"""Records of the service: streams, watches, frames, requests, results and queries."""
