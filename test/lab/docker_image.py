"""Build the image of a docker laboratory host: once per content, with progress to the caller.

The recipe is ``test/lab/docker/``; the Salt release comes from ``requirements/salt-<series>.txt``.
Run it by hand (``PYTHONPATH=test python3 -m lab.docker_image --help``) to prepare an image for
Test Kitchen or ahead of time; ``lab up --driver docker`` calls it by itself.

``LAB_DEBIAN=13`` has all hosts of a laboratory run another Debian than 12, and ``LAB_DEBIAN=12,13``
one after the other each of these.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import io
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from lab.model import REPOSITORY, SERIES, LabError

RECIPE = Path(__file__).parent / "docker"
NAME = "multimaster-lab"
TARGETS = ("host", "kitchen")
# What Debian's releases are called; the first is the default.
DEBIAN = {"12": "bookworm", "13": "trixie"}
MIRROR = "http://deb.debian.org/debian"

PULL_TIMEOUT = 120
DEBOOTSTRAP_TIMEOUT = 900
BUILD_TIMEOUT = 1800

# Handed on to pip in the build where the machine has them: none of them is a path.
PIP_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
BUNDLE_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def lock_file(series: str) -> Path:
    """Return the path of the series' requirements; :class:`LabError` where there are none."""
    path = REPOSITORY / "requirements" / f"salt-{series}.txt"
    if not path.exists():
        known = ", ".join(name for name in SERIES if path.with_name(f"salt-{name}.txt").exists())
        raise LabError(f"salt: got {series!r}; there are requirements for {known or 'none'}")
    return path


def salt_requirement(series: str) -> tuple[str, str]:
    """Return the Salt release that the series' requirements pin, and that entry with its hashes."""
    path = lock_file(series)
    pinned = re.search(r"^salt==([^\s;\\]+)(.*\\\n)*.*", path.read_text(), re.MULTILINE)
    if not pinned:
        raise LabError(f"{path.name}: no line salt==<version>")
    return pinned[1], pinned[0] + "\n"


def releases() -> list[str]:
    """Return which of Debian's releases the hosts run, in turns, by what ``LAB_DEBIAN`` says.

    :raises LabError: for one that is not in ``DEBIAN``.
    """
    wanted = os.environ.get("LAB_DEBIAN", next(iter(DEBIAN))).split(",")
    if unknown := set(wanted).difference(DEBIAN):
        raise LabError(f"LAB_DEBIAN: got {unknown.pop()!r}; supported: {', '.join(DEBIAN)}")
    return wanted


def tag(series: str = "3008", target: str = "host", release: str | None = None) -> str:
    """Return the image's name: it changes whenever the recipe or the requirements do.

    :param target: ``host``, or ``kitchen`` (the same with an SSH server and sudo).
    :param release: of Debian; by default the first one that is wanted.
    """
    digest = hashlib.sha256()
    for name, content in sorted(_recipe(series).items()):
        digest.update(name.encode() + b"\0" + content)
    return f"{NAME}:{series}-{digest.hexdigest()[:12]}{_suffix(target, release)}"


def moving_tag(series: str = "3008", target: str = "host", release: str | None = None) -> str:
    """Return the fixed name under which the newest image is also found, for ``kitchen.yml``."""
    return f"{NAME}:{series}{_suffix(target, release)}"


def _suffix(target: str, release: str | None) -> str:
    return f"-debian-{release or releases()[0]}" + ("" if target == "host" else f"-{target}")


def exists(image: str) -> bool:
    """Tell whether the engine has that image."""
    return _run(["docker", "image", "inspect", image], timeout=30).returncode == 0


def build(series: str = "3008", target: str = "host", release: str | None = None) -> Iterator[str]:
    """Make the image where it is missing; yield a progress line for each step.

    Afterwards the image is there as :func:`tag` and as :func:`moving_tag`.

    :raises LabError: unknown series, target or release, no base image, or a failing build, whose
        last lines of output are in the message.
    """
    if target not in TARGETS:
        raise LabError(f"target: got {target!r}; supported: {', '.join(TARGETS)}")
    release = release or releases()[0]
    image = tag(series, target, release)
    if not exists(image):
        with open(Path(tempfile.gettempdir(), f"{NAME}-{os.getuid()}.lock"), "w") as lock:
            yield f"building image {image} (once; a few minutes), or waiting for who builds one"
            # Given back by the end of this process, too.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not exists(image):
                base = yield from _base(DEBIAN[release])
                yield from _build(series, target, image, base, DEBIAN[release])
    named = _run(["docker", "tag", image, moving_tag(series, target, release)], timeout=30)
    if named.returncode != 0:
        raise LabError(f"cannot tag image {image}: {named.stderr.strip()}")


def _run(argv: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise LabError(f"no program {argv[0]!r} on this machine") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"no result after {timeout:g} s: {' '.join(argv)}") from None


