"""
Deploy a multi-master topology, or restart its masters, one step after the other and each looked at.

For the states of the same name, which ``multimaster.orch.deploy`` and ``multimaster.orch.restart``
consist of.  Every function returns what it did (``changes``), what stands in the way
(``problems``) and what else there is to say (``notes``).
"""

import contextlib
import functools
import logging
import pathlib
import sys
import time

import psutil
import salt.client
import salt.utils.event
import salt.utils.minions
import salt.version
from salt.exceptions import SaltException

log = logging.getLogger(__name__)

__virtualname__ = "multimaster_orch"

# Seconds between two looks at the same thing, at least and at most.
POLL, LONGEST_POLL = 1, 5
# Seconds to wait for the answer of a minion that is there, of one that may not be back yet, and
# of one that has much to do; whoever says that it still works on it is waited for longer.
ANSWER = 10
GLANCE = 3
WORK = 30
# Looks in a row that have to be alike, beside the seconds, before there is no progress: on a slow
# machine each takes longer.
ALIKE = 10
# Exit statuses, when called by salt-run itself; see docs/deploy.md.
PROBLEM, SLOW = 1, 3
# How many minions may have something to do at the same time, whatever a batch may have: all of
# them may share processors, and Salt asks whoever is late once more, which is more to do.
TOGETHER = 10
APPLY = "multimaster"
INSIDE = (
    "this runs in a process of the master that it is to restart, and would end with it: give the "
    "command to salt-run, on a master's host"
)
# What the hosts of declared masters have to prove with the masters' key, since a decision hangs on
# it.  What a minion on such a host says of itself, a state run's result included, is as good as
# what any minion says.
PROVED = (
    "multimaster.report",
    "multimaster_orch.ask",
    "multimaster_orch.connections",
    "multimaster_orch.facts",
    "multimaster_orch.unfinished",
)
# What a utility module cannot get from Salt's loader by itself.
TOOLS = ("multimaster_keypair.proved", "multimaster_said.check")
# What multimaster.synced looks at.
SYNC = (
    "saltutil.sync_utils",
    "saltutil.sync_states",
    "saltutil.sync_modules",
    "saltutil.sync_engines",
)


def __virtual__():
    return __virtualname__


def preflight(plan=None):
    """
    Look for everything that speaks against a deployment, and change nothing.

    plan
        What ``multimaster_deploy.plan`` has made of a declaration; this master's own unless given.

    The formula's modules are brought to the minions, which could tell nothing without.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster_orch.preflight
    """
    plan = plan or _own_plan()
    accepted = _accepted()
    # Older modules on a master's host prove nothing, not even who is connected to it.
    _sync(plan, _command(plan, accepted & set(plan.masters), "test.ping"))
    present, slow = _present(plan, accepted)
    _say(f"preflight: {len(present)} of {len(accepted)} minions answer")
    _sync(plan, present)
    facts, clocks = {}, {}
    masters = set(plan.masters) & present
    for some in (masters, *_groups(plan, present - masters, TOGETHER)):
        asked = time.time()
        arguments = [some is masters]
        for name, answer, told in _answers(plan, some, "multimaster_orch.facts", arguments, WORK):
            # Also of one that proves nothing: all that comes of it here is what speaks against.
            row = facts[name] = __utils__["multimaster_deploy.facts"](answer, to_be=True)
            if isinstance(row, dict):
                # Told between the question and the answer.
                clocks[name] = (row["clock"] - told, row["clock"] - asked)
    missing = present - set(facts)
    facts |= dict.fromkeys(missing, "did not answer when asked for its facts")
    taken, reached = _try_ports(plan, masters, facts)
    problems = __utils__["multimaster_deploy.preflight"](
        plan,
        version=salt.version.__version__,
        accepted=frozenset(accepted),
        facts=facts,
        clocks=clocks,
        reached=reached,
        taken=taken,
    )
    notes = [f"{len(present)} minions and {len(plan.masters)} masters looked at"]
    notes += [
        f"{name}: {row['unproved']}; as of one that is to be a master"
        for name, row in sorted(facts.items())
        if isinstance(row, dict) and "unproved" in row
    ]
    # Whether a slow minion counts is for the step that is about it.
    notes += _left_out(plan, accepted - present, slow)
    return _outcome(problems, notes=notes)


