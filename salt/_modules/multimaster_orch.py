"""
What an orchestration asks of the minions, and has the minions on the masters' hosts do.
"""

import concurrent.futures
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time

import psutil
import salt.client
import salt.config
import salt.loader
import salt.version
from salt.exceptions import CommandExecutionError, SaltException

__virtualname__ = "multimaster_orch"

# What a master's host may be asked to have its master do.
ASKED = (
    "multimaster.masters",
    "multimaster.signed",
    "multimaster.synced",
    "multimaster_orch.facts",
    "multimaster_orch.reach",
    "saltutil.running",
    "saltutil.sync_engines",
    "saltutil.sync_modules",
    "saltutil.sync_states",
    "saltutil.sync_utils",
    "state.apply",
    "test.ping",
)
# Seconds that the ports of a master-to-be are held at most.
LONGEST = 120
# Seconds for a process to end that was killed.
ENDED = 10
MIB = 1024 * 1024


def __virtual__():
    return __virtualname__


def facts(master=False, config_dir=None):
    """
    Tell what an orchestration wants to know of this host.

    master
        Whether it is to be a master, so that the space on its disk matters.

    Returns ``version`` of Salt, ``clock`` (seconds since the epoch), ``daemons`` (role -> process
    id and start, or None), ``cutover`` and ``restarts`` as ``multimaster.masters`` has them, and
    for a master ``free``: path -> MiB; for one that runs ``serves``, the ports that it listens on,
    and ``transport``, which its files say.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster_orch.facts master=True
    """
    ret = {
        "clock": time.time(),
        "version": salt.version.__version__,
        "daemons": __salt__["multimaster.daemons"](config_dir),
    }
    masters = __salt__["multimaster.masters"]()
    ret |= {name: masters.get(name, {}) for name in ("cutover", "restarts")}
    if master:
        opts = _master_options(config_dir)
        ret["free"] = {path: _free(path) for path in (opts["cachedir"], opts["pki_dir"])}
        if ret["daemons"]["master"]:
            ret["serves"] = _listening(ret["daemons"]["master"][0])
            ret["transport"] = opts["transport"]
    return ret


