"""
What minions and the hosts of masters answer, checked before anything reads it: type, size, signs.

An answer comes from whoever has a minion's key, and may be anything.  What passes has the fields
below and no others; of what does not there is a reason, in words that can be printed.

Pure: imports nothing of Salt and touches no file.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Characters of a name or a digest, of a text for people, of a path, and of an option's value.
WORD, TEXT, PATH, VALUE = 512, 2_000, 8_192, 65_536
# Of an error in place of an answer.
ERROR = 500
# Entries of a list or a mapping.
MANY = 10_000
# Of the paths behind a digest and the keys in a page; how long they are together is limited where
# they are unpacked.
ALL = 10_000_000
# Of numbers: what every reader can hold.
LARGEST = 1 << 63


# The names on the way into an answer.
Place = tuple[Any, ...]


class OddError(ValueError):
    """An answer is none."""


def _list(inner: Any, most: int = MANY) -> tuple[Any, ...]:
    return ("list", inner, most)


def _map(key: str, inner: Any, most: int = MANY) -> tuple[Any, ...]:
    return ("map", key, inner, most)


def _or(*inner: Any) -> tuple[Any, ...]:
    return ("or", *inner)


_WORDS = _list("word")
_NAME = _or(None, "word")
_MOMENT = _or(None, "number")
_COUNTS = ("accepted", "pending", "denied", "rejected", "conflicts", "connections")

_MASTERS = {
    "configured": _WORDS,
    "connected": _WORDS,
    "silent?": _WORDS,
    "cutover?": {
        "step?": "word",
        "since?": "number",
        "timeout?": "number",
        "wanted?": _WORDS,
        "heard?": _WORDS,
        "seconds?": "number",
        "seen?": _map("word", ("row", "word", "number")),
        "back?": "flag",
        "why?": "text",
    },
    "restarts?": _map("word", {"since": "number", "timeout": "number", "waiting": "text"}),
    "verifies?": "flag",
    "beacons?": _NAME,
}
_STALE = _or(None, _list("path"), _map("path", ("row", "leaf", "leaf")))
_LEAVES = _map("path", "leaf", ALL)
_KEYS = _map("path", {"state": "word", "fingerprint": _NAME, "denied?": _WORDS}, ALL)
_PROPOSED = _list(
    {
        "verdict": "word",
        "origin": "text",
        "since": "number",
        "until": "number",
        "count": "count",
        "ids": _list("path"),
    }
)
# Of keys: what is otherwise than decided, what was denied under whose id, and where none can be
# written.
_STORE = {
    "astray?": _map("path", "text"),
    "refused?": _map("path", {"denied": _NAME, "state": _NAME, "fingerprint": _NAME}),
    "unwritable?": "text",
}
_DAEMON = _or(None, ("row", "count", "number"))
_STATE = {"__id__?": "text", "result?": _or(None, "flag"), "comment?": "lines", "changes?": "any"}

# Question -> what its answer has; a name that ends with a question mark may be absent.  Kinds are
# told by ``_KINDS``; a tuple is a list, a mapping, a row of so many, or one of several.
ANSWERS: Mapping[str, Any] = {
    "multimaster.daemons": {"master": _DAEMON, "minion": _DAEMON},
    "multimaster.key_decide": {"changed": "flag", "found": _NAME, "was?": _NAME},
    "multimaster.key_digest": {
        "digest": _NAME,
        "conflicts": _list("path"),
        "counts": _map("word", "count"),
        "provisional?": "count",
        "aside?": _map("path", "text"),
        "proposed?": _PROPOSED,
        **_STORE,
    },
    "multimaster.key_history": _list(
        {
            "recorded": "number",
            "decided": "number",
            "verdict": "word",
            "fingerprint": _NAME,
            "origin": "text",
            "via": "text",
        },
        ALL,
    ),
    "multimaster.key_page": "packed",
    "multimaster.key_settle": {
        "count": "count",
        "keys": _map(
            "path", {"proposed": "word", "origin": "text", "recorded": "number", "becomes": "word"}
        ),
    },
    "multimaster.key_states": _KEYS,
    "multimaster.ledger_wake": _or(None, "flag"),
    "multimaster.masters": _MASTERS,
    "multimaster.outstanding": "flag",
    "multimaster.report": {
        "running": "flag",
        "digest": _NAME,
        "fingerprint": _NAME,
        "accepted": _list("path", ALL),
        "answering": _list("path", ALL),
    },
    "multimaster.restart": "flag",
    # What is in there is checked once it is proved.
    "multimaster.signed": "any",
    "multimaster.synced": "flag",
    "multimaster_drift.report": {
        "master": {
            "running": "flag",
            "version": "word",
            "formula": _NAME,
            "fingerprint": _NAME,
            "signs": "flag",
            "signing_fingerprint": _NAME,
            **dict.fromkeys(_COUNTS, "count"),
            "digest": _NAME,
            "provisional?": "count",
            "aside?": _map("path", "text"),
            "proposed?": _PROPOSED,
            **_STORE,
            "answers": "flag",
        },
        "host": _MASTERS,
        "subjects": _map("word", "word"),
        "proof": {
            "sample": _or(None, "word"),
            "grains?": "word",
            "inputs?": "word",
            "at?": "number",
            "problem?": "text",
            "skipped?": "text",
            "cached?": "number",
        },
        "stale?": _STALE,
        "places?": _map("word", "path"),
        "remotes?": _map("text", "text"),
        "sources?": _map("path", _list("path")),
        "declared?": _map("path", "leaf"),
        "up?": "number",
        "now?": "number",
        "details?": "packed",
        "minions?": "packed",
        "unknown?": "packed",
        "grainless?": "packed",
    },
    # What is in there is checked as the answers to what was asked through that master.
    "multimaster_orch.ask": _map("path", "any", ALL),
    "multimaster_orch.connections": "count",
    "multimaster_orch.facts": {
        "version": "word",
        "clock": "number",
        "daemons": {"master": _DAEMON, "minion": _DAEMON},
        "cutover?": _MASTERS["cutover?"],
        "restarts?": _MASTERS["restarts?"],
        "free?": _map("path", "count"),
        "serves?": _list("count"),
        "transport?": "word",
    },
    "multimaster_orch.hold_ports": {"pid": _or(None, "count"), "taken": _list("count")},
    "multimaster_orch.reach": _map("word", _map("word", "text")),
    "multimaster_orch.unfinished": {
        "jobs": _map("word", {"function": "text", "minions": _list("path", ALL)}),
        "told": _list("path", ALL),
    },
    "multimaster_roots.status": {
        "role": _NAME,
        "source?": "word",
        "snapshot?": _NAME,
        "digest?": _NAME,
        "digests?": _map("word", "word"),
        "since?": _MOMENT,
        "checked?": _MOMENT,
        "problem?": _or(None, "text"),
        "problem_since?": _MOMENT,
        "skipped?": _map("path", "text", ALL),
        "kept?": _list("path"),
    },
    "multimaster_roots.wake": "flag",
    "saltutil.find_job": _or(("empty",), {"jid": "word"}),
    "saltutil.running": _list({"jid?": "word", "fun": _or("text", _list("text")), "arg?": "any"}),
    "state.apply": _or(_map("path", _STATE), _list("lines")),
    "test.ping": "flag",
    # Parts of answers that are packed there.
    "details": _map("word", _or(None, _LEAVES)),
    "grainless": _list("path", ALL),
    "key page": _KEYS,
    "minions": _map("path", "any", ALL),
    "unknown": _map("path", "text", ALL),
}

# Kind -> what is supported, in words.
_KINDS = {
    "any": "anything",
    "count": "a whole number",
    "flag": "true or false",
    "leaf": "a number or a text",
    "lines": "a text",
    "number": "a number",
    "packed": "a packed text",
    "path": "a text",
    "text": "a text",
    "word": "a name",
}


def check(function: str, value: Any) -> tuple[Any, str | None]:
    """
    Return the answer to a question as it may be read, and None; or None, and why it is no answer.

    function
        A key of ``ANSWERS``.
    """
    try:
        return _checked(ANSWERS[function], value, ()), None
    except OddError as err:
        return None, str(err)


def told(function: Any, value: Any) -> Any:
    """
    Return the answer to a question as it may be read, or in words why it is none.

    function
        What was asked; of answers that nothing reads it is only known that there is one.
    """
    if not isinstance(function, str) or function not in ANSWERS:
        return True
    found, why = check(function, value)
    return found if why is None else why


def function(job: Mapping[str, Any]) -> Any:
    """Return what a running job is; of a question whose answer is to be signed, what is asked."""
    arguments = job.get("arg")
    if job.get("fun") == "multimaster.signed" and isinstance(arguments, (list, tuple)):
        return next(iter(arguments), None)
    return job.get("fun")


def plain(text: Any) -> str:
    """Return a text with all characters that a terminal could obey, ends of lines too, escaped."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in shown
    )


