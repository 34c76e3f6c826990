"""Options are compared leaf by leaf, and no secret is shown on the way."""

from __future__ import annotations

import json

import pytest

KEY = b"k" * 32
WORD = "hunter2hunter2"


@pytest.fixture(scope="module")
def options(by_path):
    return by_path("salt/_utils/multimaster_options.py")


def test_a_difference_is_named_down_to_the_leaf(options):
    old = {"peer": {"web.*": ["test.ping", "grains.get"]}, "worker_threads": 5}
    new = {"peer": {"web.*": ["test.ping", "cmd.run"]}, "worker_threads": 5, "timeout": 9}
    assert options.differences(old, new, KEY) == {
        "peer:web.*:1": {"old": "grains.get", "new": "cmd.run"},
        "timeout": {"new": 9},
    }


@pytest.mark.parametrize(
    "secret",
    [
        {"mysql.pass": WORD},
        {"ext_pillar": [{"cmd_json": f"curl -u me:{WORD} https://example.com"}]},
        {"gitfs_password": WORD},
        {"gitfs_remotes": [{f"https://me:{WORD}@example.com/a.git": []}]},
        {"gitfs_remotes": [f"https://me:{WORD}@example.com/a.git"]},
        {"gitfs_remotes": [{"https://example.com/a.git": [{"password": WORD}]}]},
        {"schedule": {"job": {"function": "x.y", "kwargs": {"word": WORD}}}},
        {"custom": {"pin": WORD}},
    ],
)
def test_a_secret_is_hashed_and_its_change_is_seen(options, secret):
    other = json.loads(json.dumps(secret).replace(WORD, WORD[::-1]))
    found = options.differences(secret, other, KEY)
    assert found
    assert WORD not in repr(found)
    assert WORD[::-1] not in repr(found)


def test_a_hash_says_nothing_without_the_key_of_the_masters(options):
    one, two = (options.shown("mysql.pass", WORD, options.hash_key(pem)) for pem in ("a", "b"))
    assert one.startswith(options.HASHED)
    assert one != two


def test_equal_options_have_no_difference(options):
    assert options.differences({"a": [], "b": {}}, {"a": [], "b": {}}, KEY) == {}
