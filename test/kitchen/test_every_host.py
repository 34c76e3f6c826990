"""Claims about every host of the topology: each is a minion of all masters."""

from kitchen import topology_checks as checks


def test_the_minion_runs_and_starts_with_the_system(topology, host):
    checks.check_unit(host, "salt-minion")


def test_the_minion_knows_every_declared_master_in_order(topology, host):
    checks.check_masters_of_minion(host, topology)


def test_the_minion_trusts_the_key_that_all_masters_hold(masters, host):
    checks.check_minion_trusts(host, masters)


def test_the_minion_answers_its_masters(topology, masters, host_id):
    checks.check_minion_answers(masters, topology, host_id)


def test_the_minion_verifies_its_masters_where_they_sign(topology, host):
    checks.check_verifies(host, topology)


def test_private_keys_lie_in_the_pki_directories_only(topology, host):
    checks.check_private_keys_only_in_pki(host)
