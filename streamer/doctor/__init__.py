"""Is this machine fit for the service? One line a check: ok, warn or fail, and what to do."""