def deploy_masters(plan=None, test=False):
    """
    Apply the formula to the masters, one at a time, the one that this runs on last.

    Each has to be well before the next one's turn; see ``multimaster_deploy.unhealthy``.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster_orch.deploy_masters test=True
    """
    plan = plan or _own_plan()
    facts, problems = _until_told(plan, plan.masters, to_be=True)
    if problems:
        return _outcome(problems)
    here = _here(plan, facts)
    masters = __utils__["multimaster_deploy.order"](plan.masters, here)
    # Whoever proves nothing has the formula applied to it, whatever it says.
    running = [n for n in masters if _daemon(facts, n, "master") and "unproved" not in facts[n]]
    done = _in_place(plan, running)
    if test:
        todo = [name for name in masters if name not in done]
        return _outcome([], dict.fromkeys(todo, "would be deployed"), _already(done))
    if here and here not in done and _inside():
        return _outcome([INSIDE])
    changes, ready = {}, []
    for number, name in enumerate(masters, 1):
        step = f"master {number} of {len(masters)}, {name}"
        ready.append(name)
        if name in done:
            _say(f"{step}: has the declared configuration already")
            problems = _until_well(plan, ready, here)
        else:
            _say(f"{step}: the formula is applied")
            problems = _deploy_master(plan, name, ready, here)
            changes[name] = "deployed"
        if problems:
            return _outcome(
                [f"stopped at {step}", *problems, *_later(masters[number:], "masters")],
                changes,
                _already(done),
            )
        _say(f"{step}: well")
    return _outcome([], changes, _already(done))


def deploy_minions(plan=None, test=False):
    """
    Apply the formula to the minions: one, then two, then four, for as long as that spares time.

    Each batch has to answer on every master (``mode: failover``: on one) before the next one's
    turn.  Minions that are absent at the beginning are left for a later run.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster_orch.deploy_minions test=True
    """
    plan = plan or _own_plan()
    # In a test the masters may be yet to come.
    facts, problems = _until_told(plan, plan.masters, to_be=test)
    if problems:
        return _outcome(problems)
    here = _here(plan, facts)
    # With the masters' own, who are connected, too.
    accepted = _accepted()
    present, slow = _present(plan, accepted)
    notes = _left_out(plan, accepted - present, slow)
    present = present - set(plan.masters)
    done = _in_place(plan, _pointed_at(plan, present))
    unreached = _until_reached(plan, done, here)
    done = [name for name in done if name not in unreached]
    todo = sorted(present - set(done))
    notes += _already(done)
    if test:
        return _outcome([], dict.fromkeys(todo, "would be deployed"), notes, slow)
    if done:
        _say(f"minions: {len(done)} have the declared configuration already")
    changes, started = {}, time.monotonic()
    most = __utils__["multimaster_deploy.largest"](plan.batch, len(todo))
    left, past = todo, []
    while left:
        size = __utils__["multimaster_deploy.batch_size"](past, most)
        batch, left = left[:size], left[size:]
        step = f"batch {len(past) + 1} ({', '.join(batch)})" if past else f"canary {batch[0]}"
        _say(f"{step}: the formula is applied; {len(todo) - len(left)} of {len(todo)} with it")
        begun = time.monotonic()
        problems = _deploy_minions(plan, batch, here)
        changes |= dict.fromkeys(batch, "applied" if problems else "deployed")
        if problems:
            return _outcome(
                [f"stopped at {step}", *problems, *_later(left, "minions")], changes, notes
            )
        past.append((len(batch), (time.monotonic() - begun) / len(batch)))
        _say(f"{step}: well, {past[-1][1]:.1f} s for each")
    if todo:
        each = (time.monotonic() - started) / len(todo)
        notes.append(f"{len(todo)} minions deployed, {each:.1f} s for each")
    return _outcome([], changes, notes, slow)


