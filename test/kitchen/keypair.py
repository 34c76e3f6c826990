"""Write a fresh key pair for Kitchen's masters as plain pillar, readable by its owner only."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from lab.keys import make_pair


def main(directory: Path) -> None:
    """Write ``keypair.sls`` into ``directory``, which is made if it is missing."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = os.open(directory / "keypair.sls", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(path, "w") as pillar:
        # JSON is YAML, and needs no care for indentation.
        pem, pub = make_pair()
        json.dump({"multimaster": {"keypair": {"pem": pem, "pub": pub}}}, pillar)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
