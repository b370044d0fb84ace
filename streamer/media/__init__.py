"""Read video: parse addresses, open sources, decode and sample frames, explain failures."""