def restart_masters(plan=None, test=False):
    """
    Restart the masters, one at a time, the one that this runs on last.

    All of them have to be well at the beginning and before each turn, and after it every minion
    that was connected has to be back.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster_orch.restart_masters test=True
    """
    plan = plan or _own_plan()
    if len(plan.masters) < 2:
        return _outcome(["there is no other master; the last one is not restarted"])
    if not test and _inside():
        return _outcome([INSIDE])
    facts, problems = _until_told(plan, plan.masters)
    if problems:
        return _outcome(problems)
    here = _here(plan, facts)
    masters = __utils__["multimaster_deploy.order"](plan.masters, here)
    changes, connected, notes, slow = {}, {}, [], set()
    for number, name in enumerate(masters, 1):
        step = f"master {number} of {len(masters)}, {name}"
        problems = _until_well(plan, masters, here)
        if problems:
            return _outcome(
                [f"{step} is not restarted: not all masters are well", *problems], changes
            )
        if test:
            return _outcome([], dict.fromkeys(masters, "would be restarted"))
        if not connected:
            # From the beginning, so that nobody gets lost on the way.
            accepted = _accepted()
            present, slow = _present(plan, accepted)
            notes = _left_out(plan, accepted - present, slow)
            connected = _connected(plan, masters, present, here)
        # Whoever gives commands on this one should go to another from here on.
        _say(f"{step}: waits for its running jobs")
        problems = _until_finished(plan, name, connected[name], here)
        if not problems:
            _say(f"{step}: restarts")
            problems = _restart_master(plan, name, here)
        if not problems:
            changes[name] = "restarted"
            problems = _until_back(plan, masters, name, connected, here)
        if problems:
            return _outcome(
                [f"stopped at {step}", *problems, *_later(masters[number:], "masters")], changes
            )
        _say(f"{step}: well, with all of its {len(connected[name])} minions")
    return _outcome([], changes, notes, slow)


# Steps


def _deploy_master(plan, name, ready, here):
    """Apply the formula to a master and wait until it is well; return the problems."""
    # A master-to-be proves nothing before, but has to when it is waited for.
    before, problems = _until_told(plan, [name], to_be=True)
    if problems:
        return problems
    connected = _asked(plan, name, _accepted(), "test.ping", here)
    result = _command(plan, [name], "state.apply", [APPLY], WORK).get(name)
    failed = __utils__["multimaster_deploy.failures"](result)
    if failed:
        return [f"{name}: {line}" for line in failed]
    roles = {
        # One that did not run before has been started in the meantime.
        role
        for role in __utils__["multimaster_deploy.restarts"](result)
        if _daemon(before, name, role) or "unproved" in before[name]
    }
    problems = _until_restarted(plan, {name: roles}, before)
    if problems:
        return problems
    return _until_well(plan, ready, here, connected if plan.mode == "hot" else ())


def _deploy_minions(plan, batch, here):
    """Apply the formula to some minions and wait until they answer; return the problems."""
    before, problems = _until_told(plan, batch)
    asked = [name for name in batch if isinstance(before.get(name), dict)]
    results = _anywhere(plan, asked, "state.apply", [APPLY], WORK)
    roles = {}
    for name in asked:
        failed = __utils__["multimaster_deploy.failures"](results.get(name))
        problems += [f"{name}: {line}" for line in failed]
        if not failed:
            roles[name] = __utils__["multimaster_deploy.restarts"](results[name])
    # Also after a failure: whoever succeeded is not left in the middle of its restart.
    problems += _until_restarted(plan, roles, before)
    for name, masters in _until_reached(plan, roles, here).items():
        problems.append(
            f"{name}: does not answer to {', '.join(masters)}; see multimaster-restart.log and "
            "the minion's log on it, and whether it reaches their ports"
        )
    if problems:
        problems.append("when that is repaired, run this again: what is done is not done again")
    return problems


def _restart_master(plan, name, here):
    """Restart a master, after the jobs on its host, and wait until it is another process."""
    before, problems = _until_told(plan, [name])
    if problems:
        return problems
    if not _daemon(before, name, "master"):
        return [f"{name}: its master does not run"]
    arguments = [plan.service, plan.restart_timeout, plan.config_dir]
    answer = _command(plan, [name], "multimaster.restart", arguments).get(name)
    if answer is not True:
        return [f"{name}: {answer or 'its minion does not answer'}"]
    return _until_restarted(plan, {name: {"master"}}, before)


