"""What every worker process does: start, restart, report its resources."""
