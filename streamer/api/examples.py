"""Examples of the bodies of requests, for the reference of the API and the programs that read it.

A test sends each of them, except that of a search for cameras, which it only validates.
"""

from typing import Any

EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    "attach_stream": {
        "a camera": {"url": "rtsp://camera.example:554/main", "name": "yard", "probe": False},
        "a camera with questions": {
            "url": "rtsp://camera.example:554/gate",
            "name": "gate",
            "probe": False,
            "sampling": {"mode": "change", "threshold": 0.05},
            "watches": [
                {"prompt": "Describe the scene.", "window": 10},
                {
                    "prompt": "Is the gate open?",
                    "response_format": {"type": "choice", "choices": ["open", "shut"]},
                },
            ],
        },
        "an uploaded file": {"file": "file_4be1a07c5d2f9a36", "name": "evening"},
    },
    "try_source": {"a camera": {"url": "rtsp://camera.example:554/main", "transport": "tcp"}},
    "discover_cameras": {"a network": {"address": "192.168.1.0/24", "user": "viewer"}},
    "edit_stream": {
        "another name": {"name": "front-yard"},
        "pause": {"paused": True},
        "all questions": {"watches": [{"prompt": "Describe the scene."}]},
    },
    "add_watch": {
        "a caption": {"prompt": "Describe the scene.", "window": 10},
        "JSON": {
            "prompt": "Count the cars.",
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "type": "object",
                    "properties": {"cars": {"type": "integer", "minimum": 0, "maximum": 99}},
                    "required": ["cars"],
                },
            },
        },
        "an alert": {
            "prompt": "Is a car parked in front of the gate?",
            "window": 5,
            "alert": {
                "raise": {"probability": 0.8, "k": 2, "n": 3},
                "clear": {"probability": 0.2, "m": 3},
                "severity": "critical",
                "title": "The gate is blocked",
                "labels": {"site": "north"},
                "schedule": {"days": ["sat", "sun"], "from": "22:00", "to": "06:00"},
            },
        },
    },
    "edit_watch": {
        "another window": {"window": 30},
        "another threshold": {"alert": {"raise": {"probability": 0.9}}},
    },
    "ask_question": {
        "now": {"prompt": "Is the gate open?", "stream": "yard"},
        "a past range": {
            "prompt": "Who came to the door?",
            "stream": "yard",
            "since": "-10m",
            "until": "now",
            "max_frames": 16,
        },
        "a choice": {
            "prompt": "Is the gate open?",
            "stream": "yard",
            "response_format": {"type": "choice", "choices": ["yes", "no"]},
        },
        "windows of a past range": {
            "prompt": "Is a car parked in front of the gate?",
            "stream": "yard",
            "since": "-8h",
            "window": 60,
        },
        "several streams": {"prompt": "Is anybody there?", "streams": ["yard", "gate"]},
        "an uploaded file": {"prompt": "Who comes and goes?", "file": "file_4be1a07c5d2f9a36"},
    },
    "summarise_stream": {"the last day": {"since": "-1d"}},
    "edit_incident": {
        "acknowledge": {"acknowledged": True, "note": "I am on my way.", "by": "ann"},
        "judge": {"feedback": {"verdict": "wrong", "note": "It was a bicycle."}},
        "resolve": {"seen": True, "state": "resolved"},
    },
    "add_silence": {
        "an hour": {
            "matchers": [{"name": "stream", "value": "yard"}],
            "minutes": 60,
            "reason": "The garden is being watered.",
        },
        "until a time": {
            "matchers": [{"name": "severity", "value": "info|warning", "isRegex": True}],
            "ends_at": "2099-01-01T00:00:00Z",
        },
    },
    "add_webhook": {
        "incidents of a stream": {
            "url": "http://192.168.1.20:8123/api/webhook/nvila",
            "types": ["incident.*"],
            "streams": ["yard"],
        },
    },
    "edit_webhook": {"disable": {"enabled": False}},
    "sign_in": {"a key": {"key": "nvs_the-key-that-streamer-keys-add-has-shown"}},
    "create_chat_completion": {
        "a camera as a model": {
            "model": "stream/yard",
            "messages": [{"role": "user", "content": "Is the gate open?"}],
        },
        "a picture": {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {
                            "type": "image_url",
                            "image_url": {
                                "url": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB"
                                "CAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
                            },
                        },
                    ],
                }
            ],
            "max_tokens": 16,
        },
        "the last seconds of a camera": {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What has happened?"},
                        {"type": "video_url", "video_url": {"url": "stream://yard?last=10s"}},
                    ],
                }
            ],
        },
    },
}
"""Bodies by the operation and by what they are an example of."""
