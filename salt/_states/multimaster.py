"""
States of a multi-master topology: a checked declaration, drop-ins, key pair, keys, restarts.

Each reads what is there, returns if that is right, builds ``changes``, honours ``test=True`` and
then acts.  What is right is for the core to say; files are written by ``file.serialize``.
"""

import os
import re

from salt.exceptions import CommandExecutionError

__virtualname__ = "multimaster"

SEEDED = ("accepted", "rejected")
# Ids that a message names, at most.
NAMED = 10
# What a minion loads of the formula.
OWN = re.compile(r"_(modules|states|utils|engines)/multimaster\w*\.py")


def __virtual__():
    return __virtualname__


def declared(name, declaration, remarks=()):
    """
    Refuse an invalid declaration; every other state of the formula requires this one.

    name
        Shown only.
    declaration
        The mapping ``multimaster`` of the pillar, merged over the defaults.
    remarks
        What is to be warned of.

    .. code-block:: yaml

        multimaster-declaration:
          multimaster.declared:
            - name: multimaster
            - declaration: {{ multimaster | json }}
    """
    ret = _ret(name)
    try:
        topology = __utils__["multimaster_topology.parse"](declaration)
    except ValueError as err:
        return _failed(ret, f"The declaration is refused, nothing was changed:\n{err}")
    ret["comment"] = f"mode {topology.mode}, masters {', '.join(topology.ids)}"
    warnings = list(remarks)
    unresolved = __salt__["multimaster.unresolved"](topology.addresses)
    if unresolved:
        warnings.append(
            f"{', '.join(unresolved)} cannot be resolved on this host; a minion waits for such a "
            "name before it tries the other masters: prefer IP addresses"
        )
    if warnings:
        ret["warnings"] = warnings
    return ret


def minion_config(name, declaration, config_dir):
    """
    Write the minion's drop-in: the list of masters and the options derived from the topology.

    name
        Path of the drop-in.
    config_dir
        Directory of the configuration that it belongs to.
    """
    topology = __utils__["multimaster_topology.parse"](declaration)
    try:
        existing = _existing("minion", config_dir)
        # Its engine follows the masters, and whoever gets this far is at one with one of them.
        verifies = __salt__["multimaster.verifies"](config_dir, topology.signing)
    except CommandExecutionError as err:
        return _failed(_ret(name), str(err))
    options = __utils__["multimaster_topology.minion_options"](
        topology, __opts__["id"], existing, verifies
    )
    if misfits := _misfits("minion", topology, {**existing, **options}):
        return _failed(_ret(name), misfits)
    stated, rest = __utils__["multimaster_topology.minion_replacing"](topology, options)
    override = topology.minion_override
    try:
        if refused := _unstated("minion", stated, override, config_dir):
            return _failed(_ret(name), refused)
        named = __salt__["multimaster.unstated"]("minion", rest, override, config_dir)
    except CommandExecutionError as err:
        return _failed(_ret(name), str(err))
    ret = _write_drop_in(
        name,
        "minion",
        options,
        config_dir,
        lambda: __salt__["multimaster.prepare_cut_over"](
            name,
            options,
            topology.cutover["masters"],
            topology.restart_timeout,
            config_dir,
        ),
    )
    if named:
        ret["warnings"] = ["\n".join(["Derived options replace what is there:", *named])]
    return ret


def minion_keypair(name, config_dir):
    """
    Make this minion's key pair if it has none: masters are about to be asked in its name.

    name
        The minion's service, which is stopped meanwhile.
    config_dir
        Directory of the minion's configuration.
    """
    ret = _ret(name)
    try:
        if not __salt__["multimaster.make_minion_keypair"](name, config_dir, test=__opts__["test"]):
            ret["comment"] = "The minion has its key pair"
            return ret
    except (CommandExecutionError, OSError) as err:
        return _failed(ret, str(err))
    ret["changes"] = {"minion's key pair": "made"}
    ret["comment"] = "The minion's key pair was made"
    if __opts__["test"]:
        ret.update(result=None, comment="The minion's key pair would be made")
    return ret


