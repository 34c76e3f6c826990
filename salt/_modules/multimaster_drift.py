"""
Report, from the minion on each master's host, what that master is and has, as digests.

Thin: reads files and options, and asks the core in ``salt/_utils`` what they come to.  No function
here returns a secret: what may be one is a keyed hash.
"""

import contextlib
import glob
import json
import os
import pathlib
import pwd
import secrets
import subprocess
import sys
import time

import psutil
import salt.cache
import salt.config
import salt.exceptions
import salt.fileserver
import salt.utils.yaml
import salt.version

__virtualname__ = "multimaster_drift"

DROP_IN = "multimaster.conf"
# What the engine of the same name has left of the running master, below its cache directory.
RUNNING = "running.json"
# What orch/modules.sls brings to the master that an orchestration runs on.
BROUGHT = {
    "runners/multimaster_orch.py",
    "states/multimaster_orch.py",
    "utils/multimaster_deploy.py",
    "utils/multimaster_gather.py",
    "utils/multimaster_keypair.py",
    "utils/multimaster_said.py",
    "utils/multimaster_topology.py",
    "utils/multimaster_trees.py",
}
# Seconds for the compilation of one minion's pillar and top file.
COMPILED_WITHIN = 600
# Reports, and proofs of so many samples, that are kept.
KEPT = 4
# Seconds that a git remote has for its answer.
REMOTE_WITHIN = 3


def __virtual__():
    return __virtualname__


def report(
    detail=(),
    minions=False,
    timeout=5,
    sample=None,
    max_age=120,
    compiles=True,
    watch=None,
    ask=True,
    asker=None,
):
    """
    Report on the master of this host: what it is, what it has, and who answers to it.

    detail
        Subjects of which all leaves are told, not only the digest.
    minions
        Whether the master is to ask all its minions for ``multimaster.masters``.
    timeout
        Seconds to wait for answers.
    sample
        The minion whose pillar and top file are compared, and the digest of its grains: they are
        compiled with those that this master has, if these are the same.
    max_age
        Seconds for which what was compiled holds; 0: it is compiled now.
    compiles
        False if only what was compiled before is to be told.
    watch
        What the engine that looks at all masters has told so far; kept for its successor.
    ask
        False if the master is not to ask anybody.
    asker
        The master that wants to know.  That it answers it knows by itself.

    One at a time: whoever asks while one is made waits for it, and for the next one with all who
    want to know the same.  On a slow host there may always be somebody who asks.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster_drift.report
        salt saltm2 multimaster_drift.report '[config, files:base]'
    """
    if sample and not __utils__["multimaster_pubkey.is_id"](sample[0]):
        # External pillars make paths of it.
        raise salt.exceptions.CommandExecutionError(
            f"sample: got {sample[0]!r}; supported: a minion id"
        )
    arrived, look = time.monotonic(), _Look()
    ask = ask and look.daemon and (minions or asker != __opts__["id"])
    answers = _Asked(look.opts, minions, timeout) if ask else None
    if watch is not None:
        look.note(watch)
    what = [list(detail), sample, max_age, compiles]
    with contextlib.ExitStack() as stack:
        path = pathlib.Path(look.cache, "reports.json")
        # On a disk that takes nothing each makes its own.
        with contextlib.suppress(OSError):
            os.makedirs(look.cache, mode=0o700, exist_ok=True)
            stack.enter_context(__utils__["multimaster_cutover.alone"](f"{path}.lock"))
        told = _made_since(arrived, path, what, lambda: _report(look, *what))
    # Others' answers are waited for by all at the same time.
    answered = answers.told() if answers else (False, None, None, None)
    told["master"]["answers"], *packed = answered
    told["minions"], told["unknown"], told["grainless"] = packed
    told["now"] = time.time()
    return told


def _made_since(arrived, path, what, make):
    """Return what somebody has begun to make since then; else make it, and keep it for others."""
    # The clock begins anew with the host, and so does its first process.
    key = json.dumps([__utils__["multimaster_gather.process"](1), what])
    made = {}
    with contextlib.suppress(OSError, RecursionError, ValueError, KeyError, TypeError):
        made = dict(json.loads(path.read_text()))
        if arrived <= made[key]["begun"] <= time.monotonic():
            return made[key]["told"]
    begun = time.monotonic()
    told = make()
    made.pop(key, None)
    made = {key: {"begun": begun, "told": told}, **dict(list(made.items())[: KEPT - 1])}
    with contextlib.suppress(OSError):
        __utils__["multimaster_files.write"](str(path), json.dumps(made), 0o600)
    return told


