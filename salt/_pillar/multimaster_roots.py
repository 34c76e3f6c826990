"""
Compiles replicated pillar roots: each compilation from one snapshot.

Takes the place of ``pillar_roots``, and so comes before the other external pillars, or after them
with ``ext_pillar_first``.  See docs/roots-replicate.md.
"""

import copy
import os

import salt.pillar
from salt.exceptions import SaltRenderError

__virtualname__ = "multimaster_roots"


def __virtual__():
    return __virtualname__


def ext_pillar(minion_id, pillar):
    """
    Return the pillar of a minion from the newest snapshot, as Salt makes it from ``pillar_roots``.

    Fails, and so keeps state runs from beginning, while there is no snapshot, or while somebody's
    edit in the served tree has not been put aside yet.
    """
    directory = os.path.join(__opts__["cachedir"], "multimaster", "roots")
    store = __utils__["multimaster_roots.store"](directory)
    # Once: whatever becomes the newest meanwhile is for the next compilation.
    name = store.current()
    if name is None:
        raise SaltRenderError("there is no snapshot of the pillar roots on this master yet")
    opts = copy.deepcopy(__opts__)
    opts["pillar_roots"] = {
        environment: [
            store.tree(name, f"pillar_roots/{environment}/{number}") for number in range(count)
        ]
        for environment, count in store.manifest(name).environments("pillar_roots").items()
    }
    # Salt does that once, with all pillars together.
    opts |= {"pillar_opts": False, "decrypt_pillar": []}
    if opts.get("ext_pillar_first"):
        opts["pillar"] = copy.deepcopy(dict(pillar))
    compiler = salt.pillar.Pillar(
        opts, __grains__, minion_id, opts.get("saltenv"), pillarenv=opts.get("pillarenv")
    )
    compiled = compiler.compile_pillar(ext=False)
    # Afterwards, for somebody may be at work in there just now.
    damage = store.damage(name, "pillar_roots")
    if damage:
        raise SaltRenderError(f"edited in the served tree: {', '.join(damage.paths[:5])}")
    return compiled
