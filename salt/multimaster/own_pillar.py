"""
The pillar that the formula goes by: the master's own, and of a command line only named switches.

Salt merges ``state.apply multimaster pillar={…}`` over the pillar, so that whoever may apply states
could give any host any option, or a key pair of their choice.  Rendered by ``map.jinja`` and by the
execution module, with the merged pillar as ``given``; in the file tree, since a first apply renders
before it brings the modules.
"""

from collections.abc import Mapping

from salt.channel.client import ReqChannel
from salt.exceptions import CommandExecutionError
from salt.pillar import Pillar, RemotePillarMixin
from salt.state import HighState

# What counts on a command line, below ``multimaster``.
SWITCHES = ("replace_keypair",)


def run():
    """
    Return ``multimaster``, that part of the pillar, and ``warnings``, in words, of what the command
    line has there beside the switches.

    Without a master, ``salt-call --local`` is root's on its own host, and may say everything.
    """
    running = HighState.get_active()
    alone = __opts__["file_client"] == "local" and __opts__.get("__role") == "minion"
    if alone and (running is None or __opts__.get("__cli") == "salt-call"):
        return _result(given)
    # Outside of a run that Salt knows of, nobody can tell.
    override = getattr(running.state, "_pillar_override", True) if running else True
    if not override and not _is_cached():
        return _result(given)
    if running is None:
        return _result(_with_switches(_compiled()))
    # Asked for once in a run.
    if "multimaster_own_pillar" not in running.state.state_con:
        running.state.state_con["multimaster_own_pillar"] = _compiled()
    own = running.state.state_con["multimaster_own_pillar"]
    if not override:
        return _result(own)
    own = _with_switches(own)
    said = override.get("multimaster", {}) if isinstance(override, Mapping) else {}
    said = said if isinstance(said, Mapping) else {"multimaster": said}
    return _result(own, sorted(str(name) for name in said if name not in SWITCHES))


def _is_cached():
    """Tell whether the pillar is one that the master has compiled at some time (pillar_cache)."""
    own = given.get("multimaster")
    pair = own.get("keypair") if isinstance(own, Mapping) else None
    return isinstance(pair, Mapping) and pair.get("cached") is True


def _result(pillar, ignored=()):
    warnings = []
    if ignored:
        warnings.append(
            f"Of a pillar on the command line only {', '.join(SWITCHES)} counts, the rest is what "
            f"the master has; ignored: {', '.join(ignored)}"
        )
    return {"multimaster": pillar.get("multimaster", {}), "warnings": warnings}


def _with_switches(pillar):
    """Return a pillar with the switches as they are in the merged one."""
    own, merged = pillar.get("multimaster"), given.get("multimaster")
    if not isinstance(own, Mapping) or not isinstance(merged, Mapping):
        return pillar
    switches = {name: merged[name] for name in SWITCHES if name in merged}
    return {**pillar, "multimaster": {**own, **switches}}


def _compiled():
    """Return this minion's pillar, as its master compiles it now, whatever a command line says."""
    # Or Salt would begin with the merged one.
    opts = {**__opts__, "pillar": {}}
    if opts["file_client"] == "local" and not opts.get("use_master_when_local"):
        source = Pillar(
            opts, opts["grains"], opts["id"], opts["saltenv"], pillarenv=opts["pillarenv"]
        )
        try:
            pillar = source.compile_pillar()
        finally:
            source.destroy()
    else:
        load = {
            "id": opts["id"],
            "grains": dict(opts["grains"]),
            "saltenv": opts["saltenv"],
            "pillarenv": opts["pillarenv"],
            "pillar_override": {},
            "extra_minion_data": RemotePillarMixin().get_ext_pillar_extra_minion_data(opts),
            "ver": "2",
            "cmd": "_pillar",
            # What a master has cached may be the merged one.
            "clean_cache": True,
        }
        with ReqChannel.factory(opts) as channel:
            pillar = channel.crypted_transfer_decode_dictentry(load, dictkey="pillar")
    if not isinstance(pillar, Mapping) or pillar.get("_errors"):
        found = pillar.get("_errors") if isinstance(pillar, Mapping) else type(pillar).__name__
        raise CommandExecutionError(f"no pillar without that of the command line: {found}")
    return pillar
