"""Claims about a host that is no master: it received nothing of one, or has given it up."""

from kitchen import topology_checks as checks


def test_a_minion_holds_no_master_and_no_key(topology, host, host_id):
    checks.check_is_no_master(host, host_id in topology.former)