def hold_ports(options, seconds=60, config_dir=None):
    """
    Have something listen where this host's master will, for a short time; nothing is read from it.

    options
        What the master's configuration is about to say of interface and ports.
    seconds
        After which it ends by itself.

    Returns ``pid``, for ``release_ports``, and ``taken``: the ports that another process has.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster_orch.hold_ports '{}' 10
    """
    opts = _master_options(config_dir, options)
    if opts["ipv6"] and opts["interface"] == "0.0.0.0":  # noqa: S104
        # As the formula sets it where nobody else does.
        opts["interface"] = "::"
    family = socket.AF_INET6 if ":" in opts["interface"] else socket.AF_INET
    taken, numbers = [], []
    with contextlib.ExitStack() as stack:
        for port in (opts["publish_port"], opts["ret_port"]):
            listening = stack.enter_context(socket.socket(family))
            # As the master does; else a connection that has just ended would be in its way.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((opts["interface"].strip("[]"), port))
                listening.listen()
            except OSError:
                taken.append(port)
            else:
                numbers.append(listening.fileno())
        if not numbers:
            return {"pid": None, "taken": taken}
        argv = [sys.executable, __utils__["multimaster_listener.program"]()]
        started = subprocess.run(
            [*argv, str(int(min(seconds, LONGEST))), *map(str, numbers)],
            pass_fds=numbers,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    return {"pid": int(started.stdout), "taken": taken}


def release_ports(pid):
    """
    End what ``hold_ports`` has started, if it has not ended yet.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster_orch.release_ports 4711
    """
    try:
        process = psutil.Process(pid)
        if __utils__["multimaster_listener.program"]() in process.cmdline():
            process.kill()
            process.wait(ENDED)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        pass
    return not psutil.pid_exists(pid)


def reach(addresses, ports, timeout=3):
    """
    Try to connect to ports of some hosts, all at the same time.

    timeout
        Seconds for each.

    Returns address -> port -> ``open``, ``refused``, or what happened instead.

    CLI Example:

    .. code-block:: bash

        salt web1 multimaster_orch.reach '[192.0.2.1, 192.0.2.2]' '[4505, 4506]'
    """
    pairs = [(address, port) for address in addresses for port in ports]
    with concurrent.futures.ThreadPoolExecutor(max(1, len(pairs))) as pool:
        outcomes = list(pool.map(lambda pair: _connect(*pair, timeout), pairs))
    ret = {address: {} for address in addresses}
    for (address, port), outcome in zip(pairs, outcomes, strict=True):
        ret[address][str(port)] = outcome
    return ret


def ask(ids, function, arguments=(), timeout=10, config_dir=None):
    """
    Have this host's master give a command to some of its minions; return what they answer.

    function
        One of the few that an orchestration needs; or several, each with a list of arguments.
    timeout
        Seconds to wait for those that do not say that they still work on it.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster_orch.ask '[web1, web2]' test.ping
    """
    if not set([function] if isinstance(function, str) else function) <= set(ASKED):
        raise CommandExecutionError(f"function: got {function!r}; supported: {', '.join(ASKED)}")
    within = __utils__["multimaster_gather.whole"](timeout)
    try:
        with salt.client.get_local_client(mopts=_configured(config_dir)) as client:
            # Not cmd, which has a text for those that do not answer.
            answers = __utils__["multimaster_gather.hardened"](client).cmd_iter(
                ids,
                function,
                list(arguments),
                tgt_type="list",
                timeout=within,
                gather_job_timeout=within,
            )
            return {name: row["ret"] for part in answers for name, row in part.items()}
    except SaltException as err:
        raise CommandExecutionError(f"the master of {__opts__['id']}: {err}") from err


def connections(config_dir=None):
    """
    Tell how many connections the publisher of this host's master has: one for each minion.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster_orch.connections
    """
    tables = __utils__["multimaster_gather.tables"]()
    return __utils__["multimaster_trees.subscribed"](_configured(config_dir), tables)


def unfinished(ids, timeout=10, config_dir=None):
    """
    List the jobs of this host's master that some of its minions still work on.

    Returns ``jobs``: jid -> ``function`` and ``minions``; and ``told``, the minions that have
    answered: of the others nothing is known.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster_orch.unfinished '[web1, web2]'
    """
    opts = _configured(config_dir)
    answers = ask(ids, "saltutil.running", (), timeout, config_dir)
    load = salt.loader.returners(opts, {})[f"{opts['master_job_cache']}.get_load"]
    jobs, foreign, told = {}, set(), []
    for minion, running in answers.items():
        running, why = __utils__["multimaster_said.check"]("saltutil.running", running)
        if why is not None:
            continue
        told.append(minion)
        for job in running:
            # This one is a job, too.
            function = str(__utils__["multimaster_said.function"](job))
            if function == f"{__virtualname__}.unfinished":
                continue
            jid = str(job.get("jid"))
            if jid not in jobs and jid not in foreign and not load(jid):
                # Whatever it does not know came from another master.
                foreign.add(jid)
            if jid not in foreign:
                row = jobs.setdefault(jid, {"function": function, "minions": []})
                row["minions"].append(minion)
    return {"jobs": jobs, "told": sorted(told)}


def _config_dir(config_dir):
    return config_dir or os.path.dirname(__opts__["conf_file"])


def _configured(config_dir):
    return salt.config.master_config(os.path.join(_config_dir(config_dir), "master"))


def _master_options(config_dir, options=None):
    """Return the options of this host's master, one that is yet to come included."""
    return {**_configured(config_dir), **(options or {})}


def _listening(pid):
    """Return the ports that a daemon and its children listen on; what ends meanwhile has none."""
    ports = set()
    with contextlib.suppress(psutil.Error):
        daemon = psutil.Process(pid)
        for process in (daemon, *daemon.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                ports |= {
                    link.laddr.port
                    for link in process.net_connections("tcp")
                    if link.status == psutil.CONN_LISTEN
                }
    return sorted(ports)


def _free(path):
    """Return the MiB that are free where a path is, or will be."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free // MIB


def _connect(address, port, timeout):
    try:
        socket.create_connection((address, port), timeout).close()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return f"no answer within {timeout} s; packets are dropped, or there is no way"
    except OSError as err:
        return err.strerror or str(err)
    return "open"
