"""Read and write checkpoints: files, configuration, weights, the hub, memory footprint."""