# Conditions


class _Patience:
    """How many seconds to wait for answers: longer each time that somebody has given none."""

    def __init__(self):
        self.silent, self.seconds = 0, GLANCE

    def learn(self, complete):
        # They are being restarted; or have so much to do that a look is one thing more to do.
        self.silent = 0 if complete else self.silent + 1
        self.seconds = min(WORK, GLANCE * 2 ** max(0, self.silent - 1))


def _until(seconds, look, good):
    """
    Look until what is seen is good, or there is no progress any more; return what was seen last.

    Progress is to see what was not seen before: who comes and goes makes none.

    seconds
        From the last progress on, or what tells how many; and so many looks as are said above have
        to show none.
    """
    known, alike, since = set(), 0, time.monotonic()
    while True:
        began = time.monotonic()
        seen = look()
        if good(seen):
            return seen
        now = time.monotonic()
        alike += 1
        if repr(seen) not in known:
            known.add(repr(seen))
            alike, since = 0, now
        limit = seconds() if callable(seconds) else seconds
        if alike >= ALIKE and now - since > limit:
            return seen
        # A look that took long was work for daemons that are wanted elsewhere.
        time.sleep(min(LONGEST_POLL, max(POLL, now - began)))


def _until_told(plan, ids, to_be=False):
    """
    Wait until some hosts have told their facts; return these, and the problems.

    to_be
        Whether those of a declared master count though it does not prove them, as one cannot that
        has no pair yet.  Nothing may follow from them but that the formula is applied to it.
    """
    found, patience = {}, _Patience()

    def look():
        left = [name for name in ids if not isinstance(found.get(name), dict)]
        found.update(_facts(plan, left, patience.seconds, to_be))
        patience.learn(all(name in found for name in left))
        # Facts that make no sense are words, and no better the next time.
        return sorted(found)

    _until(plan.timeout, look, lambda told: set(told) >= set(ids))
    problems = [
        f"{name}: {found.get(name, 'tells no facts, so that nothing is known of its daemons')}"
        for name in ids
        if not isinstance(found.get(name), dict)
    ]
    return found, problems


def _until_restarted(plan, roles, before):
    """
    Wait until the daemons of some hosts are other processes than before, and on their new masters.

    Whoever waits, for its jobs, for another master's restart or for a new master to let it in, says
    so; what it says is progress as long as it changes.
    """
    waiting = {name: set(some) for name, some in roles.items() if some}
    told, heard = {}, dict.fromkeys(waiting, time.monotonic())
    patience = _Patience()

    def look():
        facts = _facts(plan, waiting, patience.seconds)
        patience.learn(len(facts) == len(waiting))
        told.update(facts)
        for name in list(waiting):
            row = facts.get(name)
            waiting[name] = __utils__["multimaster_deploy.under_way"](
                waiting[name], before[name], row, _services(plan)
            )
            if not waiting[name]:
                del waiting[name]
        heard.update(dict.fromkeys(facts, time.monotonic()))
        progress = __utils__["multimaster_deploy.progress"]
        return {name: (sorted(waiting[name]), progress(told.get(name))) for name in waiting}

    def seconds():
        # Who answers may wait for its jobs; of one that does not there is less to be hoped for.
        late = time.monotonic() - plan.timeout
        answers = any(heard[name] > late for name in waiting)
        return max(plan.timeout, plan.restart_timeout if answers else 0)

    _until(seconds, look, lambda busy: not busy)
    return [
        f"{name}: " + __utils__["multimaster_deploy.stuck"](sorted(left), told.get(name))
        for name, left in waiting.items()
    ]


def _services(plan):
    return {"master": plan.service, "minion": plan.minion_service}


