"""Raise an alert when the answer to a yes-or-no question becomes "yes", over the HTTP API.

Adds a standing question to an attached stream, polls its results, and removes it at the end.

    python examples/alert.py gate "Is there a car?"

Set STREAMER_API and STREAMER_API_KEY for a service on another machine.
"""

import argparse
import os
import time

import httpx

parser = argparse.ArgumentParser()
parser.add_argument("stream", help="its name")
parser.add_argument("question")
parser.add_argument("--window", type=float, default=5.0, help="seconds that one answer is about")
parser.add_argument("--answers", type=int, default=0, help="stop after so many; 0: never")
arguments = parser.parse_args()

api = os.environ.get("STREAMER_API", "http://127.0.0.1:8080")
key = os.environ.get("STREAMER_API_KEY")
headers = {"Authorization": f"Bearer {key}"} if key else {}

with httpx.Client(base_url=f"{api}/v1", headers=headers, timeout=30) as http:
    body = {
        "prompt": arguments.question,
        "window": arguments.window,
        "response_format": {"type": "choice", "choices": ["yes", "no"]},
    }
    added = http.post(f"/streams/{arguments.stream}/watches", json=body).raise_for_status()
    watch = added.json()["id"]
    try:
        seen: set[str] = set()
        answer = "no"
        while not arguments.answers or len(seen) < arguments.answers:
            page = http.get("/results", params={"stream": arguments.stream, "limit": 100})
            for result in reversed(page.raise_for_status().json()["results"]):
                if result["watch_id"] != watch or result["id"] in seen:
                    continue
                seen.add(result["id"])
                before, answer = answer, (result["data"] or {}).get("choice", answer)
                if (before, answer) == ("no", "yes"):
                    print(f"ALERT {result['end']} {arguments.question}", flush=True)
                else:
                    print(f"ok    {result['end']} {answer}", flush=True)
            time.sleep(0.5)
    finally:
        http.delete(f"/streams/{arguments.stream}/watches/{watch}")
