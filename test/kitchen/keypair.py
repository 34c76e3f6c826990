"""Write a fresh key pair for Kitchen's masters as plain pillar, readable by its owner only."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


def keypair() -> dict[str, str]:
    """Return a new RSA pair as PEM text: ``pem`` (private) and ``pub``."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {"pem": private.decode(), "pub": public.decode()}


def main(directory: Path) -> None:
    """Write ``keypair.sls`` into ``directory``, which is made if it is missing."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = os.open(directory / "keypair.sls", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(path, "w") as pillar:
        # JSON is YAML, and needs no care for indentation.
        json.dump({"multimaster": {"keypair": keypair()}}, pillar)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
