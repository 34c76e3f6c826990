"""
Shows the results of ``salt-run multimaster.status``, ``drift``, ``metrics``, ``keys``, ``down``,
``confirm`` and ``take_back``.
"""

__virtualname__ = "multimaster"

KEYS = ("accepted", "pending", "denied", "rejected")
# Of more minions only those in trouble are listed, and only so many; and so many differences.
SHOWN = 20


def __virtual__():
    return __virtualname__


def output(data, **kwargs):
    """
    Return masters, minions and problems as text, or the matrix of keys.

    What a terminal could obey is escaped: ids and texts are other people's.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.status --out multimaster
    """
    if "metrics" in data:
        return data["metrics"].rstrip("\n")
    if "drift" in data:
        lines = _drift(data)
    elif "keys" in data:
        lines = _matrix(data)
    elif "settled" in data:
        lines = _settled(data)
    elif "down" in data:
        lines = _down(data)
    else:
        lines = _status(data)
    return "\n".join(_plain(line) for line in lines).rstrip()


def _status(data):
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
    rows, rest = _picked(data["minions"])
    for name, row in rows.items():
        denied = row.get("denied", {})
        connected = row["connected"].items()
        # Who is there all the same is not the one that was denied.
        cells = ("DENIED" if not v and at in denied else _mark(v) for at, v in connected)
        minions.append([name, *cells])
    subjects = _subjects(data) if data.get("subjects") else []
    problems = [f"! {problem}" for problem in data["problems"]]
    if not problems:
        problems = ["Everything is connected."]
        if subjects:
            problems = ["Everything is connected, and the masters agree."]
    notes = data.get("notes", ())
    return [*_table(masters), "", *subjects, *_table(minions), *rest, "", *problems, *notes]


def _picked(minions):
    """Return the rows to show, and a line about the others."""
    if len(minions) <= SHOWN:
        return minions, []
    bad = {name: row for name, row in minions.items() if _in_trouble(row)}
    shown = dict(list((bad or minions).items())[:SHOWN])
    left = len(minions) - len(shown)
    more = f"{len(bad) - len(shown)} of them in trouble" if len(bad) > len(shown) else "all well"
    return shown, [f"and {left} more, {more}; --out json has all"]


def _in_trouble(row):
    cutover = row["cutover"].get("step", "kept")
    return not all(row["connected"].values()) or bool(row["silent"]) or cutover != "kept"


def _subjects(data):
    """Return the table of digests; what differs is marked, and who has something else than most."""
    rows = [["SUBJECT", *data["masters"]]]
    for subject, row in data["subjects"].items():
        digests = row["digests"]
        told = [value for value in digests.values() if value]
        most = max(told, key=told.count, default=None)
        cells = []
        for name, master in data["masters"].items():
            text = (digests.get(name) or "-")[:8]
            if subject in ("formula", "salt"):
                text = master.get({"salt": "version"}.get(subject, subject)) or "-"
            cells.append(text + " !" * bool(row["differs"] and digests.get(name) != most))
        rows.append(["! " * row["differs"] + subject, *cells])
    offsets = [row.get("offset") for row in data["masters"].values()]
    rows.append(["clock", *("-" if value is None else f"{value:+.1f} s" for value in offsets)])
    return [*_table(rows), ""]


def _drift(data):
    """Return each difference with its values and remedies."""
    lines, shown = [], {}
    for one in data["drift"]:
        shown[one["subject"]] = shown.get(one["subject"], 0) + 1
        if shown[one["subject"]] > SHOWN:
            continue
        lines.append(f"{one['subject']}: {one['path'] or 'differs'}")
        values = [[f"    {name}", _value(value)] for name, value in one["values"].items()]
        for row, name in zip(values, one["values"], strict=True):
            row[1] += "  !" if name in one["remedies"] else ""
        lines += _table(values)
        lines.append(f"    (measured by {one['side']})")
        for name, remedy in one["remedies"].items():
            where = f"on {remedy['where']}: " if remedy["where"] else ""
            command = f": {where}{remedy['command']}" if remedy["command"] else ""
            lines.append(f"  {name}: {remedy['text']}{command}")
        lines.append("")
    for subject, count in shown.items():
        if count > SHOWN:
            lines.append(f"{subject}: {count - SHOWN} more differences; --out json has all")
    lines += [f"! {problem}" for problem in data["problems"]]
    unknown = data.get("unknown")
    if unknown:
        lines.append(f"Not known yet what they have read when they started: {', '.join(unknown)}")
    if not data["drift"] and not data["problems"]:
        agreed = [name for name in data["subjects"] if name != "running" or not unknown]
        lines.append(f"The masters agree on {', '.join(agreed)}.")
    return [*lines, *data.get("notes", ())]


def _plain(text):
    """Return a text with all that is not to be printed escaped; outputters have no utilities."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def _value(value):
    return "(absent)" if value is None else str(value)


def _matrix(data):
    rows = [["MINION", *data["masters"], "KEY"]]
    for name, row in data["keys"].items():
        prints = " ".join(fingerprint[:16] for fingerprint in row["fingerprints"])
        rows.append(["! " * row["differs"] + name, *row["masters"].values(), prints])
    denied = [
        f"{name}: denied on {master} {' '.join(fingerprint[:16] for fingerprint in fingerprints)}"
        for name, row in data["keys"].items()
        for master, fingerprints in row.get("denied", {}).items()
    ]
    unknown = [f"! master {name}: {why}" for name, why in data.get("unknown", {}).items()]
    return [*_table(rows), *denied, *unknown]


def _settled(data):
    rows = [["MINION", "PROPOSED", "DONE ON", "AT", "TO BE" if data["test"] else "NOW"]]
    for name, row in data["settled"].items():
        rows.append([name, row["proposed"], row["origin"], row["recorded"], row["becomes"]])
    more = data["count"] - len(data["settled"])
    return [*_table(rows), *([f"and {more} more"] if more else [])]


def _down(data):
    unknown = [f"! master {name}: {why}" for name, why in data["unknown"].items()]
    not_known = [f"? {name}" for name in data["not_known"]]
    return [*data["down"], *not_known, *unknown] or ["All minions answer to a master."]


def _mark(value):
    return "?" if value is None else "yes" if value else "NO"


def _table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = ([cell.ljust(widths[at]) for at, cell in enumerate(row)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in padded]
