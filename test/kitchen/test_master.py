"""Claims about every master: the same key as the others, and every minion at its command."""

from kitchen import topology_checks as checks


def test_the_master_runs_and_starts_with_the_system(topology, host):
    checks.check_unit(host, "salt-master")


def test_the_master_listens_on_both_ports(topology, host, host_id):
    checks.check_listening(host, topology.masters[host_id])


def test_the_key_pair_is_the_master_users_alone(topology, host, host_id):
    checks.check_key_files(host, host_id)


def test_all_masters_hold_the_same_key_pair(masters):
    checks.check_same_key(masters)


def test_every_minion_answers_its_masters(topology, masters):
    checks.check_everyone_answers(masters, topology)


def test_no_key_waits_for_a_decision(topology, host):
    checks.check_no_key_waits(host, topology)