def master_config(name, declaration, config_dir, extension_dir):
    """
    Write the master's drop-in: what is equal on all masters, and this master's id.

    name
        Path of the drop-in.
    config_dir
        Directory of the configuration that it belongs to.
    extension_dir
        Where this host has the formula's engine, runner and outputter.
    """
    try:
        options = _master_options(declaration, config_dir, extension_dir)
    except CommandExecutionError as err:
        return _failed(_ret(name), str(err))
    ret = _write_drop_in(name, "master", options, config_dir)
    topology = __utils__["multimaster_topology.parse"](declaration)
    likely = __salt__["multimaster.misspelt"]("master", topology.master_config)
    if likely:
        ret["warnings"] = [
            f"master:config:{option}: Salt has no such option of its own; probably {known}"
            for option, known in likely.items()
        ]
    return ret


def autosign(name, declaration, config_dir):
    """
    Write the files that say whose keys a master accepts or rejects at once; none if none declared.

    name
        Directory of the files; whatever else is in it is removed.
    config_dir
        Directory of the configuration that will name them.

    The master reads them anew at each sign-in, so that it need not be restarted.
    """
    ret = _ret(name)
    topology = __utils__["multimaster_topology.parse"](declaration)
    files = __utils__["multimaster_topology.autosign_files"](topology)
    there = set()
    for directory, _, names in os.walk(name):
        there |= {os.path.relpath(os.path.join(directory, one), name) for one in names}
    try:
        group = __salt__["multimaster.daemon_group"]("master", config_dir)
    except CommandExecutionError as err:
        return _failed(ret, str(err))
    for path, content in files.items():
        one = __states__["file.managed"](
            f"{name}/{path}",
            contents=content,
            # Salt ignores one that others can write; the master's user reads it.
            group=group,
            mode="0640",
            makedirs=True,
            dir_mode="0750",
            show_changes=False,
        )
        if one["result"] is False:
            return _failed(ret, f"{path}: {one['comment']}")
        if one["changes"]:
            ret["changes"][path] = "written"
    for path in sorted(there - set(files)):
        one = __states__["file.absent"](f"{name}/{path}")
        if one["result"] is False:
            return _failed(ret, f"{path}: {one['comment']}")
        ret["changes"][path] = "removed"
    would = __opts__["test"]
    if ret["changes"]:
        ret["result"] = None if would else True
        ret["comment"] = f"{len(ret['changes'])} files {'would be ' if would else ''}changed"
    else:
        ret["comment"] = f"All {len(files)} files are in place" if files else "None is declared"
    return ret


def git_remotes(name, declaration, config_dir):
    """
    Fail if a git remote that is new to this master does not answer, before anything is changed.

    name
        Shown only.
    declaration, config_dir
        As for ``master_config``.

    A remote that a master is configured for already may be down: its last content goes on being
    served, and there is a warning.
    """
    ret = _ret(name)
    package = declaration["roots"]["git"].get("package", "git")
    try:
        problems = __salt__["multimaster.git_problems"](declaration, config_dir)
        known = __salt__["multimaster.git_declared"](declaration, config_dir)
    except CommandExecutionError as err:
        return _failed(ret, str(err))
    if problems and not known and __opts__["test"] and _changed_here([package]):
        ret.update(result=None, comment="The remotes would be asked once git is installed")
        return ret
    if problems and not known:
        return _failed(ret, "Nothing was changed:\n" + "\n".join(problems))
    if problems:
        ret["warnings"] = [f"{problem}; its last content is served" for problem in problems]
    ret["comment"] = "Some remotes do not answer" if problems else "All remotes answer"
    return ret


def shareable(name, declaration, config_dir, extension_dir):
    """
    Fail if shared storage would hold what masters must not share, before anything is changed.

    name
        Shown only.
    declaration, config_dir, extension_dir
        As for ``master_config``.
    """
    ret = _ret(name)
    try:
        options = _master_options(declaration, config_dir, extension_dir)
        findings = __salt__["multimaster.unshareable"](declaration, options, config_dir)
    except CommandExecutionError as err:
        return _failed(ret, str(err))
    if findings:
        return _failed(ret, "Nothing was changed:\n" + "\n".join(findings))
    ret["comment"] = "Nothing is on shared storage that must not be"
    return ret


