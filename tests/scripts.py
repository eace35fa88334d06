"""Scripts for the simulator: a mixed lot of tasks such as a fleet meets in a day."""

from __future__ import annotations

import random
from typing import Any


def mixed(count: int, seed: random.Random, *, spread: float) -> list[dict[str, Any]]:
    """``count`` scripts that end over ``spread`` seconds; the rare and slow kinds are few."""
    scripts = [COMMON[n % len(COMMON)](seed) for n in range(count - len(RARE))]
    scripts += [make(seed) for make in RARE]
    for script in scripts:
        script.setdefault("duration", round(seed.uniform(0, spread), 2))
    seed.shuffle(scripts)
    return [{"simulate": script} for script in scripts]


def _slow(seed: random.Random) -> dict[str, Any]:
    return {"fault": "slow", "seconds": round(seed.uniform(0.5, 3), 1), "times": 3}


def _picture(_: random.Random) -> dict[str, Any]:
    return {}


def _formats(seed: random.Random) -> dict[str, Any]:
    return {
        "images": ["png", {"file": "jpeg", "faults": [_slow(seed)]}, "webp"],
        "rename": True,
    }


def _nested(seed: random.Random) -> dict[str, Any]:
    return {
        "result": {
            "scenes": [
                {"clip": {"file": "mp4", "faults": [_slow(seed)]}, "caption": "one"},
                {"clip": {"file": "mp4"}, "score": 1.10},
            ],
            "poster": {"file": "webp", "name": "poster", "ext": "png"},
            "seed": 123456789012345678901234567890,
            "link": {"file": "zip", "as": "url"},
        },
        "images": [{"same": "poster"}],
        "reorder": True,
    }


def _sound(seed: random.Random) -> dict[str, Any]:
    return {"result": {"voice": {"file": "wav", "faults": [_slow(seed)]}, "words": "hello"}}


def _large(seed: random.Random) -> dict[str, Any]:
    return {"images": [{"file": "png", "size": 20_000_000, "faults": [_slow(seed)]}]}


def _hurt(seed: random.Random) -> dict[str, Any]:
    fault = seed.choice(["truncated", "reset", "error_503", "no_length", "redirect", "expired"])
    return {"images": ["png", {"file": "jpeg", "faults": [{"fault": fault, "times": 1}]}]}


def _text(_: random.Random) -> dict[str, Any]:
    return {"images": [], "result": {"answer": "see https://example.com/a?b=c", "n": 7}}


def _flaky(seed: random.Random) -> dict[str, Any]:
    answers = ["throttled", "throttled_429", "error_503", "broken_json", "strange", "flow_control"]
    return {"answers": seed.sample(answers, 2), "images": ["png"]}


def _failed(seed: random.Random) -> dict[str, Any]:
    return {"end": seed.choice(["failed", "canceled", "content_refused", "audit_refused"])}


def _late(_: random.Random) -> dict[str, Any]:
    return {"hidden_for": 3, "images": ["png"]}


COMMON = (
    _picture, _formats, _nested, _sound, _hurt, _picture, _text, _flaky, _failed, _late, _large,
)  # fmt: skip

RARE = (
    lambda _: {"images": [{"file": "png", "faults": [{"fault": "gone", "times": "ever"}]}]},
    lambda _: {
        "images": ["png", {"file": "png", "faults": [{"fault": "missing", "times": "ever"}]}]
    },
    lambda _: {
        "images": ["png", {"file": "png", "faults": [{"fault": "redirect_to", "times": "ever"}]}]
    },
    lambda _: {"end": "unknown"},
    lambda _: {"stale_replies": 1, "images": ["png", "webp"]},
    lambda _: {"end": "empty", "duration": 0},
)
