"""Video in: addresses, decoding, sampling, and a camera of our own to try it all with."""