def shared_config(name, directory, declaration, config_dir):
    """
    Have this host's commands read a master's options from shared storage, as its daemon will.

    name
        Path of the drop-in that includes them.
    directory
        Where they are.
    declaration, config_dir
        As for ``master_config``.
    """
    mounts = [mount["path"] for mount in declaration["roots"]["shared"]["mounts"]]
    if __opts__["test"] and not __salt__["file.file_exists"](f"{directory}/master"):
        away = [path for path in mounts if not __salt__["mount.is_mounted"](path)]
        if any(directory == path or directory.startswith(f"{path}/") for path in away):
            ret = _ret(name)
            ret.update(result=None, comment=f"{directory} would be read once it is mounted")
            return ret
    try:
        findings = __salt__["multimaster.shared_config"](directory, declaration, config_dir)
    except CommandExecutionError as err:
        return _failed(_ret(name), str(err))
    if findings:
        return _failed(_ret(name), "Nothing was changed:\n" + "\n".join(findings))
    return __states__["file.serialize"](
        name,
        dataset={"include": f"{directory}/master.d/*.conf"},
        serializer="yaml",
        mode="0644",
        makedirs=True,
        dir_mode="0755",
    )


def credentials(name, config_dir):
    """
    Write the pillar's ``multimaster:credentials`` to files that only the master can read.

    name
        Directory of the files.
    config_dir
        Directory of the configuration.
    """
    ret = _ret(name)
    try:
        names = __salt__["multimaster.install_credentials"](config_dir, test=True)
        if not names:
            ret["comment"] = "All credentials are in place"
            return ret
        ret["changes"] = dict.fromkeys(names, "written")
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = "Credentials would be written"
            return ret
        __salt__["multimaster.install_credentials"](config_dir)
    except (CommandExecutionError, OSError) as err:
        return _failed(ret, str(err))
    ret["comment"] = "Credentials were written"
    return ret


def extended(name, files):
    """
    Give the master the formula's engine, runner and outputter, and what they need.

    One state and not one ``file.managed`` for each, since Salt reloads all its modules after every
    Python file that such a state changes.

    name
        Directory, in the master's ``module_dirs``.
    files
        Paths below it; each comes from ``salt://_`` and that path.
    """
    ret = _ret(name)
    for path in files:
        one = __states__["file.managed"](
            f"{name}/{path}",
            source=f"salt://_{path}",
            mode="0644",
            makedirs=True,
            dir_mode="0755",
            show_changes=False,
        )
        if one["result"] is False:
            return _failed(ret, f"{path}: {one['comment']}")
        if one["changes"]:
            ret["changes"][path] = "written"
    if ret["changes"]:
        would = __opts__["test"]
        ret["result"] = None if would else True
        ret["comment"] = f"{len(ret['changes'])} files {'would be ' if would else ''}written"
    else:
        ret["comment"] = f"All {len(files)} files are in place"
    return ret


def provided(name, config_dir):
    """
    Give the minion's daemon the formula's modules, if it has not those of this run.

    ``salt-call`` may have a configuration, and so a directory of modules, of its own.

    name
        Shown only.
    config_dir
        Directory of the daemon's configuration.
    """
    theirs = __salt__["multimaster.extension_modules"](config_dir)
    if os.path.realpath(theirs) == os.path.realpath(__opts__["extension_modules"]):
        return {**_ret(name), "comment": "The daemon has those of this run"}
    files = [path[1:] for path in __salt__["cp.list_master"]() if OWN.fullmatch(path)]
    return {**extended(theirs, files), "name": name}