def _report(look, detail, sample, max_age, compiles):
    told = {"master": look.master(), "host": __salt__["multimaster.masters"]()}
    told["remotes"] = look.remotes()
    leaves, places = look.subjects()
    digest = __utils__["multimaster_drift.digest"]
    subjects = {name: digest(found) for name, found in leaves.items()}
    # What the compiled pillar of a minion may follow from on this host.
    inputs = {name: found for name, found in subjects.items() if name != "keys"}
    proof = look.proof(sample, max_age, digest(inputs), compiles)
    if "leaves" in proof:
        leaves["content"] = proof.pop("leaves")
        subjects["content"] = digest([proof["sample"], leaves["content"]])
    told |= {"subjects": subjects, "proof": proof, "stale": look.stale(), "places": places}
    told["up"] = time.time() - look.daemon.create_time() if look.daemon else 0
    if detail:
        found = {name: leaves[name] for name in detail if name in leaves}
        if {"config", "access"} & set(detail):
            told["sources"], told["declared"] = look.sources(found)
        told["details"] = __utils__["multimaster_ledger.squeeze"](found)
    return told


class _Asked:
    """What the minions of this host's master answer to it; asked first and listened to last."""

    def __init__(self, opts, minions, timeout):
        gather = __utils__["multimaster_gather.gather"]
        question = __utils__["multimaster_gather.question"]
        own = __opts__["id"]
        questions = [question([own], "test.ping")]
        accepted = set()
        if minions:
            accepted = __utils__["multimaster_gather.accepted"](opts)
            met = __utils__["multimaster_gather.met"](opts)
            ids = sorted((accepted if met is None else accepted & met) - {own})
            if ids:
                questions.append(question(ids, "multimaster.masters"))

        def more(asked):
            # One that has moved here is connected, and this master may never have had its grains.
            left = sorted(accepted - asked)
            return question(left, "multimaster.masters") if left else None

        self.opts, self.own, self.minions = opts, own, minions
        self.answers = ()
        with contextlib.suppress(salt.exceptions.SaltException, OSError):
            # When as many have answered as are connected, nobody is missing.
            count = (lambda: _connections(opts)) if minions else None
            self.answers = gather(opts, questions, timeout, count, more)

    def told(self):
        """
        Return whether the minion on this host answers; and packed, what the others say, of whom
        it is not known why, and whose grains this master lacks.
        """
        alive, found, unknown = False, {}, {}
        # One that is too busy to take a command is not working either.
        with contextlib.suppress(salt.exceptions.SaltException, OSError):
            for answer in self.answers:
                if answer.id == self.own:
                    alive = answer.value is True
                    continue
                value, why = __utils__["multimaster_said.check"](
                    "multimaster.masters", answer.value
                )
                if why is None:
                    found[answer.id] = value
                else:
                    unknown[answer.id] = why
        if not self.minions:
            return alive, None, None, None
        lacking = ()
        with contextlib.suppress(salt.exceptions.SaltException, OSError):
            answered = {*found, *unknown}
            lacking = __utils__["multimaster_gather.without_grains"](self.opts, answered)
        squeeze = __utils__["multimaster_ledger.squeeze"]
        return alive, squeeze(found), squeeze(unknown), squeeze(sorted(lacking))


