"""What every worker process does: start, log, restart, report its resources."""
