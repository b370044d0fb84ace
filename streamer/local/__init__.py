"""Run the service on one machine: its programs, their supervision, embedded Redis servers."""