def _until_reached(plan, ids, here):
    """Wait until minions have answered as they should; return the others, and what they lack."""
    answered = {name: set() for name in plan.masters}
    patience = _Patience()

    def lacking():
        return __utils__["multimaster_deploy.lacking"](plan.mode, ids, answered)

    def look():
        found = {}
        for master, there in answered.items():
            # Whoever was seen is not asked again.
            left = [name for name, without in lacking().items() if master in without]
            answers = _asked(plan, master, left, "test.ping", here, (), patience.seconds)
            there.update(answers)
            found |= answers
        patience.learn(found)
        return lacking()

    return _until(plan.timeout, look, lambda found: not found)


def _until_well(plan, ready, here, connected=()):
    """Wait until the masters that have been seen to are well; return the problems."""
    patience = _Patience()
    # Whoever was seen is not asked again, but for the masters' own.
    back = set()

    def look():
        left = set(connected) - back
        problems, silent = _health(plan, ready, here, left, patience.seconds, back)
        patience.learn(not silent)
        return problems

    return _until(plan.timeout, look, lambda found: not found)


def _until_finished(plan, name, ids, here):
    """Wait until the jobs of a master that run now have ended; return the problems."""
    first, asked, patience = {}, set(), _Patience()

    def left():
        # Whoever has told before is asked for the jobs that were there then.
        arguments = [sorted(ids), patience.seconds, plan.config_dir]
        answer = _command(
            plan, [name], "multimaster_orch.unfinished", arguments, 3 * patience.seconds
        )
        row = __utils__["multimaster_deploy.unfinished"](answer.get(name))
        if isinstance(row, str):
            patience.learn(False)
            return row, sorted(set(ids) - asked)
        jobs, told = row
        patience.learn(told >= set(ids))
        # Others may have begun since, and will have their own time.
        for minion in told - asked:
            first.update({jid: job for jid, job in jobs.items() if minion in job["minions"]})
        asked.update(told)
        for jid in list(first):
            still = jobs.get(jid, {"minions": ()})["minions"]
            # Who does not tell now may still work on it.
            minions = [m for m in first[jid]["minions"] if m in still or m not in told]
            first[jid] = {**first[jid], "minions": minions}
            if not minions:
                del first[jid]
        return first, sorted(set(ids) - asked)

    jobs, silent = _until(plan.restart_timeout, left, lambda seen: not any(seen))
    if isinstance(jobs, str):
        return [f"{name}: {jobs}"]
    return [
        f"{name}: its job {jid} ({job['function']}) still runs on {', '.join(job['minions'])}, and "
        f"nothing has changed for {plan.restart_timeout:g} s"
        for jid, job in jobs.items()
    ] + [f"{minion}: does not tell whether it works on a job of {name}" for minion in silent]


def _until_back(plan, masters, name, connected, here):
    """Wait until all masters are well again, and every minion is where it was."""
    problems = _until_well(plan, masters, here)
    if problems:
        return problems
    hot = plan.mode == "hot"
    # In failover mode they move to another master meanwhile, and may stay there.
    left = set(connected[name] if hot else set().union(*connected.values()))
    patience = _Patience()

    def missing():
        # Whoever was seen is not asked again: each answer is work for a machine that has enough.
        if hot:
            found = _asked(plan, name, left, "test.ping", here, (), patience.seconds)
        else:
            found = _anywhere(plan, left, "test.ping", (), patience.seconds)
        patience.learn(found)
        left.difference_update(found)
        return sorted(left)

    where = name if hot else "no master"
    does = "does not answer to" if hot else "answers to"
    return [
        f"{minion}: was connected, and {does} {where}"
        for minion in _until(plan.timeout, missing, lambda found: not found)
    ]


def _present(plan, ids):
    """
    Return the minions that answer, and those that may be connected and do not answer in time.

    The rest are absent: a master has no more connections than minions that have answered.
    """
    found, patience = set(), _Patience()

    def look():
        answers = _anywhere(plan, ids - found, "test.ping", (), patience.seconds)
        patience.learn(answers)
        found.update(answers)
        return sorted(found), _connected_beside(plan, found)

    # How many there are may not be known: then nobody is taken to be absent.
    _, beside = _until(plan.timeout, look, lambda seen: set(seen[0]) >= ids or seen[1] == 0)
    return found, (ids - found if beside != 0 else set())


