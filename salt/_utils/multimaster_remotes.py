"""
Asks git remotes whether they answer and have what is named, as the user of a master.

Not a part of the core, since it runs ``git``; here because two execution modules need it.
"""

import concurrent.futures
import os
import pwd
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

# How many are asked at once.
AT_ONCE = 8
# What ssh says of a server that it does not know.
UNKNOWN_HOST = "Host key verification failed."


def ask(remotes: Sequence[Any], user: str, timeout: float) -> list[str | None]:
    """
    Return what is wrong with each of some git remotes, or None.

    remotes
        Of ``multimaster_topology``, with what the masters' options say of them.
    user
        Whom to ask as; only root may ask as another user than itself.
    timeout
        Seconds for each; eight are asked at a time.
    """
    with concurrent.futures.ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        return list(pool.map(lambda remote: _ask(remote, user, timeout), remotes))


def _ask(remote: Any, user: str, timeout: float) -> str | None:
    owner = pwd.getpwnam(user)
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": owner.pw_dir,
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        # As Salt's providers do, but without questions; and a look leaves nothing behind: whoever
        # stands in between would be in the user's known_hosts from then on.
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o UpdateHostKeys=no"
        + (f" -i {shlex.quote(remote.privkey)}" if remote.privkey else ""),
    }
    if not remote.ssl_verify:
        environment["GIT_SSL_NO_VERIFY"] = "true"
    another = owner.pw_uid != os.geteuid()
    try:
        done = subprocess.run(
            ["git", "ls-remote", "--heads", "--tags", "--", remote.url],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd="/",
            check=False,
            user=owner.pw_uid if another else None,
            group=owner.pw_gid if another else None,
            extra_groups=[] if another else None,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout} seconds"
    except OSError as err:
        return str(err)
    if done.returncode:
        if UNKNOWN_HOST in done.stderr:
            return (
                f"{UNKNOWN_HOST} Its host key is not, or another one, in known_hosts of {user} or "
                "in /etc/ssh/ssh_known_hosts"
            )
        said = done.stderr.strip().splitlines() or [f"git ended with {done.returncode}"]
        return said[-1]
    names = {line.split("\t")[1].split("/", 2)[2] for line in done.stdout.splitlines()}
    if remote.branch and remote.branch not in names:
        return f"no branch {remote.branch}; it has {', '.join(sorted(names)) or 'none'}"
    return None