def keypair(name, declaration, config_dir, extension_dir, replace=False):
    """
    Have this host's master use the shared key pair, which comes from the pillar, sealed.

    name
        Shown only.
    declaration, config_dir, extension_dir
        As for ``master_config``, which comes later: the pair has to be where the master will look.
    replace
        Replace a different pair even though this master has accepted minions.
    """
    ret = _ret(name)
    try:
        options = _master_options(declaration, config_dir, extension_dir)
        arguments = {"config_dir": config_dir, "replace": replace, "options": options}
        plan = __salt__["multimaster.install_keypair"](test=True, **arguments)
        if plan["action"] == "refuse":
            return _failed(ret, plan["reason"])
        if "warning" in plan:
            ret["warnings"] = [plan["warning"]]
        if plan["action"] == "none":
            ret["comment"] = plan["reason"]
            return ret
        ret["changes"] = {plan["action"]: plan["fingerprint"]}
        ret["comment"] = plan["reason"]
        if __opts__["test"]:
            ret["result"] = None
            return ret
        done = __salt__["multimaster.install_keypair"](**arguments)
    except (CommandExecutionError, OSError) as err:
        return _failed(ret, str(err))
    if "backup" in done:
        ret["comment"] += f"; what was there is in {done['backup']}"
    return ret


def signing(name, declaration, config_dir, extension_dir, replace=False):
    """
    Have this host's master hold the signing pair; nothing is done unless ``signing`` is declared.

    The first declared master makes it, if it is nowhere; the others get it as they get the shared
    pair.  A master signs from the first apply on in which the pillar brings the pair.

    name
        Shown only.
    declaration, config_dir, extension_dir, replace
        As for ``keypair``.
    """
    ret = _ret(name)
    topology = __utils__["multimaster_topology.parse"](declaration)
    if not topology.signing:
        ret["comment"] = "Signing is not declared"
        return ret
    creator = topology.ids[0]
    try:
        options = _master_options(declaration, config_dir, extension_dir)
        # A master that signs had a pair: to make another one would make two.
        may_create = creator == __opts__["id"] and not __salt__["multimaster.signs"](config_dir)
        arguments = {
            "creator": None if may_create else creator,
            "config_dir": config_dir,
            "replace": replace,
            "options": options,
        }
        plan = __salt__["multimaster.install_signing"](test=True, **arguments)
        # Without its files, a master that is to sign does not even start.
        if plan["action"] == "refuse" or (
            plan["action"] == "wait" and options["master_sign_pubkey"]
        ):
            return _failed(ret, plan["reason"])
        ret["comment"] = plan["reason"]
        if not options["master_sign_pubkey"]:
            ret["warnings"] = [
                f"This master does not sign yet: apply the formula to all again, from {creator}"
            ]
        if plan["action"] in ("none", "wait"):
            return ret
        ret["changes"] = {plan["action"]: "the signing pair"}
        if __opts__["test"]:
            ret["result"] = None
            return ret
        done = __salt__["multimaster.install_signing"](**arguments)
    except (CommandExecutionError, OSError) as err:
        return _failed(ret, str(err))
    if "backup" in done:
        ret["comment"] += f"; what was there is in {done['backup']}"
    return ret


def signing_pub(name, config_dir):
    """
    Give this minion the public signing key, if the pillar brings one.

    name
        Shown only.
    config_dir
        Directory of the configuration that the minion's directory of keys follows from.
    """
    ret = _ret(name)
    try:
        plan = __salt__["multimaster.install_signing_pub"](config_dir, test=True)
        if plan["action"] == "none":
            ret["comment"] = (
                "The public signing key is in place"
                if plan["fingerprint"]
                else "The pillar brings no public signing key"
            )
            return ret
        ret["changes"] = {plan["action"]: plan["fingerprint"]}
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = "The public signing key would be written"
            return ret
        __salt__["multimaster.install_signing_pub"](config_dir)
    except (CommandExecutionError, OSError) as err:
        return _failed(ret, str(err))
    ret["comment"] = "The public signing key was written"
    return ret


