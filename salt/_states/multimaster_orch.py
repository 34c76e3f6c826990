"""
The steps of an orchestration, for ``salt-run state.orchestrate``; the work is the runner's.
"""

import salt.loader

__virtualname__ = "multimaster_orch"


def __virtual__():
    return __virtualname__


def preflight(name, declaration, extension_dir, remarks=()):
    """
    Fail if anything speaks against a deployment; all findings are shown, and nothing is changed.

    name
        Shown only.
    declaration
        The mapping ``multimaster`` of the pillar, merged over the defaults.
    extension_dir
        Where the masters have the formula's modules.
    remarks
        What is to be warned of.
    """
    return _run(name, "preflight", declaration, extension_dir, {}, remarks)


def masters_deployed(name, declaration, extension_dir):
    """
    Apply the formula to the masters, one at a time, each well before the next one's turn.

    name, declaration, extension_dir
        As for ``preflight``.
    """
    return _run(name, "deploy_masters", declaration, extension_dir, {"test": __opts__["test"]})


def minions_deployed(name, declaration, extension_dir):
    """
    Apply the formula to the minions in growing batches, each looked at on every master.

    name, declaration, extension_dir
        As for ``preflight``.
    """
    return _run(name, "deploy_minions", declaration, extension_dir, {"test": __opts__["test"]})


def masters_restarted(name, declaration, extension_dir, remarks=()):
    """
    Restart the masters, one at a time, and never the last one that is well.

    name, declaration, extension_dir, remarks
        As for ``preflight``.
    """
    arguments = {"test": __opts__["test"]}
    return _run(name, "restart_masters", declaration, extension_dir, arguments, remarks)


def _run(name, function, declaration, extension_dir, arguments, remarks=()):
    ret = {"name": name, "changes": {}, "result": True, "comment": ""}
    if remarks:
        ret["warnings"] = list(remarks)
    # What the file server has, and not what the previous release has left there.
    directories = [path for path in __opts__.get("module_dirs", []) if path != extension_dir]
    opts = {**__opts__, "module_dirs": directories}
    utils = salt.loader.utils(opts)
    findings = ()
    try:
        utils["multimaster_topology.parse"](declaration)
    except ValueError as err:
        findings = str(err).splitlines()
    plan = utils["multimaster_deploy.plan"](declaration, findings)
    done = salt.loader.runner(opts, utils=utils)[f"multimaster_orch.{function}"](plan, **arguments)
    ret["changes"] = done["changes"]
    # Who is slow was not seen to; the exit status is to say so.
    if done["problems"] or done["slow"]:
        ret["result"] = False
    elif done["changes"] and __opts__["test"]:
        ret["result"] = None
    lines = [*done["problems"], *done["notes"]]
    ret["comment"] = "\n".join(lines or ["Done" if done["changes"] else "Nothing to do"])
    return ret
