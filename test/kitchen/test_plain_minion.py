"""Claims about a host that is no master: it received nothing of one."""

from kitchen import topology_checks as checks


def test_a_minion_holds_no_master_and_no_key(topology, host):
    checks.check_holds_no_master_key(host)
