"""
Salt's ``service`` module over supervisord: the init system of a process-driver host.

Selected with ``providers: {service: supervisor_service}``, so that the unmodified formula manages
services here as it does under systemd.  supervisord knows neither "enabled" nor "masked"; both are
files beside its configuration.
"""

import pathlib
import time
import xmlrpc.client

from salt.exceptions import CommandExecutionError

__virtualname__ = "service"
_RUNNING = ("RUNNING", "STARTING")


def __virtual__():
    if "lab_supervisor" not in __opts__:
        return False, "this minion is no process-driver host of the laboratory"
    return __virtualname__


def get_all():
    """List the services of this host."""
    return sorted(info["name"] for info in _server().getAllProcessInfo())


def available(name):
    """Tell whether supervisord knows the service."""
    return name in get_all()


def missing(name):
    """The opposite of available."""
    return not available(name)


def status(name, sig=None):
    """Tell whether the service runs."""
    return _server().getProcessInfo(name)["statename"] in _RUNNING


def start(name):
    """Start the service and wait until it runs; a masked one is refused."""
    if masked(name):
        raise CommandExecutionError(f"{name} is masked")
    _until_stopped(name)
    if not status(name):
        _server().startProcess(name)
    return status(name)


def stop(name):
    """Stop the service and wait until it is gone."""
    if status(name):
        # supervisord would poll without a pause until the process is gone.
        _server().stopProcess(name, False)
    _until_stopped(name)
    return not status(name)


def restart(name):
    """Stop and start the service."""
    stop(name)
    return start(name)


def enabled(name, **kwargs):
    """Tell whether the service would start with its host."""
    return _flag(name, "enabled").exists()


def disabled(name):
    """The opposite of enabled."""
    return not enabled(name)


def enable(name, **kwargs):
    """Start the service with its host from now on."""
    _flag(name, "enabled").touch()
    return True


def disable(name, **kwargs):
    """Do not start the service with its host any more."""
    _flag(name, "enabled").unlink(missing_ok=True)
    return True


def masked(name, runtime=False):
    """Tell whether the service is kept from starting."""
    return _flag(name, "masked").exists()


def mask(name, runtime=False):
    """Keep the service from starting."""
    _flag(name, "masked").touch()
    return True


def unmask(name, runtime=False):
    """Let the service start again."""
    _flag(name, "masked").unlink(missing_ok=True)
    return True


def offline():
    """Never: without this, Salt would ask the machine's own systemd."""
    return False


def _until_stopped(name):
    """Wait for a stop that is under way; supervisord kills after stopwaitsecs, so it ends."""
    while _server().getProcessInfo(name)["statename"] == "STOPPING":
        time.sleep(0.1)


def _flag(name, what):
    return pathlib.Path(__opts__["lab_supervisor"]["flags"], f"{name}.{what}")


def _server():
    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(serverurl="unix://" + __opts__["lab_supervisor"]["socket"])
    return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor
