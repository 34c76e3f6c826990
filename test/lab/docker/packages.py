"""Make salt-common, salt-minion and salt-master packages and a repository of them.

Runs inside the image build, with the standard library only.  Names, file lists, units,
configuration files, users, ownership and start on installation are upstream's (``pkg/`` of the
source archive); three things differ, none visible to a formula:

* The tree is a virtual environment on Debian's Python where upstream brings its own Python.
* debconf is not asked; its default answers (master and tree belong to ``salt``) are built in.
* Ownership of the tree is changed only where it differs: upstream's plain ``chown -R`` would copy
  the whole tree into every container's own layer.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

TREE = Path("/opt/saltstack/salt")

COMMON_PREINST = """\
#!/bin/sh
set -e
case "$1" in
    install|upgrade)
        getent group salt >/dev/null || groupadd --system salt
        mkdir -p /opt/saltstack/salt
        getent passwd salt >/dev/null \\
            || useradd --system --no-create-home -s /usr/sbin/nologin -g salt salt
        usermod -c Salt -d /opt/saltstack/salt -g salt salt
        ;;
esac
"""

COMMON_POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    /opt/saltstack/salt/bin/python3 -m compileall -qq -j 0 /opt/saltstack/salt/lib || true
fi
"""

COMMON_PRERM = """\
#!/bin/sh
set -e
find /opt/saltstack/salt -depth -type d -name __pycache__ -exec rm -rf {} +
"""

COMMON_POSTRM = """\
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    rm -rf /var/cache/salt /var/log/salt /var/run/salt
fi
"""

# What upstream's salt-master.postinst and salt-minion.postinst do, followed by what debhelper
# adds to them for a unit: enable it, then start it on installation, restart it on upgrade.
DAEMON_POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    for log in /var/log/salt/{daemon} /var/log/salt/key; do
        if [ ! -e "$log" ]; then
            touch "$log"
            chmod 640 "$log"
        fi
    done
    if [ -z "$2" ]; then
        chown -R salt:salt {owned} 2>/dev/null || true
        find /opt/saltstack/salt ! -user salt -exec chown -h salt:salt {{}} +
    fi
fi
case "$1" in
    configure|abort-upgrade|abort-deconfigure|abort-remove)
        deb-systemd-helper unmask {unit} >/dev/null || true
        if deb-systemd-helper --quiet was-enabled {unit}; then
            deb-systemd-helper enable {unit} >/dev/null || true
        else
            deb-systemd-helper update-state {unit} >/dev/null || true
        fi
        if [ -d /run/systemd/system ]; then
            systemctl --system daemon-reload >/dev/null || true
            if [ -n "$2" ]; then action=restart; else action=start; fi
            deb-systemd-invoke $action {unit} >/dev/null || true
        fi
        ;;
esac
"""

DAEMON_PRERM = """\
#!/bin/sh
set -e
if [ -d /run/systemd/system ] && [ "$1" = remove ]; then
    deb-systemd-invoke stop {unit} >/dev/null || true
fi
"""

DAEMON_POSTRM = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
fi
if [ "$1" = purge ]; then
    rm -rf /etc/salt/pki/{daemon} /var/cache/salt/{daemon} /var/log/salt/{daemon}
    rm -rf /var/run/salt/{daemon}
fi
if [ -x /usr/bin/deb-systemd-helper ]; then
    if [ "$1" = remove ]; then deb-systemd-helper mask {unit} >/dev/null || true; fi
    if [ "$1" = purge ]; then
        deb-systemd-helper purge {unit} >/dev/null || true
        deb-systemd-helper unmask {unit} >/dev/null || true
    fi
fi
"""

SALT_PIP = """\
#!/bin/sh
exec /opt/saltstack/salt/bin/python3 -m pip "$@"
"""


@dataclass(frozen=True)
class Package:
    """One binary package: control fields beyond the common ones, and what it ships."""

    name: str
    depends: str
    description: str
    directories: tuple[str, ...] = ()
    conffiles: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    scripts: dict[str, str] = field(default_factory=dict)


def daemon_scripts(daemon: str, owned: tuple[str, ...]) -> dict[str, str]:
    """Return the maintainer scripts of ``salt-<daemon>``."""
    values = {"daemon": daemon, "unit": f"salt-{daemon}.service", "owned": " ".join(owned)}
    return {
        "postinst": DAEMON_POSTINST.format(**values),
        "prerm": DAEMON_PRERM.format(**values),
        "postrm": DAEMON_POSTRM.format(**values),
    }


