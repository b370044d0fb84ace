"""Choose how many tiles each frame gets. Imports no torch: ingest workers use it too."""