def keys_seeded(name, declaration, config_dir, extension_dir):
    """
    Have a master know every key that is accepted or rejected on the present one, before it starts.

    name
        Shown only.
    declaration, config_dir, extension_dir
        As for ``master_config``.
    """
    ret = _ret(name)
    try:
        options = _master_options(declaration, config_dir, extension_dir)
        done = __salt__["multimaster.seed_keys"](
            config_dir=config_dir, options=options, test=__opts__["test"]
        )
    except (CommandExecutionError, OSError, ValueError) as err:
        return _failed(ret, str(err))
    ret["comment"] = done["reason"]
    ret["changes"] = {state: _some(done[state]) for state in SEEDED if done[state]}
    if done["refused"]:
        ret["warnings"] = [f"No usable key is under {_some(done['refused'])}"]
    if done["kept"]:
        left = [f"{one} {why}" for one, why in sorted(done["kept"].items())]
        ret.setdefault("warnings", []).append(f"Left alone: {_some(left)}")
    if ret["changes"] and __opts__["test"]:
        ret["result"] = None
    return ret


def current(name, files, config_dir, timeout=600):
    """
    Have a daemon run with the files that there are: restart it, after this job, if it is older.

    name
        The service, ``salt-minion`` or ``salt-master``.
    files
        What the daemon reads when it starts: paths, or globs of them.
    timeout
        Seconds after which ``multimaster.status`` says that the restart is still to come.

    Not a watch: Salt looks for ``mod_watch`` before the first state has run, and on a node that
    does not have this module yet it would load every other module in search of it.
    """
    ret = _ret(name)
    newer = __salt__["multimaster.stale"](name, files, config_dir)
    to_be_written = __opts__["test"] and __salt__["service.status"](name) and _changed_here(files)
    if not newer and not to_be_written:
        ret["comment"] = f"{name} runs with its present configuration, or not at all"
        return ret
    return _restart(ret, timeout, config_dir)


def restarted(name, config_dir, timeout=600):
    """
    Restart a daemon after this job; to be used with ``onchanges``.

    name
        The service.
    timeout
        As for ``current``.
    """
    return _restart(_ret(name), timeout, config_dir)


def withdrawn(name, config_dir):
    """
    Have a restart that was asked for not happen: it would start a daemon that is to stop.

    name
        The service.
    """
    ret = _ret(name)
    ret["comment"] = f"No restart of {name} is to come"
    if __salt__["multimaster.withdraw"](name, config_dir, test=__opts__["test"]):
        ret["changes"] = {"restart": "withdrawn"}
        if __opts__["test"]:
            ret.update(result=None, comment=f"A restart of {name} would be withdrawn")
    return ret


def left(name, config_dir):
    """
    Remove the key pair that the formula gave to this host's master, after a backup.

    name
        The master's service, which must have been stopped.
    """
    ret = _ret(name)
    try:
        plan = __salt__["multimaster.leave"](name, config_dir, test=True)
        if not plan["removed"]:
            ret["comment"] = "There is no key pair that the formula installed"
            return ret
        ret["changes"] = {"removed": plan["removed"]}
        if __opts__["test"]:
            ret["result"] = None
            ret["comment"] = "The key pair would be removed"
            return ret
        done = __salt__["multimaster.leave"](name, config_dir)
    except (CommandExecutionError, OSError) as err:
        return _failed(ret, str(err))
    ret["comment"] = f"Removed the key pair; a copy is in {done['backup']}"
    return ret


def another_master(name, config_dir):
    """
    Fail unless another declared master lets this host's minion in: a guard before one is stopped.

    name
        Shown only.
    config_dir
        Directory of the configuration of this host's daemons.
    """
    ret = _ret(name)
    up = __salt__["multimaster.other_masters_up"](config_dir=config_dir)
    if not up:
        return _failed(ret, "No other declared master lets this host's minion in; this one stays")
    ret["comment"] = f"Also there: {', '.join(up)}"
    return ret


def _ret(name):
    return {"name": name, "changes": {}, "result": True, "comment": ""}


def _some(names):
    """Tell how many there are, and name some."""
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} ({', '.join(sorted(names)[:NAMED])}{rest})"


def _failed(ret, comment):
    return {**ret, "changes": {}, "result": False, "comment": comment}


