"""
Shows the results of ``salt-run multimaster.status`` and ``multimaster.keys`` as tables.
"""

__virtualname__ = "multimaster"

KEYS = ("accepted", "pending", "denied", "rejected")


def __virtual__():
    return __virtualname__


def output(data, **kwargs):
    """
    Return masters, minions and problems as text, or the matrix of keys.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.status --out multimaster
    """
    if "keys" in data:
        return _matrix(data)
    masters = [
        ["MASTER", "ADDRESS", "UP", "VERSION", "KEY", "LEDGER", *(key.upper() for key in KEYS)]
    ]
    for name, row in data["masters"].items():
        masters.append(
            [
                name,
                row["address"],
                _mark(row["reachable"]),
                row["version"] or "-",
                (row["fingerprint"] or "-")[:8],
                (row["digest"] or "-")[:8],
                *("-" if row[key] is None else str(row[key]) for key in KEYS),
            ]
        )
    minions = [["MINION", *data["masters"]]]
    for name, row in data["minions"].items():
        minions.append([name, *(_mark(value) for value in row["connected"].values())])
    problems = [f"! {problem}" for problem in data["problems"]] or ["Everything is connected."]
    return "\n".join([*_table(masters), "", *_table(minions), "", *problems])


def _matrix(data):
    rows = [["MINION", *data["masters"], "KEY"]]
    for name, row in data["keys"].items():
        prints = " ".join(fingerprint[:16] for fingerprint in row["fingerprints"])
        rows.append(["! " * row["differs"] + name, *row["masters"].values(), prints])
    return "\n".join(_table(rows))


def _mark(value):
    return "yes" if value else "NO"


def _table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = ([cell.ljust(widths[at]) for at, cell in enumerate(row)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in padded]
