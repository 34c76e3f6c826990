"""
Compiles what a master would give one minion: pillar, and the match of the top file.

A program of its own, run as the user that the master runs as: what it leaves in the master's cache
has to belong to that user, and nothing of it may stay in the minion that asks.
"""

import hashlib
import hmac
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

# What differs each time that it is made, and is for masters only.
RANDOM = ("multimaster", "keypair")


def source() -> str:
    """Return this program; that user may not read the file that it is in."""
    return pathlib.Path(__file__).read_text()


def main() -> None:
    """Read a job from standard input, and write the outcome to standard output, both as JSON."""
    job = json.load(sys.stdin)
    # Whatever prints something shall not spoil the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    key = bytes.fromhex(job["key"])
    try:
        outcome: dict[str, Any] = {"leaves": _compile(job["config"], job["id"], job["grains"], key)}
    except Exception as err:  # whatever a pillar or a renderer raises is this master's answer
        outcome = {"problem": f"{type(err).__name__}"}
        print(err, file=sys.stderr)
    json.dump(outcome, answer)
    answer.close()


def _compile(config: str, minion_id: str, grains: dict[str, Any], key: bytes) -> dict[str, Any]:
    import salt.config
    import salt.pillar
    import salt.state

    opts = dict(salt.config.master_config(config))
    # As the master does it; but what was fetched is its business, and so is what is remembered.
    opts |= {"__fs_update": True, "pillar_cache": False, "minion_data_cache": False}
    environment = opts.get("saltenv") or "base"
    made = salt.pillar.Pillar(dict(opts), grains, minion_id, environment).compile_pillar()
    pillar = dict(made)
    first, second = RANDOM
    if isinstance(pillar.get(first), Mapping):
        pillar[first] = {name: v for name, v in pillar[first].items() if name != second}
    found = {
        path: hmac.new(
            key, json.dumps([path, value], default=str).encode(), hashlib.sha256
        ).hexdigest()[:16]
        for path, value in _leaves("pillar", pillar)
    }
    state_opts = {**opts, "id": minion_id, "grains": grains, "pillar": made, "file_client": "local"}
    high = salt.state.HighState(state_opts, initial_pillar=made)
    for saltenv, names in high.top_matches(high.get_top()).items():
        found |= {f"top:{saltenv}:{place}": str(name) for place, name in enumerate(names)}
    return found


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name in sorted(value, key=str):
            yield from _leaves(f"{path}:{name}", value[name])
    else:
        yield path, value


if __name__ == "__main__":
    main()