def _connected_beside(plan, found):
    """Return how many minions are connected and have not answered; None if that is not known."""
    seats = __context__.get("multimaster_orch.seats", {})
    hosts = set(plan.masters) & found
    total = __utils__["multimaster_trees.subscribed"](
        __opts__, __utils__["multimaster_gather.tables"]()
    )
    if not total:
        return None
    beside = max(0, total - len({name for name in found if seats.get(name) is None}))
    if plan.mode != "failover":
        return beside
    told = _command(plan, sorted(hosts), "multimaster_orch.connections", [plan.config_dir])
    for name in plan.masters:
        number = told.get(name)
        if not number or not isinstance(number, int):
            # A master-to-be has none, and a host that does not tell may have any number.
            return None
        seated = {minion for minion in found if seats.get(minion) == name}
        # The minions on the masters' hosts are connected to all masters.
        beside += max(0, number - len(seated | hosts))
    return beside


# Looks


def _health(plan, ready, here, connected, seconds, back):
    """
    Return what is wrong with the masters that have been seen to, and whether anybody was silent.

    back
        Is given those of ``connected`` that have answered.
    """
    reports = _command(plan, ready, "multimaster.report", [seconds], 2 * seconds)
    answers = {}
    silent = len(reports) < len(ready)
    for name in ready:
        wanted = set(ready) | (set(connected) if name == ready[-1] else set())
        answers[name] = _asked(plan, name, wanted, "test.ping", here, (), seconds)
        silent = silent or not wanted <= set(answers[name])
    back.update(set(answers[ready[-1]]) & set(connected))
    found = __utils__["multimaster_deploy.unhealthy"](ready, reports, answers, connected)
    return found, silent


def _connected(plan, masters, present, here):
    """Return master -> the minions that answer a command given on it."""
    answered = {name: set() for name in masters}
    patience = _Patience()

    def look():
        for name, there in answered.items():
            there.update(
                _asked(plan, name, present - there, "test.ping", here, (), patience.seconds)
            )
        patience.learn(all(there >= present for there in answered.values()))
        return {name: sorted(there) for name, there in answered.items()}

    def complete(seen):
        if plan.mode == "hot":
            return all(set(there) >= present for there in seen.values())
        return set().union(*seen.values()) >= present

    _until(plan.timeout, look, complete)
    return answered


def _pointed_at(plan, ids):
    """Return the minions that are configured for the declared masters."""
    addresses = list(plan.masters.values())
    told = {}
    for some in _groups(plan, ids, TOGETHER):
        told |= _anywhere(plan, some, "multimaster.masters", (), WORK)
    return sorted(
        name
        for name, lists in told.items()
        if isinstance(lists, dict) and lists.get("configured") == addresses
    )


def _in_place(plan, ids):
    """Return the hosts that the formula would change nothing on, some asked at a time."""
    found = []
    for some in _groups(plan, ids):
        _say(f"{', '.join(some)}: looks whether there is anything to do")
        results = _anywhere(plan, some, "state.apply", [APPLY, "test=True"], WORK)
        found += [
            name
            for name, result in sorted(results.items())
            if not __utils__["multimaster_deploy.failures"](result)
            and not __utils__["multimaster_deploy.changes"](result)
        ]
    return found


def _groups(plan, ids, least=1):
    """Yield minions, as many at a time as a batch may have, or ``least``."""
    ids = sorted(ids)
    size = max(least, __utils__["multimaster_deploy.largest"](plan.batch, len(ids)))
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _facts(plan, ids, timeout=ANSWER, to_be=False):
    told = _anywhere(plan, ids, "multimaster_orch.facts", (), timeout)
    return {name: __utils__["multimaster_deploy.facts"](row, to_be) for name, row in told.items()}


def _daemon(facts, name, role):
    """Return what identifies a host's daemon; None if it does not run, or nothing is known."""
    row = facts.get(name)
    return row["daemons"][role] if isinstance(row, dict) else None


def _here(plan, facts):
    """Return the id of the declared master that this runs on, or None."""
    # Not the master's own id, which before the formula follows from the host's name.
    try:
        process = psutil.Process(int(pathlib.Path(__opts__["pidfile"]).read_text()))
        own = [process.pid, process.create_time()]
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
    proved = [name for name in plan.masters if "unproved" not in facts.get(name, ())]
    return next((name for name in proved if _daemon(facts, name, "master") == own), None)


