"""Attach a camera, print what it shows as captions come in, and detach it again.

Needs a running service (`streamer up`).

    python examples/watch_camera.py rtsp://user:password@192.168.1.20/stream1 --captions 10
"""

import argparse

from streamer.domain.sampling import Sampling
from streamer.service import Service
from streamer.settings import load_settings

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--captions", type=int, default=10, help="how many to wait for")
parser.add_argument("--window", type=float, default=5.0, help="seconds that one caption is about")
arguments = parser.parse_args()

with Service(load_settings()) as client:
    watch = client.watch("Describe the scene.", window=arguments.window)
    stream = client.attach(arguments.url, sampling=Sampling(fps=1.0), watches=[watch])
    try:
        seen = 0
        for result in client.follow():
            if result.stream_id != stream.id:
                continue
            if result.error is not None:
                print(f"{result.end:%H:%M:%S} failed: {result.error.message}", flush=True)
                continue
            print(f"{result.end:%H:%M:%S} {result.text} ({result.total_ms:.0f} ms)", flush=True)
            seen += 1
            if seen == arguments.captions:
                break
    finally:
        client.detach(stream.id)
