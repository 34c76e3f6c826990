"""
Serves replicated file roots: each minion from a snapshot that does not change under a state run.

A state run fetches its files one by one, so that the newest tree would not do: it is pinned to the
one that was the newest when it began.  See docs/roots-replicate.md.
"""

import logging
import os
import time

import salt.fileserver
import salt.utils.gzip_util
import salt.utils.hashutils
import salt.utils.verify
from salt.exceptions import FileserverConfigError

log = logging.getLogger(__name__)

__virtualname__ = "multimaster"

# Stores by directory, and by process the pin of requests that name no minion, as those of a runner:
# kept when another loader of this process loads this file again.
STORES = globals().get("STORES", {})
PINS = globals().get("PINS", {})
# The last listing, which a run asks for again and again.
LISTED = {}


def __virtual__():
    return __virtualname__


def envs():
    """Return the environments that are served."""
    name = _store().current()
    return sorted(_store().manifest(name).environments("file_roots")) if name else []


def find_file(path, saltenv="base", **kwargs):
    """
    Tell whether there is a file in any tree that is served: whose request it is, is not said here.

    Whoever asks for its hash or content next gets that of his own tree, or nothing.
    """
    found = {"path": "", "rel": ""}
    path = os.path.normpath(path)
    if (
        os.path.isabs(path)
        or path.startswith("..")
        or salt.fileserver.is_file_ignored(__opts__, path)
    ):
        return found
    store = _store()
    name = store.current()
    if name is None:
        raise FileserverConfigError("there is no snapshot of the file roots on this master yet")
    for tree in [name, *reversed(store.names())]:
        for root in _roots(store, tree, saltenv, kwargs.get("index")):
            full = os.path.join(root, path)
            if os.path.isfile(full):
                return {
                    "path": full,
                    "rel": path,
                    "saltenv": saltenv,
                    "index": kwargs.get("index"),
                    "stat": list(os.stat(full)),
                }
    return found


def file_hash(load, fnd):
    """Return the hash of a file in the tree of whoever asks."""
    if not fnd.get("path") or "saltenv" not in fnd:
        return {}
    name, path = _locate(load, fnd, _kind(fnd["rel"]))
    if path is None:
        return {}
    store = _store()
    entry = store.manifest(name).entries[path]
    if isinstance(fnd.get("stat"), list):
        # Salt has taken it from there already, and will pass it on.
        fnd["stat"][:] = list(os.stat(store.tree(name, path)))
    kind = __opts__["hash_type"]
    if kind == "sha256":
        return {"hsum": entry.sha256, "hash_type": kind}
    with _opened(store, name, path) as handle:
        if handle is None:
            return {}
        return {"hsum": salt.utils.hashutils.get_hash(handle.name, kind), "hash_type": kind}


def serve_file(load, fnd):
    """Return a part of a file in the tree of whoever asks; nothing if somebody has edited it."""
    ret = {"data": "", "dest": ""}
    loc = load.get("loc")
    if (
        not fnd.get("path")
        or "saltenv" not in fnd
        or type(loc) is not int
        or not 0 <= loc < 1 << 63
    ):
        return ret
    name, path = _locate(load, fnd, "more")
    if path is None:
        return ret
    with _opened(_store(), name, path) as handle:
        if handle is None:
            if loc:
                # To the minion, nothing more would be the end of the file.
                raise FileserverConfigError(f"{fnd['rel']} was edited while it was served")
            return ret
        ret["dest"] = fnd["rel"]
        handle.seek(loc)
        data = handle.read(__opts__["file_buffer_size"])
    if data and load.get("gzip"):
        data = salt.utils.gzip_util.compress(data, load["gzip"])
        ret["gzip"] = load["gzip"]
    ret["data"] = data
    return ret


def file_list(load):
    """Return all files of an environment."""
    return [path for path, entry in _listed(load, _listing(load)).items() if entry]


def dir_list(load):
    """Return all directories of an environment."""
    return [path for path, entry in _listed(load, "other").items() if not entry]


def file_list_emptydirs(load):
    """Return the directories of an environment that nothing is in."""
    entries = _listed(load, "other")
    full = {path.rpartition("/")[0] for path in entries}
    return [path for path, entry in entries.items() if not entry and path not in full]