def _inside():
    """Tell whether this runs in a process of this master, as for salt-api, and ends with it."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        pid = int(pathlib.Path(__opts__["pidfile"]).read_text())
        return pid in [process.pid for process in psutil.Process().parents()]
    return False


def _try_ports(plan, masters, facts):
    """Have minions connect to the masters' ports, also where there is no master yet."""
    fresh = [name for name in sorted(masters) if not _daemon(facts, name, "master")]
    # Not for longer than the answers can take: they are needed for the master itself.
    arguments = [dict(plan.listens), 10 * ANSWER, plan.config_dir]
    held = _command(plan, fresh, "multimaster_orch.hold_ports", arguments)
    addresses = list(plan.masters.values())
    try:
        # All at once, as the ports are not held for long.
        reached = _anywhere(
            plan, facts, "multimaster_orch.reach", [addresses, list(plan.ports)], WORK
        )
    finally:
        pids = {name: row["pid"] for name, row in held.items() if isinstance(row, dict)}
        for name, pid in pids.items():
            if pid:
                _command(plan, [name], "multimaster_orch.release_ports", [pid])
    taken = {
        name: row["taken"] if isinstance(row, dict) else f"its ports could not be held: {row}"
        for name, row in held.items()
    }
    # Where there is a master, it has to let everybody in.
    taken |= {name: [] for name in masters if name not in fresh}
    return taken, reached


def _sync(plan, ids):
    """Bring the formula's modules to the minions that do not have the file server's."""
    brought = 0
    for some in _groups(plan, ids, TOGETHER):
        stale = _stale(plan, some)
        if stale:
            # One job, as each costs a minion about as much as what it does.
            _anywhere(plan, stale, list(SYNC), [[]] * len(SYNC), WORK)
            brought += len(stale)
            _say(f"modules: brought to {brought} minions")
            look = functools.partial(_stale, plan, stale)
            stale = _until(plan.timeout, look, lambda found: not found)
            if stale:
                _say(f"modules: still not the file server's on {', '.join(sorted(stale))}")


def _stale(plan, ids):
    """Return the minions that do not have the file server's modules of the formula."""
    synced = _anywhere(plan, ids, "multimaster.synced", (), WORK)
    return {name for name in ids if synced.get(name) is not True}


def _own_plan():
    return __utils__["multimaster_deploy.plan"](__opts__.get("multimaster"))


# Commands


def _accepted():
    """Return the ids of all minions that this master has accepted."""
    return set(salt.utils.minions.CkMinions(__opts__).check_minions("*")["minions"])


def _anywhere(plan, ids, function, arguments=(), timeout=ANSWER):
    """Give minions a command, on this master and, in failover mode, on that which has them."""
    found = {}
    for name, answer, _ in _answers(plan, ids, function, arguments, timeout):
        found[name] = answer
    return found


def _answers(plan, ids, function, arguments=(), timeout=ANSWER):
    """Yield id, answer, and the time of the answer."""
    # The master through which each was reached the last time; None: this one.
    seats = __context__.setdefault("multimaster_orch.seats", {})
    left = set(ids)
    for expected in (True, False):
        for way in (None, *plan.masters) if plan.mode == "failover" else (None,):
            some = {name for name in left if (seats.get(name) == way) is expected}
            if way is None:
                answers = _commanded(plan, some, function, arguments, timeout)
            else:
                answers = _asked(plan, way, some, function, None, arguments, timeout).items()
            for name, answer in answers:
                yield name, answer, time.time()
                seats[name] = way
                left.discard(name)


def _asked(plan, master, ids, function, here, arguments=(), timeout=ANSWER):
    """Have a master give some minions a command; nothing if it cannot."""
    if not ids:
        return {}
    if master == here:
        return _command(plan, ids, function, arguments, timeout)
    found = {}
    for some, asked, given, read in _questions(plan, ids, function, arguments):
        question = [some, asked, given, timeout, plan.config_dir]
        # It waits that long for whoever is absent.
        told = _command(plan, [master], "multimaster_orch.ask", question, 3 * timeout).get(master)
        found |= _told(read, told, some) if isinstance(told, dict) else {}
    return found