def _changed_here(files):
    """Tell whether an earlier state of this run changes a file, or a directory that it is in."""
    names = [result["name"] for result in __running__.values() if result.get("changes")]
    return any(path == name or path.startswith(f"{name}/") for path in files for name in names)


def _restart(ret, timeout, config_dir):
    ret["changes"] = {"restart": "after this job"}
    if __opts__["test"]:
        ret["result"] = None
        ret["comment"] = f"{ret['name']} would be restarted after this job"
        return ret
    try:
        __salt__["multimaster.restart"](ret["name"], timeout, config_dir)
    except CommandExecutionError as err:
        return _failed(ret, str(err))
    ret["comment"] = f"{ret['name']} is restarted after this job"
    return ret


def _master_options(declaration, config_dir, extension_dir):
    """Return the content of the master's drop-in."""
    existing = _existing("master", config_dir)
    topology = __utils__["multimaster_topology.parse"](declaration)
    # Who signs goes on if it is applied from a master that has no signing pair to offer.
    signs = topology.signing and (
        __salt__["multimaster.signing_offered"]() or __salt__["multimaster.signs"](config_dir)
    )
    autosign = {}
    if topology.autosign:
        directory = __salt__["multimaster.autosign_dir"](config_dir)
        autosign = __utils__["multimaster_topology.autosign_options"](topology, directory)
    options = __utils__["multimaster_topology.master_options"](
        topology, __opts__["id"], extension_dir, existing, signs, autosign
    )
    override = __utils__["multimaster_topology.overrides"](topology)
    if refused := _unstated("master", options, override, config_dir):
        raise CommandExecutionError(refused)
    if misfits := _misfits("master", topology, {**existing, **options}):
        raise CommandExecutionError(misfits)
    interface = options.get("interface", existing.get("interface", "0.0.0.0"))  # noqa: S104
    fitting = __utils__["multimaster_topology.misplaced"](topology, __opts__["id"], interface)
    if fitting:
        raise CommandExecutionError(f"interface: got {interface!r}; supported: {fitting}")
    return options


def _existing(role, config_dir):
    """Return what a role's files say without our drop-in, secrets included."""
    found = {}
    __salt__["multimaster.check_config"](role, None, config_dir, take=found.update)
    return found


def _unstated(role, options, override, config_dir):
    """Return in words what a drop-in would replace without having been told to."""
    looked_at = __utils__["multimaster_topology.replacing"](options)
    lines = __salt__["multimaster.unstated"](role, looked_at, override, config_dir)
    if any(line.split(":")[0] in __utils__["multimaster_topology.at_the_edge"]() for line in lines):
        lines.append(
            "What masters serve is what minions dial: if what is there is right, declare it under "
            "master:config and minion:config"
        )
    return "\n".join(["Nothing is replaced without being told to:", *lines]) if lines else ""


def _misfits(role, topology, effective):
    """Return in words what of a host's options the other role would not understand."""
    lines = __utils__["multimaster_topology.misfits"](topology, role, effective)
    return "\n".join([f"With what the {role}'s files say on this host:", *lines]) if lines else ""


def _write_drop_in(name, role, options, config_dir, prepare=None):
    """Check the drop-in with Salt's loader, then leave the writing to ``file.serialize``."""
    try:
        __salt__["multimaster.check_config"](role, options, config_dir)
        changes = __salt__["multimaster.config_changes"](role, options, config_dir)
        if prepare and not __opts__["test"]:
            prepare()
    except CommandExecutionError as err:
        return _failed(_ret(name), str(err))
    ret = __states__["file.serialize"](
        name,
        dataset=options,
        serializer="yaml",
        # The daemon's group reads it, the world does not: options may hold secrets.
        group=__salt__["multimaster.daemon_group"](role, config_dir),
        mode="0640",
        makedirs=True,
        dir_mode="0755",
        show_changes=False,
    )
    if ret["changes"]:
        # Without secrets; and the same in test mode, which Salt words otherwise. There is none
        # where the file says in another way what was so before.
        ret["changes"] = changes or {"drop-in": "written"}
    return ret
