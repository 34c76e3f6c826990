"""
Whether a minion asks for signatures follows from what its masters do; here is how.

Salt lets a minion that does not verify sign in to no master that signs, and the reverse.  So no
minion changes before its masters have, and each changes by itself when they have.

Pure: imports nothing of Salt and touches no file.
"""

import re
from collections.abc import Iterable

# What a minion can see of a master.  Both are proven by a fresh answer that is signed with the key
# that the minion knows its masters by; an answer that is not is worth nothing.
SIGNS = "signs"
PLAIN = "plain"
# A signature that the minion's signing key does not confirm: to verify would end the connection.
WRONG = "signs with another signing key"

OPTION = "verify_master_pubkey_sign"
_LINE = re.compile(rf"^{OPTION}: (true|false)$", re.MULTILINE)


def verdict(seen: Iterable[str]) -> bool | None:
    """
    Tell whether a minion is to verify, from what it saw of its masters; None: to stay as it is.

    Masters of which nothing is proven do not count: one that is down for long must not keep the
    minions from the others.  While the masters differ, a minion stays with those it agrees with.
    """
    known = {state for state in seen if state in (SIGNS, PLAIN, WRONG)}
    if known == {SIGNS}:
        return True
    return False if known == {PLAIN} else None


def switched(drop_in: str, verifies: bool) -> str:
    """
    Return the text of a minion's drop-in with the option set, and nothing else changed.

    Raises ValueError if the option is not in the text exactly once.
    """
    text, count = _LINE.subn(f"{OPTION}: {str(verifies).lower()}", drop_in)
    if count != 1:
        raise ValueError(f"the minion's drop-in sets {OPTION} {count} times; supported: once")
    return text
