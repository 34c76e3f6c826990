"""A job ends while the master that it came from is away."""

from __future__ import annotations

import re
from typing import Any

from chaos.places import everywhere
from lab.faults import down
from lab.laboratory import PATIENCE, Laboratory
from lab.load import current
from lab.wait import until

# Seconds of the job: longer than a master needs to stop.
DURATION = 8


@everywhere
def test_the_return_of_a_job_that_ended_without_its_master_is_not_lost(
    lab: Laboratory, mode: dict[str, Any]
) -> None:
    victim = current(lab)
    ids = {host.id for host in lab.lab.hosts if "master" not in host.roles}
    # In failover mode only of those that are on that master.
    ids = {name for name in ids if victim in lab.driver.subscribed(lab.lab, lab.host(name))}
    argv = ["salt", "--async", "--list", ",".join(sorted(ids)), "test.sleep", str(DURATION)]
    said = lab.run(victim, *argv).stdout
    found = re.search(r"\d{20}", said)
    assert found, said
    jid = found[0]

    def running(name: str) -> bool:
        return not lab.run(
            name, "test", "-e", f"{lab.host(name).minion_cache_dir}/proc/{jid}"
        ).returncode

    until(lambda: all(map(running, ids)), 10, f"{sorted(ids)} to run the job")
    with down(lab, "stop", victim):
        until(lambda: not any(map(running, ids)), PATIENCE, "the end of the job")
    masters = [host.id for host in lab.lab.masters] if mode["mode"] == "failover" else [victim]

    def returned() -> bool:
        told = [lab.json(name, "salt-run", "jobs.lookup_jid", jid) for name in masters]
        return ids == set().union(*told)

    until(returned, PATIENCE, f"the returns of job {jid} on {' or '.join(masters)}", interval=1)
    lab.until_connected()
