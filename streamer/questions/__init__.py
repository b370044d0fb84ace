"""Questions and their answers: asked once, of every window, of a range, in conversations."""