class _Look:
    """The master of this host, as its files and processes show it."""

    def __init__(self):
        self.config_dir = os.path.dirname(__opts__["conf_file"])
        self.path = os.path.join(self.config_dir, "master")
        self.opts = {**salt.config.master_config(self.path), "id": __opts__["id"]}
        self.cache = os.path.join(__opts__["cachedir"], "multimaster")
        self.daemon = _daemon(self.opts["pidfile"])
        pem, self.pub = __utils__["multimaster_gather.pair"](self.opts)
        self.paired = pem is not None
        # Without a key of the masters anybody could make such hashes: then they are equal to none.
        self.key = __utils__["multimaster_options.hash_key"](pem or secrets.token_hex(32))
        roots = dict.fromkeys((self.opts["root_dir"], os.path.realpath(self.opts["root_dir"])))
        caches = dict.fromkeys((self.opts["cachedir"], os.path.realpath(self.opts["cachedir"])))
        self.prefixes = [
            *((path, "CACHEDIR") for path in caches),
            *((path, "") for path in roots if path.rstrip("/")),
        ]

    def master(self):
        """Return what the first table of the status has."""
        fingerprint = __utils__["multimaster_keypair.fingerprint"]
        signing = _key_file(self.opts, "master_sign.pub")
        found = {
            "running": self.daemon is not None,
            "version": salt.version.__version__,
            "formula": __utils__["multimaster_topology.version"](),
            "fingerprint": fingerprint(self.pub) if self.pub else None,
            "signs": self.opts["master_sign_pubkey"],
            "signing_fingerprint": fingerprint(signing) if signing else None,
            "connections": _connections(self.opts),
        }
        self.ledger = __salt__["multimaster.key_digest"]()
        found |= self.ledger.pop("counts")
        return found | self.ledger | {"conflicts": len(self.ledger["conflicts"])}

    def subjects(self):
        """Return subject -> leaves, and subject -> where its files are on this host."""
        config, access = self.options()
        found = {"config": config, "access": access}
        hashes = __utils__["multimaster_trees.hashes"](os.path.join(self.cache, "hashes.json"))
        places = {}
        follow = self.opts.get("fileserver_followsymlinks", True)
        trees = __utils__["multimaster_trees.tree"]

        def ignored(path):
            return salt.fileserver.is_file_ignored(self.opts, path)

        kinds = {"pillar": self.opts["pillar_roots"]}
        backends = self.opts["fileserver_backend"]
        if "roots" in backends or "file" in backends:
            kinds["files"] = self.opts["file_roots"]
        for kind, environments in kinds.items():
            for name, roots in environments.items():
                # In every environment of that name; so all of them are looked at together.
                roots = [str(root).split("__env__")[0] for root in roots]
                found[f"{kind}:{name}"] = trees(roots, hashes, ignored, follow)
                places[f"{kind}:{name}"] = ", ".join(roots)
        for kind in ("gitfs", "git_pillar"):
            if refs := self.fetched(kind):
                found[kind] = refs
        # Trees that the formula itself brings to each master, where they are.
        if _is_synced("multimaster_roots"):
            roots = __salt__["multimaster_roots.status"]()
            if roots["role"]:
                found["roots"] = {**roots["digests"], "problem": roots["problem"]}
        conflicts = {f"conflict:{name}": True for name in self.ledger["conflicts"]}
        # What ledgers that are equal do not show.
        stored = {f"stored:{name}": how for name, how in self.ledger["astray"].items()}
        found["keys"] = {"ledger": self.ledger["digest"], **conflicts, **stored}
        found["modules"] = self.modules(hashes)
        places["extension_modules"] = self.opts["extension_modules"]
        found["formula"] = {"version": __utils__["multimaster_topology.version"]()}
        found["salt"] = {"version": salt.version.__version__}
        hashes.save()
        return found, places

    def options(self):
        """Return the leaves of the effective options: those of access control apart."""
        leaves = __utils__["multimaster_options.leaves"](self.opts)
        comparable = __utils__["multimaster_drift.comparable"](leaves, self.prefixes)
        plain = {path: self.shown(path, value) for path, value in comparable.items()}
        is_access = __utils__["multimaster_drift.is_access"]
        config = {path: value for path, value in plain.items() if not is_access(path)}
        access = {path: value for path, value in plain.items() if is_access(path)}
        return config, access | self.contents()

    def shown(self, path, value):
        return __utils__["multimaster_options.shown"](path, value, self.key)

    def contents(self):
        """Return the content of the files that access control names, a leaf for each line."""
        found = {}
        for option in ("autosign_file", "autoreject_file"):
            for line in _lines(self.opts.get(option)):
                found[f"{option}:content:{line}"] = True
        directory = self.opts.get("autosign_grains_dir")
        for path in sorted(glob.glob(os.path.join(directory or "/nowhere", "*"))):
            for line in _lines(path):
                # Grains serve as tokens here.
                name = f"autosign_grains_dir:content:{os.path.basename(path)}"
                found[f"{name}:{self.shown(f'token:{name}', line)}"] = True
        return found

    def fetched(self, kind):
        """Return remote and branch -> commit, as this master has fetched them."""
        found = {}
        root = os.path.join(self.opts["cachedir"], kind)
        for url, directory in __utils__["multimaster_trees.repositories"](root):
            remote = __utils__["multimaster_options.without_userinfo"](url, self.key)
            for name, commit in __utils__["multimaster_trees.commits"](directory).items():
                found[f"{remote} {name}"] = commit
        return found

    def remotes(self):
        """Return git remote -> what is wrong with it, for those that are not well."""
        remotes = __utils__["multimaster_topology.configured_remotes"](self.opts)
        said = __utils__["multimaster_remotes.ask"](remotes, self.opts["user"], REMOTE_WITHIN)
        hidden = __utils__["multimaster_options.without_userinfo"]
        told = zip(remotes, said, strict=True)
        return {hidden(one.url, self.key): hidden(why, self.key) for one, why in told if why}

    def modules(self, hashes):
        """Return the content of the directories that this master takes modules from."""
        found = {}
        trees = __utils__["multimaster_trees.tree"]
        named = [("extension_modules", self.opts["extension_modules"])]
        for path in self.opts.get("module_dirs") or ():
            ours = os.path.exists(os.path.join(path, "utils", "multimaster_drift.py"))
            place = __utils__["multimaster_drift.without_prefix"](path, self.prefixes)
            named.append(("formula" if ours else place, path))
        for name, path in named:
            for file, value in trees([path], hashes).items():
                if name != "extension_modules" or file not in BROUGHT:
                    found[f"{name}/{file}"] = value
        return found

    def files(self):
        """Return the files of this master's configuration, in Salt's order."""
        pattern = self.opts.get("default_include", "master.d/*.conf")
        found = [self.path, *_included(pattern, self.path)]
        found += _included(_content(self.path).get("include"), self.path)
        return [path for path in dict.fromkeys(found) if os.path.isfile(path)]

    def sources(self, details):
        """Return option -> files that set it, and the leaves of the formula's own drop-in."""
        wanted = {path.partition(":")[0] for found in details.values() for path in found}
        sources, declared = {}, {}
        for path in self.files():
            content = _content(path)
            for option in content:
                if option in wanted:
                    sources.setdefault(option, []).append(path)
            if os.path.basename(path) == DROP_IN:
                leaves = __utils__["multimaster_options.leaves"](content)
                mine = __utils__["multimaster_drift.comparable"](leaves, self.prefixes)
                declared = {p: self.shown(p, v) for p, v in mine.items()}
        return sources, declared

    def stale(self):
        """Return what of this master's configuration its process has otherwise; None: unknown."""
        if self.daemon is None:
            return {}
        options = __utils__["multimaster_drift.read_from_files"](self.opts)
        leaves = __utils__["multimaster_options.leaves"](options)
        shown = {path: self.shown(path, value) for path, value in leaves.items()}
        note = None
        with contextlib.suppress(OSError, RecursionError, ValueError):
            path = os.path.join(self.opts["cachedir"], "multimaster", RUNNING)
            note = json.loads(pathlib.Path(path).read_text())
        process = __utils__["multimaster_gather.process"](self.daemon.pid)
        key = self.key if self.paired else None
        # As JSON has them, in which the note is.
        shown = json.loads(json.dumps(shown, default=str))
        return __utils__["multimaster_drift.stale"](note, process, key, shown)

    def note(self, watch):
        """Keep what the engine that looks at all masters has told, where its successor finds it."""
        path = os.path.join(self.opts["cachedir"], "multimaster", "watch.json")
        owner = pwd.getpwnam(self.opts["user"])
        # In a directory that belongs to somebody else: not there yet, or nobody knows whose it is.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            __utils__["multimaster_files.write"](
                path, json.dumps(watch), 0o640, (owner.pw_uid, owner.pw_gid)
            )

    def proof(self, sample, max_age, inputs, compiles):
        """Return what this master would give a minion, as hashes, compiled anew where needed."""
        if not sample:
            return {"sample": None}
        minion_id, wanted = sample
        had = __utils__["multimaster_gather.grains"](self.opts, minion_id)
        grains, grains_print, why = __utils__["multimaster_drift.sample_grains"](had)
        if why or grains_print != wanted:
            return {"sample": minion_id, "skipped": why or "its grains of it are others"}
        path = os.path.join(self.cache, "proofs.json")

        found = _proofs(path).get(minion_id, {})
        recent = time.time() - found.get("at", 0) <= max_age
        if not recent or (found.get("grains"), found.get("inputs")) != (grains_print, inputs):
            found = (
                self.prove(path, minion_id, grains, grains_print, inputs)
                if compiles
                else {"problem": "not compiled since something has changed"}
            )
        if self.opts["pillar_cache"]:
            # Seconds that what a minion is given may be older than what was compiled here.
            found = {**found, "cached": self.opts["pillar_cache_ttl"]}
        return {"sample": minion_id, **found}

    def prove(self, path, minion_id, grains, grains_print, inputs):
        """Compile, and keep what came of it."""
        outcome = self.compile(minion_id, grains)
        if "leaves" not in outcome:
            return {"grains": grains_print, **outcome}
        fresh = {"inputs": inputs, "grains": grains_print, "at": time.time(), **outcome}
        proofs = _proofs(path)
        proofs.pop(minion_id, None)
        kept = dict([*proofs.items(), (minion_id, fresh)][-KEPT:])
        with contextlib.suppress(OSError):
            scratch = f"{path}.{os.getpid()}"
            pathlib.Path(scratch).touch(mode=0o600)
            pathlib.Path(scratch).write_text(json.dumps(kept))
            os.replace(scratch, path)
        return fresh

    def compile(self, minion_id, grains):
        """Have the program compile a minion's pillar, as the user that the master runs as."""
        job = {"config": self.path, "id": minion_id, "grains": grains, "key": self.key.hex()}
        owner = pwd.getpwnam(self.opts["user"])
        switch = {}
        if owner.pw_uid != os.geteuid():
            groups = os.getgrouplist(owner.pw_name, owner.pw_gid)
            switch = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": groups}
        environment = {**os.environ, "HOME": owner.pw_dir, "USER": owner.pw_name}
        try:
            done = subprocess.run(
                [sys.executable, "-c", __utils__["multimaster_sample.source"]()],
                input=json.dumps(job, default=str),
                capture_output=True,
                text=True,
                timeout=COMPILED_WITHIN,
                cwd="/",
                env=environment,
                check=False,
                **switch,
            )
            return json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as err:
            return {"problem": type(err).__name__}


