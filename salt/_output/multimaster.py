"""
Shows the result of ``salt-run multimaster.status`` as two tables.
"""

__virtualname__ = "multimaster"

KEYS = ("accepted", "pending", "denied", "rejected")


def __virtual__():
    return __virtualname__


def output(data, **kwargs):
    """
    Return masters, minions and problems as text.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.status --out multimaster
    """
    masters = [["MASTER", "ADDRESS", "UP", "VERSION", "KEY", *(key.upper() for key in KEYS)]]
    for name, row in data["masters"].items():
        masters.append(
            [
                name,
                row["address"],
                _mark(row["reachable"]),
                row["version"] or "-",
                (row["fingerprint"] or "-")[:16],
                *("-" if row[key] is None else str(row[key]) for key in KEYS),
            ]
        )
    minions = [["MINION", *data["masters"]]]
    for name, row in data["minions"].items():
        minions.append([name, *(_mark(answers) for answers in row["answers"].values())])
    problems = [f"! {problem}" for problem in data["problems"]] or ["Everything is connected."]
    return "\n".join([*_table(masters), "", *_table(minions), "", *problems])


def _mark(value):
    return "yes" if value else "NO"


def _table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = ([cell.ljust(widths[at]) for at, cell in enumerate(row)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in padded]
