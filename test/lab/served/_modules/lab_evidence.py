"""Evidence of executed jobs: served in a laboratory, whose load has its minions run it."""

import os
import time


def note(seconds=0, **kwargs):
    """
    Write down the id of the job that runs this, and say so after some seconds.

    CLI Example:

    .. code-block:: bash

        salt web1 lab_evidence.note
    """
    # One write of one line to the end of a file: jobs that run at once do not mix.
    with open(os.path.join(__opts__["cachedir"], "lab-evidence"), "a") as stream:
        stream.write(kwargs["__pub_jid"] + "\n")
    time.sleep(seconds)
    return True
