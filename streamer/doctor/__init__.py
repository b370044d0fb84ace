"""Check whether this machine can run the service: ok, warn or fail, with advice, per check."""