def _command(plan, ids, function, arguments=(), timeout=ANSWER):
    return dict(_commanded(plan, ids, function, arguments, timeout))


def _commanded(plan, ids, function, arguments, timeout):
    """Yield id and answer; nothing while this master is away, which its restart makes it."""
    hardened = __utils__["multimaster_gather.hardened"]
    within = __utils__["multimaster_gather.whole"](timeout)
    for some, asked, given, read in _questions(plan, ids, function, arguments):
        try:
            # A new one each time: a master's restart changes what proves who gives the command.
            with salt.client.get_local_client(mopts=__opts__) as client:
                for part in hardened(client).cmd_iter(
                    some,
                    asked,
                    given,
                    tgt_type="list",
                    timeout=within,
                    gather_job_timeout=min(within, ANSWER),
                ):
                    for name, row in part.items():
                        yield from _told(read, {name: row.get("ret")}, some).items()
        except (SaltException, OSError) as err:
            log.info("%s: %s", function, err)


def _questions(plan, ids, function, arguments):
    """
    Yield minions, function and arguments of a question, and what reads a minion's answer; another
    one for the hosts of declared masters if these have to prove it.
    """
    hosts = set(ids) & set(plan.masters) if function in PROVED else set()
    if hosts:
        asked = __utils__["multimaster_gather.signed"](function, arguments)
        yield sorted(hosts), "multimaster.signed", asked, functools.partial(_proved, asked)
    if others := set(ids) - hosts:
        told = __utils__["multimaster_said.told"]
        yield sorted(others), function, list(arguments), lambda name, reply: told(function, reply)


def _proved(asked, name, reply):
    """
    Return what a master's host has answered, or in words why that is not known.

    What it says of itself without a proof is marked: see ``_until_told``.
    """
    tools = {tool: __utils__[tool] for tool in TOOLS}
    told, why = __utils__["multimaster_gather.proved"](__opts__, tools, asked, name, reply)
    if why is None:
        return told
    if asked[0] == "multimaster_orch.facts":
        claim = __utils__["multimaster_keypair.claimed"](reply)
        claim, odd = __utils__["multimaster_said.check"](asked[0], claim)
        if odd is None:
            return {**claim, "unproved": why}
    return why


def _told(read, answers, ids):
    """
    Leave out who did not answer, which some of Salt's clients say with False, and who was not
    asked.  What is no answer is a text that says so.
    """
    return {
        name: read(name, answer)
        for name, answer in answers.items()
        if name in ids and answer not in (False, None)
    }


# What is said


def _outcome(problems, changes=None, notes=(), slow=()):
    shown = __utils__["multimaster_said.lines"]
    return {
        "problems": [shown(line) for line in problems],
        "changes": changes or {},
        "notes": [shown(line) for line in notes],
        "slow": sorted(slow),
        # salt-run's exit status
        "retcode": PROBLEM if problems else SLOW if slow else 0,
    }


def _left_out(plan, silent, slow):
    """Say who was left out and why; of the masters' own minions others say more."""
    absent = sorted(silent - slow - set(plan.masters))
    late = sorted(slow - set(plan.masters))
    return [
        *([f"absent, and left for a later run: {', '.join(absent)}"] if absent else ()),
        *([f"slow, and left for a later run: {', '.join(late)}"] if late else ()),
    ]


def _already(done):
    return [f"in place already: {', '.join(done)}"] if done else []


def _later(left, what):
    return [f"{what} left as they are: {', '.join(left)}"] if left else []


def _say(message):
    """Tell how far this is: on standard error, so that the result can be read by programs."""
    message = __utils__["multimaster_said.lines"](message)
    print(message, file=sys.stderr, flush=True)
    # For whoever watches this master's bus; which is away while this master restarts.
    with (
        contextlib.suppress(SaltException, OSError),
        salt.utils.event.get_master_event(__opts__, __opts__["sock_dir"], listen=False) as bus,
    ):
        bus.fire_event({"message": message}, "multimaster/orch/progress")
