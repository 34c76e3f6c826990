"""Write fresh key pairs for Kitchen's hosts as plain pillar, readable by its owner only."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from lab.keys import make_pair


def main(directory: Path) -> None:
    """Write what masters are given, and what minions are, into a directory, made if missing."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, given in pillars().items():
        path = os.open(directory / f"{name}.sls", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(path, "w") as pillar:
            # JSON is YAML, and needs no care for indentation.
            json.dump(given, pillar)


def pillars() -> dict[str, dict]:
    """Return the pillar with fresh keys for ``masters``, and that for ``minions``."""
    pem, pub = make_pair()
    # Of use where signing is declared.
    sign_pem, sign_pub = make_pair()
    shared = {"pem": pem, "pub": pub, "sign_pem": sign_pem, "sign_pub": sign_pub}
    return {
        "masters": {"multimaster": {"keypair": shared}},
        "minions": {"multimaster": {"keypair": {"sign_pub": sign_pub}}},
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