def symlink_list(load):
    """Return nothing: a snapshot has the content that a link leads to."""
    return {}


class _opened:
    """A file of a snapshot, or None if it is not what was written there."""

    def __init__(self, store, name, path):
        self.handle = store.open_file(name, path, store.index(name).get(path))
        current = store.current()
        if self.handle is None and current:
            # Where it has been put right, if that is the same file.
            entries = store.manifest(current).entries
            if entries.get(path) == store.manifest(name).entries[path]:
                self.handle = store.open_file(current, path, store.index(current).get(path))
        if self.handle is None:
            log.error("%s was edited in the served tree; it is not served", path)

    def __enter__(self):
        return self.handle

    def __exit__(self, *_):
        if self.handle is not None:
            self.handle.close()


def _listed(load, kind):
    """Return path -> entry of all that an environment has, less what is ignored."""
    saltenv = load["saltenv"]
    name = _pinned(load, kind, saltenv)
    store = _store()
    key = (store.directory, name, saltenv)
    last, entries = LISTED.get("last", (None, None))
    if last != key:
        manifest, entries = store.manifest(name), {}
        for number in range(manifest.environments("file_roots").get(saltenv, 0)):
            # The first directory that has a path wins.
            entries = {**manifest.below(f"file_roots/{saltenv}/{number}").entries, **entries}
        entries = {
            path: entry
            for path, entry in entries.items()
            if not salt.fileserver.is_file_ignored(__opts__, path)
        }
        LISTED["last"] = (key, entries)
    return entries


def _listing(load):
    # Salt begins a state run with a listing of everything.
    return "other" if load.get("prefix", "").strip("/") else "list"


def _kind(path):
    if path == __opts__["state_top"].removeprefix("salt://").lstrip("/"):
        return "top"
    return "sls" if path.endswith(".sls") else "other"


def _locate(load, fnd, kind):
    """Return the tree of whoever asks, and the path of a file in it, or None."""
    name = _pinned(load, kind, fnd["saltenv"])
    entries = _store().manifest(name).entries
    numbers = range(len(_roots(_store(), name, fnd["saltenv"], None)))
    if fnd.get("index") is not None:
        numbers = [int(fnd["index"])]
    for number in numbers:
        path = f"file_roots/{fnd['saltenv']}/{number}/{fnd['rel']}"
        if entries.get(path):
            return name, path
    return name, None


def _pinned(load, kind, saltenv):
    """Return the name of the tree that a request is answered from."""
    store = _store()
    current = store.current()
    if current is None:
        # An empty list would have minions remove what they have from here.
        raise FileserverConfigError("there is no snapshot of the file roots on this master yet")
    minion_id, now = load.get("id"), time.time()
    known = isinstance(minion_id, str) and salt.utils.verify.valid_id(__opts__, minion_id)
    pins = __utils__["multimaster_roots.pins"](store.directory)
    pin = pins.get(minion_id) if known else PINS.get(os.getpid())
    if pin and not os.path.isdir(store.tree(pin.tree)):
        pin = None
    pin = __utils__["multimaster_roots.pinned"](pin, kind, saltenv, current, now)
    if known:
        try:
            pins.put(minion_id, pin)
        except OSError as err:
            # A full disk, say: nothing can be switched then either.
            log.error("Cannot note which tree %s is served from: %s", minion_id, err)
    else:
        PINS[os.getpid()] = pin
    return pin.tree


def _roots(store, name, saltenv, index):
    """Return the directories that make up an environment in a tree, in their order."""
    if "/" in saltenv or saltenv.startswith("."):
        return []
    directory = store.tree(name, f"file_roots/{saltenv}")
    try:
        numbers = sorted(map(int, os.listdir(directory)))
        numbers = numbers if index is None else [n for n in numbers if n == int(index)]
    except (FileNotFoundError, ValueError):
        return []
    return [os.path.join(directory, str(number)) for number in numbers]


def _store():
    directory = os.path.join(__opts__["cachedir"], "multimaster", "roots")
    if directory not in STORES:
        STORES[directory] = __utils__["multimaster_roots.store"](directory)
    return STORES[directory]
