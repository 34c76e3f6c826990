"""
Look at a multi-master topology as a whole, from any of its masters.
"""

import salt.client

__virtualname__ = "multimaster"


def __virtual__():
    return __virtualname__


def status(timeout=5):
    """
    Show every master, and for every minion the masters that it answers to.

    timeout
        Seconds to wait for the answers of the minions on each master.

    Per master: address, reachable, Salt version, fingerprint of its key, and the numbers of
    accepted, pending, denied and rejected keys.  Per minion: whether it answered a command of each
    master, and the master list it is configured with.  ``problems`` says in words what is wrong.
    Exit status 0 only if that is nothing.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.status
        salt-run multimaster.status --out json
    """
    declared = __opts__.get("multimaster", {}).get("masters", [])
    ids = [master["id"] for master in declared]
    addresses = [master["address"] for master in declared]
    mode = __opts__.get("multimaster", {}).get("mode", "hot")
    # Whoever still works on its answer after that time is waited for; whoever is not there is not.
    patience = {"timeout": timeout, "gather_job_timeout": timeout}
    with salt.client.get_local_client(mopts=__opts__) as client:
        reports = client.cmd(ids, "multimaster.report", [timeout], tgt_type="list", **patience)
        configured = client.cmd("*", "multimaster.masters", **patience) if reports else {}
    reports = {name: value for name, value in reports.items() if isinstance(value, dict)}
    masters = {master["id"]: _master_row(master, reports.get(master["id"])) for master in declared}
    minions = sorted({name for report in reports.values() for name in report["accepted"]})
    rows = {}
    for minion in minions:
        lists = configured.get(minion)
        rows[minion] = {
            "answers": {
                master: master in reports and minion in reports[master]["answering"]
                for master in ids
            },
            "configured": lists["configured"] if isinstance(lists, dict) else None,
        }
    problems = _problems(masters, rows, addresses, mode)
    if not declared:
        problems = ["this master declares no topology; apply the formula first"]
    return {
        "outputter": "multimaster",
        "data": {
            "mode": mode,
            "masters": masters,
            "minions": rows,
            "problems": problems,
            # salt-run's exit status
            "retcode": 1 if problems else 0,
        },
    }


def _master_row(master, report):
    row = {"address": master["address"], "reachable": bool(report and report["running"])}
    for field in ("version", "fingerprint"):
        row[field] = report[field] if report else None
    for field in ("accepted", "pending", "denied", "rejected"):
        row[field] = len(report[field]) if report else None
    return row


def _problems(masters, minions, addresses, mode):
    problems = []
    for name, row in masters.items():
        if not row["reachable"]:
            problems.append(f"master {name} ({row['address']}) does not answer")
        elif row["pending"]:
            problems.append(f"master {name} has {row['pending']} pending keys")
    fingerprints = {row["fingerprint"] for row in masters.values() if row["reachable"]}
    if len(fingerprints) > 1:
        problems.append("the masters have different keys")
    for name, row in minions.items():
        missing = [master for master, answers in row["answers"].items() if not answers]
        if mode == "failover" and name not in masters:
            # Connected to one master at a time, whichever that is.
            missing = missing if len(missing) == len(row["answers"]) else []
        if missing:
            problems.append(f"minion {name} does not answer to {', '.join(missing)}")
        if row["configured"] is not None and row["configured"] != addresses:
            problems.append(f"minion {name} is configured for {', '.join(row['configured'])}")
    return problems