def _proofs(path):
    """Return what was compiled before: id of a minion -> proof."""
    with contextlib.suppress(OSError, RecursionError, ValueError):
        known = json.loads(pathlib.Path(path).read_text())
        if isinstance(known, dict):
            return {name: proof for name, proof in known.items() if isinstance(proof, dict)}
    return {}


def _included(include, origin):
    """Return the files that a file includes, and those that these include."""
    found = []
    for pattern in [include] if isinstance(include, str) else include or ():
        for path in sorted(glob.glob(os.path.join(os.path.dirname(origin), pattern))):
            found += [path, *_included(_content(path).get("include"), path)]
    return found


def _content(path):
    """Return the options of one file of a configuration."""
    with contextlib.suppress(OSError, salt.utils.yaml.YAMLError):
        content = salt.utils.yaml.safe_load(pathlib.Path(path).read_text())
        return content if isinstance(content, dict) else {}
    return {}


def _is_synced(module):
    """Tell whether this minion has a module; to ask Salt for one that it lacks takes seconds."""
    directories = [__opts__["extension_modules"], *(__opts__.get("module_dirs") or ())]
    return any(os.path.exists(f"{path}/modules/{module}.py") for path in directories)


def _daemon(pidfile):
    """Return the process of a pid file, or None."""
    try:
        process = psutil.Process(int(pathlib.Path(pidfile).read_text()))
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None


def _connections(opts):
    """Return how many connections this host's publisher has."""
    tables = __utils__["multimaster_gather.tables"]()
    return __utils__["multimaster_trees.subscribed"](opts, tables)


def _key_file(opts, name):
    driver = opts.get("keys.cache_driver")
    if driver not in (None, "localfs_key"):
        return salt.cache.Cache(opts, driver=driver).fetch("master_keys", name) or None
    with contextlib.suppress(FileNotFoundError):
        return pathlib.Path(opts["pki_dir"], name).read_text(errors="replace")
    return None


def _lines(path):
    """Return the lines of a file that say something; none if it is not there."""
    try:
        text = pathlib.Path(path or "/nowhere").read_text(errors="replace")
    except OSError:
        return []
    return sorted({line.strip() for line in text.splitlines()} - {""})