def packages(version: str, source: Path) -> list[Package]:
    """Return the packages, with directories and commands read from upstream's lists."""

    def listed(name: str) -> list[str]:
        return (source / "pkg/debian" / name).read_text().split("\n")

    def directories(name: str) -> tuple[str, ...]:
        return tuple(line.strip() for line in listed(f"{name}.dirs") if line.startswith("/"))

    def commands(name: str) -> tuple[str, ...]:
        links = (line.split() for line in listed(f"{name}.links"))
        return tuple(link[1] for link in links if link and link[1].startswith("/usr/bin/"))

    def owned(daemon: str) -> tuple[str, ...]:
        return (
            f"/etc/salt/pki/{daemon}",
            f"/etc/salt/{daemon}.d",
            f"/var/log/salt/{daemon}",
            f"/var/cache/salt/{daemon}",
            f"/var/run/salt/{daemon}",
            "/var/log/salt/key" if daemon == "master" else "",
        )

    return [
        Package(
            "salt-common",
            depends="python3 (>= 3.11), passwd",
            description="shared libraries that salt requires for all packages",
            directories=directories("salt-common"),
            conffiles=("/etc/logrotate.d/salt-common",),
            commands=commands("salt-common"),
            scripts={
                "preinst": COMMON_PREINST,
                "postinst": COMMON_POSTINST,
                "prerm": COMMON_PRERM,
                "postrm": COMMON_POSTRM,
            },
        ),
        Package(
            "salt-minion",
            depends=f"dctrl-tools, salt-common (= {version})",
            description="client package for salt, the distributed remote execution system",
            directories=directories("salt-minion"),
            conffiles=("/etc/salt/minion", "/etc/salt/proxy"),
            commands=commands("salt-minion"),
            scripts=daemon_scripts("minion", owned("minion")),
        ),
        Package(
            "salt-master",
            depends=f"salt-common (= {version})",
            description="remote manager to administer servers via salt",
            directories=directories("salt-master"),
            conffiles=("/etc/salt/master",),
            commands=commands("salt-master"),
            scripts=daemon_scripts("master", owned("master")),
        ),
    ]


def configuration(path: str, source: Path) -> str:
    """Return the text of one of upstream's configuration files as its package ships it."""
    if path.startswith("/etc/logrotate.d/"):
        return (source / "pkg/common/logrotate/salt-common").read_text()
    text = (source / "conf" / Path(path).name).read_text()
    if path == "/etc/salt/master":
        # As upstream's rules file does, or as its pkg/common/conf/master has it already.
        text = text.replace("#user: root", "user: salt")
    return text


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def stage(package: Package, root: Path, version: str, source: Path, architecture: str) -> None:
    """Lay the package's files and control information out under ``root``."""
    for directory in package.directories:
        (root / directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for path in package.conffiles:
        write(root / path.lstrip("/"), configuration(path, source))
    unit = source / f"pkg/common/{package.name}.service"
    if unit.exists():
        write(root / f"lib/systemd/system/{unit.name}", unit.read_text())
    for command in package.commands:
        link = root / command.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(TREE / link.name)

    fields = {
        "Package": package.name,
        "Source": "salt",
        "Version": version,
        "Architecture": architecture,
        "Maintainer": "multimaster laboratory <laboratory@localhost>",
        "Section": "admin",
        "Priority": "optional",
        "Depends": package.depends,
        "Homepage": "https://saltproject.io/",
        "Description": package.description,
    }
    control = "".join(f"{name}: {value}\n" for name, value in fields.items())
    write(root / "DEBIAN/control", control)
    write(root / "DEBIAN/conffiles", "".join(f"{path}\n" for path in package.conffiles))
    for name, text in package.scripts.items():
        write(root / "DEBIAN" / name, text, 0o755)


def stage_tree(tree: Path, root: Path) -> None:
    """Move the virtual environment into salt-common and give it upstream's layout.

    Upstream's commands lie at the top of the tree, and /usr/bin links to them there.
    """
    target = root / str(TREE).lstrip("/")
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(tree, target)
    for cache in target.rglob("__pycache__"):
        shutil.rmtree(cache)
    # Salt's own salt-pip refuses to run outside of upstream's Python.
    write(target / "bin/salt-pip", SALT_PIP, 0o755)
    for command in [*(target / "bin").glob("salt*"), target / "bin/spm"]:
        if command.exists():
            (target / command.name).symlink_to(Path("bin") / command.name)


def index_entry(path: Path) -> str:
    """Return a package's paragraph of the repository's index."""
    fields = subprocess.run(
        ["dpkg-deb", "--field", str(path)], check=True, capture_output=True, text=True
    ).stdout
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{fields}Filename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {digest}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", required=True, help="Salt's version, also the packages'")
    parser.add_argument("--source", required=True, type=Path, help="Salt's unpacked source")
    parser.add_argument("--tree", required=True, type=Path, help="the virtual environment")
    parser.add_argument("--repository", required=True, type=Path, help="where to write")
    options = parser.parse_args()

    os.umask(0o022)
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
    ).stdout.strip()
    options.repository.mkdir(parents=True)
    entries = []
    for package in packages(options.version, options.source):
        root = Path("/build/stage") / package.name
        stage(package, root, options.version, options.source, architecture)
        if package.name == "salt-common":
            stage_tree(options.tree, root)
        deb = options.repository / f"{package.name}_{options.version}_{architecture}.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z1", "--build", str(root), str(deb)],
            check=True,
        )
        entries.append(index_entry(deb))
    (options.repository / "Packages").write_text("\n".join(entries))


if __name__ == "__main__":
    main()
