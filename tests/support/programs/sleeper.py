"""Print `up`, and sleep until a signal comes."""

import signal

if __name__ == "__main__":
    print("up", flush=True)
    signal.pause()
