"""A job ends while the master that it came from is away, or cannot keep what it returns."""

from __future__ import annotations

import re
from typing import Any

import pytest

from chaos.places import everywhere
from lab.faults import down
from lab.laboratory import PATIENCE, Laboratory
from lab.load import current
from lab.wait import until

# Seconds of the job: longer than a master needs to stop.
DURATION = 8
# Ends the process of a master that has its event bus, which is told of every return.
END_BUS = """
import sys, psutil, salt.config
with open(salt.config.master_config(sys.argv[1])["pidfile"]) as pidfile:
    master = psutil.Process(int(pidfile.read()))
[bus] = [p for p in master.children(recursive=True) if "EventPublisher" in " ".join(p.cmdline())]
bus.kill()
"""


class Job:
    """A job that sleeps on all minions of a master, and which of them still work on it."""

    def __init__(self, lab: Laboratory, mode: dict[str, Any]) -> None:
        self.lab, self.master = lab, current(lab)
        ids = {host.id for host in lab.lab.hosts if "master" not in host.roles}
        # In failover mode only of those that are on that master.
        there = lab.driver.subscribed
        self.ids = {name for name in ids if self.master in there(lab.lab, lab.host(name))}
        self.masters = [host.id for host in lab.lab.masters]
        if mode["mode"] == "hot":
            self.masters = [self.master]
        named = ",".join(sorted(self.ids))
        said = lab.run(self.master, "salt", "--async", "--list", named, "test.sleep", str(DURATION))
        found = re.search(r"\d{20}", said.stdout)
        assert found, said
        self.jid = found[0]
        until(lambda: self.running() == self.ids, 10, f"{named} to run the job")

    def running(self) -> set[str]:
        """Return the minions that work on it."""
        return {
            name
            for name in self.ids
            if not self.lab.run(
                name, "test", "-e", f"{self.lab.host(name).minion_cache_dir}/proc/{self.jid}"
            ).returncode
        }

    def until_ended(self) -> None:
        """Wait until no minion works on it any more."""
        until(lambda: not self.running(), PATIENCE, "the end of the job")

    def until_returned(self) -> None:
        """Wait until the returns of all minions are on its masters."""

        def returned() -> bool:
            lookup = ("salt-run", "jobs.lookup_jid", self.jid)
            return self.ids == set().union(*(self.lab.json(name, *lookup) for name in self.masters))

        what = f"the returns of job {self.jid} on {' or '.join(self.masters)}"
        until(returned, PATIENCE, what, interval=1)


@pytest.fixture
def job(lab: Laboratory, mode: dict[str, Any]) -> Job:
    """Have the minions of a master work."""
    return Job(lab, mode)


@everywhere
def test_the_return_of_a_job_that_ended_without_its_master_is_not_lost(
    lab: Laboratory, job: Job
) -> None:
    with down(lab, "stop", job.master):
        job.until_ended()
    job.until_returned()
    lab.until_connected()


@everywhere
def test_a_return_that_its_master_failed_to_keep_is_not_lost(lab: Laboratory, job: Job) -> None:
    config = f"{lab.host(job.master).config_dir}/master"
    ended = lab.run(job.master, lab.python, "-c", END_BUS, config)
    assert not ended.returncode, ended
    job.until_ended()
    with down(lab, "stop", job.master):
        pass
    job.until_returned()
    lab.until_connected()