def _base(suite: str) -> Generator[str, None, str]:
    """Find or make the base image; yield progress, return its name."""
    registry, local = f"debian:{suite}-slim", f"{NAME}:base-{suite}"
    for image in (registry, local):
        if exists(image):
            return image
    yield f"pulling {registry}"
    try:
        pulled = _run(["docker", "pull", "--quiet", registry], timeout=PULL_TIMEOUT)
        refusal = pulled.stderr.strip()
    except LabError as err:
        refusal = str(err)
    else:
        if pulled.returncode == 0:
            return registry
    yield "no answer from a registry; making the base image with debootstrap (a minute or two)"
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise LabError(
            f"no base image: docker pull {registry} said {refusal!r}, and making one here "
            "needs root and debootstrap (apt-get install debootstrap)"
        )
    _debootstrap(suite, local)
    return local


def _debootstrap(suite: str, image: str) -> None:
    # Not under /tmp, which may be mounted nodev or be small.
    root = Path(tempfile.mkdtemp(prefix=f"{NAME}-", dir="/var/tmp"))
    root.chmod(0o755)
    try:
        argv = ["debootstrap", "--variant=minbase", suite, str(root), MIRROR]
        made = _run(argv, timeout=DEBOOTSTRAP_TIMEOUT)
        if made.returncode != 0:
            raise LabError("debootstrap failed:\n" + _tail(made.stdout + made.stderr))
        # Built from a stream, so that the archive is never held in memory or on disk.
        pack = ["tar", "--create", "--one-file-system", "--directory", str(root), "--numeric-owner"]
        pack += ["--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*", "."]
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as archive:
            load = subprocess.run(
                ["docker", "import", "-", image],
                stdin=archive.stdout,
                capture_output=True,
                text=True,
                timeout=DEBOOTSTRAP_TIMEOUT,
            )
        if load.returncode != 0 or archive.returncode != 0:
            raise LabError(f"docker import failed: {load.stderr.strip()}")
    finally:
        # An interrupted debootstrap leaves these mounted; they must not be emptied with the tree.
        for mounted in (root / "proc", root / "sys"):
            if mounted.is_mount():
                _run(["umount", "--lazy", str(mounted)], timeout=30)
        shutil.rmtree(root, ignore_errors=True)


def _ca_bundle() -> bytes:
    """Return the machine's CA bundle, empty where it has none (the image's own is used then)."""
    default = ssl.get_default_verify_paths().cafile
    for candidate in [*(os.environ.get(name) for name in BUNDLE_VARIABLES), default]:
        if candidate and Path(candidate).is_file():
            return Path(candidate).read_bytes()
    return b""


def _recipe(series: str) -> dict[str, bytes]:
    """Return what decides the image's content: the recipe's files and the requirements."""
    files = {path.name: path.read_bytes() for path in RECIPE.iterdir() if path.is_file()}
    return files | {"requirements.txt": lock_file(series).read_bytes()}


def _context(series: str) -> bytes:
    """Return the build context as a tar archive: the recipe, Salt's requirement, the CA bundle."""
    files = _recipe(series)
    files["salt.txt"] = salt_requirement(series)[1].encode()
    files["ca-bundle.pem"] = _ca_bundle()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in sorted(files.items()):
            # Nothing but content may differ between two contexts, or the layers' cache misses.
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o755 if name == "lab-init" else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _build(series: str, target: str, image: str, base: str, suite: str) -> Iterator[str]:
    argv = ["docker", "build", "--force-rm", "--tag", image, "--target", target]
    # Docker's networks may lack what the machine's own has (a proxy, a name server).
    argv += ["--network", "host"]
    arguments = {"BASE": base, "SUITE": suite, "SALT_VERSION": salt_requirement(series)[0]}
    arguments |= {
        name: os.environ[name] for name in PIP_VARIABLES + PROXY_VARIABLES if name in os.environ
    }
    for name, value in arguments.items():
        argv += ["--build-arg", f"{name}={value}"]
    last: deque[str] = deque(maxlen=40)
    process = subprocess.Popen(
        [*argv, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"BUILDKIT_PROGRESS": "plain"},
    )
    alarm = threading.Timer(BUILD_TIMEOUT, process.kill)
    alarm.start()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        feeder = threading.Thread(target=_feed, args=(process.stdin, _context(series)))
        feeder.start()
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            last.append(line)
            # "Step 3/40 : RUN ..." (classic builder) or "#7 [tree 2/6] RUN ..." (BuildKit)
            if re.match(r"Step \d+/\d+ : (FROM|RUN)|#\d+ \[", line):
                yield line[:100]
        feeder.join()
        if process.wait() != 0:
            raise LabError(f"building image {image} failed:\n" + "\n".join(last))
    finally:
        alarm.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def _feed(pipe: io.BufferedWriter, content: bytes) -> None:
    try:
        with pipe:
            pipe.write(content)
    except BrokenPipeError:
        pass  # docker ended early; its exit status says why


def _tail(text: str, lines: int = 30) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def main(argv: Sequence[str] | None = None) -> int:
    """Build from the command line: progress on standard error, the image's name on output."""
    parser = argparse.ArgumentParser(description="Build the docker laboratory's image.")
    parser.add_argument("--salt", default="3008", choices=SERIES)
    parser.add_argument("--target", default="host", choices=TARGETS)
    options = parser.parse_args(argv)
    try:
        for line in build(options.salt, options.target):
            print(line, file=sys.stderr, flush=True)
    except LabError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    print(tag(options.salt, options.target))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
