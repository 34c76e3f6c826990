"""
Compares sets of Salt options leaf by leaf, and shows no secret on the way.

A value is shown if nobody would put a secret there.  Of any other there is a keyed hash: equal
hashes are equal values, and without the masters' shared private key nobody can try out passwords.

Pure: imports nothing of Salt and touches no file.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Options whose content is shown, less what is under a name like a secret's.  Of others: numbers
# and booleans at the top, since Salt's own options of that kind hold no secrets.
PLAIN = (
    "auth_mode",
    "auto_accept",
    "autoreject_file",
    "autosign_file",
    "autosign_grains_dir",
    "cache",
    "client_acl_verify",
    "cluster_peers",
    "default_include",
    "default_top",
    "env_order",
    "event_return",
    "ext_job_cache",
    "external_auth",
    "file_ignore_glob",
    "file_ignore_regex",
    "file_roots",
    "fileserver_backend",
    "git_pillar_base",
    "git_pillar_branch",
    "git_pillar_provider",
    "git_pillar_root",
    "gitfs_base",
    "gitfs_mountpoint",
    "gitfs_provider",
    "gitfs_remotes",
    "gitfs_root",
    "gitfs_saltenv_blacklist",
    "gitfs_saltenv_whitelist",
    "hash_type",
    "id",
    "include",
    "interface",
    "job_cache",
    "keys.cache_driver",
    "log_level",
    "log_level_logfile",
    "master",
    "master_job_cache",
    "master_pubkey_signature",
    "master_sign_key_name",
    "master_type",
    "module_dirs",
    "multimaster",
    "nodegroups",
    "peer",
    "peer_run",
    "pillar_roots",
    "pillar_source_merging_strategy",
    "publish_signing_algorithm",
    "publisher_acl",
    "publisher_acl_blacklist",
    "reactor",
    "renderer",
    "saltenv",
    "state_top",
    "top_file_merging_strategy",
    "transport",
    "user",
    "worker_pools",
)
# Compared in lower case with each name on the way to a value.
_SECRET = re.compile(r"pass|secret|token|credential|privkey|private|api_?key|bindpw|cert\b|pem\b")
# Settings of the formula's own engines.
_OURS = re.compile(r"engines:\d+:multimaster(_minion)?(:|$)")
# user:password@ in an address, whatever is in the password; but not a port.
_USERINFO = re.compile(r"(?<=://)(?:[^/\s'\"@:]*:(?!\d*/)[^\s'\"]*@|[^/\s'\"]*@)")
# token=... in its query, or among the options of a mount.
_PAIR = re.compile(r"([\w.-]*(?:pass|secret|token|key)[\w.-]*=)[^&,;\s'\"]+", re.IGNORECASE)
# password: ... in a text that quotes a configuration; all that follows in its line.
_LINE = re.compile(rf"((?:{_SECRET.pattern})[\w.-]*['\"]?\s*:\s+)(?=\S)(.+)", re.IGNORECASE)
HASHED = "hash:"


def leaves(options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return path -> value of everything in some options that is not a mapping or a list itself.

    A path has names and places in lists, joined by colons: ``file_roots:base:0``.  An empty mapping
    or list is a value.
    """
    return dict(_leaves("", options))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not path):
        for name, inner in value.items():
            yield from _leaves(f"{path}:{name}" if path else str(name), inner)
    elif isinstance(value, (list, tuple)) and value:
        for place, inner in enumerate(value):
            yield from _leaves(f"{path}:{place}", inner)
    else:
        yield path, value


def shown(path: str, value: Any, key: bytes) -> Any:
    """
    Return a leaf's value if it may be seen, or else a keyed hash of it.

    path
        As :func:`leaves` has it.
    key
        What the hash is keyed with: :func:`hash_key`.
    """
    option, _, rest = path.partition(":")
    if value in ({}, []) or _OURS.match(path):
        return value
    number = isinstance(value, (bool, int, float)) or value is None
    plain = option in PLAIN or (number and not rest)
    if not plain or _SECRET.search(rest.lower() if option in PLAIN else path.lower()):
        return _hashed(json.dumps([path, value], default=str), key)
    return without_userinfo(value, key) if isinstance(value, str) else value


def without_userinfo(text: str, key: bytes) -> str:
    """Return a text with keyed hashes in place of an address's ``user:password@`` and tokens."""
    text = _USERINFO.sub(lambda found: _hashed(found[0], key) + "@", text)
    return _PAIR.sub(lambda found: found[1] + _hashed(found[0], key), text)


def without_secrets(text: str, key: bytes) -> str:
    """Return a text of somebody else's, who may quote a configuration, as it may be seen."""
    text = without_userinfo(text, key)
    return _LINE.sub(lambda found: found[1] + _hashed(found[2], key), text)


def _hashed(text: str, key: bytes) -> str:
    return HASHED + hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:16]


def hash_key(pem: str) -> bytes:
    """Return the key for hashes that are to be equal on all masters: it follows from their pair."""
    return hmac.new(pem.strip().encode(), b"multimaster options", hashlib.sha256).digest()


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], key: bytes
) -> dict[str, dict[str, Any]]:
    """
    Return path -> ``old`` and ``new`` of every leaf in which two sets of options differ, as shown.

    What one of them lacks is absent there.
    """
    before, after = leaves(old), leaves(new)
    found: dict[str, dict[str, Any]] = {}
    for path in sorted({*before, *after}):
        if path in before and path in after and before[path] == after[path]:
            continue
        sides = (("old", before), ("new", after))
        found[without_userinfo(path, key)] = {
            name: shown(path, side[path], key) for name, side in sides if path in side
        }
    return found


def phrases(
    there: Mapping[str, Any], here: Mapping[str, Any], key: bytes, words: str, most: int = 3
) -> str:
    """
    Return in words how two sets of options differ, as shown.

    words
        A phrase with the fields ``path``, ``there`` and ``here``.
    most
        Differences that are named; of the rest there is the number.
    """
    found = differences(there, here, key)
    named = [
        words.format(path=path, there=_side(sides, "old"), here=_side(sides, "new"))
        for path, sides in list(found.items())[:most]
    ]
    if len(found) > most:
        named.append(f"{len(found) - most} more")
    return ", ".join(named)


def _side(sides: Mapping[str, Any], name: str) -> str:
    return repr(sides[name]) if name in sides else "not there"


def with_references(options: Any, declared: Any) -> Any:
    """
    Return options with ``sdb://`` references as declared, and not as Salt has resolved them.

    declared
        The same options as the files have them, less defaults.
    """
    if isinstance(declared, str) and declared.startswith("sdb://"):
        return declared
    if isinstance(options, Mapping) and isinstance(declared, Mapping):
        return {name: with_references(value, declared.get(name)) for name, value in options.items()}
    if isinstance(options, list) and isinstance(declared, list) and len(options) == len(declared):
        return [with_references(*pair) for pair in zip(options, declared, strict=True)]
    return options
