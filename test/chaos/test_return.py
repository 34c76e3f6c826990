"""A job ends while the master that it came from is away, or cannot keep what it returns."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.places import everywhere
from lab.faults import down
from lab.laboratory import PATIENCE, Laboratory
from lab.load import current
from lab.wait import until

# Seconds of the jobs: longer than a master needs to stop; and how many there are.
DURATION, NUMBER = 8, 5
GIVE = """
import sys, salt.client
config, minions, seconds, number = sys.argv[1:]
with salt.client.get_local_client(config) as client:
    for _ in range(int(number)):
        arguments = minions.split(","), "test.sleep", [seconds]
        print(client.run_job(*arguments, tgt_type="list")["jid"])
"""
# Ends the process of a master that has its event bus, which is told of every return.
END_BUS = """
import sys, psutil, salt.config
with open(salt.config.master_config(sys.argv[1])["pidfile"]) as pidfile:
    master = psutil.Process(int(pidfile.read()))
[bus] = [p for p in master.children(recursive=True) if "EventPublisher" in " ".join(p.cmdline())]
bus.kill()
"""


class Jobs:
    """Jobs that sleep on all minions of a master, until they return to it or to another one."""

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
        self.jids = set(self.on_master(GIVE, named, str(DURATION), str(NUMBER)).split())
        assert len(self.jids) == NUMBER
        everything = dict.fromkeys(self.ids, self.jids)
        until(lambda: self.running() == everything, 10, f"{named} to run the jobs")

    def on_master(self, program: str, *argv: str) -> str:
        """Run a Python program on the master's host, given its configuration file."""
        config = f"{self.lab.host(self.master).config_dir}/master"
        done = self.lab.run(self.master, self.lab.python, "-c", program, config, *argv)
        assert not done.returncode, done
        return str(done.stdout)

    def running(self) -> dict[str, set[str]]:
        """Return what the minions still work on."""
        found = {}
        for name in self.ids:
            listed = self.lab.run(name, "ls", f"{self.lab.host(name).minion_cache_dir}/proc")
            found[name] = self.jids.intersection(listed.stdout.split())
        return found

    def until_ended(self) -> None:
        """Wait until no minion works on them any more."""
        until(lambda: not any(self.running().values()), PATIENCE, "the end of the jobs")

    def until_returned(self) -> None:
        """Wait until the returns of all minions are there."""
        left = set(self.jids)

        def returned() -> bool:
            for jid in sorted(left):
                lookup = ("salt-run", "jobs.lookup_jid", jid)
                told = [self.lab.json(name, *lookup) for name in self.masters]
                if self.ids != set().union(*told):
                    return False
                left.discard(jid)
            return True

        what = f"the returns of jobs {self.jids} on {' or '.join(self.masters)}"
        until(returned, PATIENCE, what, interval=1)


@pytest.fixture
def jobs(lab: Laboratory, mode: dict[str, Any]) -> Jobs:
    """Have the minions of a master work."""
    return Jobs(lab, mode)


@everywhere
def test_the_return_of_a_job_that_ended_without_its_master_is_not_lost(
    lab: Laboratory, jobs: Jobs
) -> None:
    with down(lab, "stop", jobs.master):
        jobs.until_ended()
    jobs.until_returned()
    lab.until_connected()


@everywhere
def test_a_return_that_its_master_failed_to_keep_is_not_lost(lab: Laboratory, jobs: Jobs) -> None:
    jobs.on_master(END_BUS)
    jobs.until_ended()
    # So that all its workers have a bus again.
    with down(lab, "stop", jobs.master):
        pass
    jobs.until_returned()
    lab.until_connected()