def lines(text: Any) -> str:
    """Return a text of several lines as :func:`plain` does it, but for the ends of the lines."""
    return "\n".join(plain(line) for line in str(text).split("\n"))


def _checked(wanted: Any, value: Any, where: Place) -> Any:
    if isinstance(wanted, str):
        return _simple(wanted, value, where)
    if wanted is None:
        if value is not None:
            raise _odd(where, value, "nothing")
        return None
    if isinstance(wanted, Mapping):
        return _record(wanted, value, where)
    shape, *inner = wanted
    if shape == "or":
        return _one_of(inner, value, where)
    if shape == "empty":
        if value != {}:
            raise _odd(where, value, "nothing")
        return {}
    if shape == "map":
        key, each, most = inner
        _sized(value, Mapping, most, where, "a mapping")
        return {
            _simple(key, name, where): _checked(each, found, (*where, name))
            for name, found in value.items()
        }
    kind = (list, tuple)
    if shape == "row":
        _sized(value, kind, len(inner), where, f"a list of {len(inner)}")
        if len(value) < len(inner):
            raise _odd(where, value, f"a list of {len(inner)}")
        return [_checked(one, found, where) for one, found in zip(inner, value, strict=True)]
    each, most = inner
    _sized(value, kind, most, where, "a list")
    return [_checked(each, found, where) for found in value]


