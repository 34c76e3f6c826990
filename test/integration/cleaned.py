"""What a host is after ``multimaster.clean``."""

from __future__ import annotations

from typing import Any

from lab.laboratory import PATIENCE, Laboratory
from lab.wait import until


def assert_no_master(lab: Laboratory, host_id: str) -> None:
    """Assert that a host that was a master is none: no daemon, drop-in or key but in its backup."""
    host = lab.host(host_id)
    assert not lab.json(host_id, "salt-call", "--local", "service.status", "salt-master")["local"]
    left = lab.run(host_id, "find", host.master_pki_dir, "-maxdepth", "1", "-name", "*.pem")
    assert left.stdout == ""
    backups = lab.run(host_id, "find", host.master_pki_dir, "-name", f"{host_id}.pem").stdout
    assert backups.count("multimaster-backup-") == 1
    drop_in = f"{host.config_dir}/master.d/multimaster.conf"
    assert lab.run(host_id, "test", "-e", drop_in).returncode == 1


def until_one_master(lab: Laboratory, minion: str) -> None:
    """Wait until a minion has saltm1 for its master, and no other."""
    first = lab.host("saltm1").address

    def alone() -> Any:
        told = lab.salt("saltm1", minion, "multimaster.masters").get(minion)
        return isinstance(told, dict) and told["configured"] == told["connected"] == [first]

    until(alone, PATIENCE, f"{minion} to have saltm1 for its one master", interval=1)
