"""What a request passes before and after its call: keys, limits, repetitions, the log."""