def _record(wanted: Mapping[str, Any], value: Any, where: Place) -> dict[str, Any]:
    _sized(value, Mapping, MANY, where, "a mapping")
    found = {}
    for name, inner in wanted.items():
        bare = name.removesuffix("?")
        if name != bare and value.get(bare) is None and not _takes_none(inner):
            continue
        if bare not in value:
            if name != bare:
                continue
            raise OddError(f"{_shown((*where, bare))}: got nothing; supported: {_words(inner)}")
        found[bare] = _checked(inner, value[bare], (*where, bare))
    return found


def _takes_none(wanted: Any) -> bool:
    return isinstance(wanted, tuple) and wanted[0] == "or" and None in wanted[1:]


def _one_of(several: Sequence[Any], value: Any, where: Place) -> Any:
    why: OddError | None = None
    if value is None and None in several:
        return None
    for inner in several if several[0] is not None else several[1:]:
        try:
            return _checked(inner, value, where)
        except OddError as err:
            # The longest way into it says most.
            why = err if why is None or len(str(err)) > len(str(why)) else why
    raise why or _odd(where, value, "nothing")


def _simple(kind: str, value: Any, where: Place) -> Any:
    if kind == "any":
        return value
    if kind == "flag":
        sound = isinstance(value, bool)
    elif kind in ("count", "number"):
        sound = _is_number(value) and (kind == "number" or (isinstance(value, int) and value >= 0))
    elif kind == "leaf":
        if value is None or isinstance(value, bool) or _is_number(value) or value in ({}, []):
            return value
        sound = isinstance(value, str) and len(value) <= VALUE
        return _storable(value) if sound else _refuse(where, value, kind)
    elif kind == "word":
        sound = isinstance(value, str) and 0 < len(value) <= WORD and value.isprintable()
    elif kind == "packed":
        sound = isinstance(value, str) and value.isascii() and value.isprintable()
    elif kind == "path":
        sound = isinstance(value, str) and len(value) <= PATH
        return _storable(value) if sound else _refuse(where, value, kind)
    else:
        sound = isinstance(value, str)
        if sound and kind == "lines":
            return lines(value[: 10 * TEXT]).replace("\n", "\n    ")
        return _cut(value) if sound else _refuse(where, value, kind)
    return value if sound else _refuse(where, value, kind)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and (isinstance(value, int) or math.isfinite(value))
        and -LARGEST < value < LARGEST
    )


def _storable(text: str) -> str:
    """Return a text that can be written; a name of a file may have bytes that are no text."""
    return text.encode(errors="backslashreplace").decode()


def _cut(text: str, most: int = TEXT) -> str:
    shown = plain(text[: most + 1])
    return shown if len(shown) <= most else shown[:most] + "..."


def _sized(value: Any, kind: Any, most: int, where: Place, words: str) -> None:
    if not isinstance(value, kind):
        raise _odd(where, value, words)
    if len(value) > most:
        raise OddError(f"{_shown(where)}: got {len(value)} entries; supported: {most}")


def _refuse(where: Place, value: Any, kind: str) -> Any:
    raise _odd(where, value, _KINDS[kind])


def _odd(where: Place, value: Any, words: str) -> OddError:
    if not where and isinstance(value, str):
        # How Salt answers when something is wrong.
        return OddError(_cut(value, ERROR) or "an empty text")
    if isinstance(value, str):
        got = f"{_cut(value, 40)!r}"
    elif isinstance(value, (bool, int, float)) or value is None:
        # Of a number with a million digits Python makes no text.
        got = f"{value}" if not isinstance(value, int) or abs(value) < LARGEST else "a huge number"
    else:
        got = f"a {type(value).__name__}"
    return OddError(f"{_shown(where)}: got {got}; supported: {words}")


def _shown(where: Place) -> str:
    return ":".join(_cut(n, 40) if isinstance(n, str) else "..." for n in where) or "answer"


def _words(wanted: Any) -> str:
    if isinstance(wanted, str):
        return _KINDS[wanted]
    return "a mapping" if isinstance(wanted, Mapping) or wanted[0] == "map" else "a value"
