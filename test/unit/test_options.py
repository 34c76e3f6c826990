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
        {"gitfs_remotes": [f"https://example.com/a.git?x=1&private_token={WORD}&y=2"]},
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


@pytest.mark.parametrize(
    "text",
    [
        f"fatal: unable to access 'https://me:{WORD}@h/a.git/': refused",
        f"https://me:a@{WORD}@h/a",
        f"https://me:a/{WORD}@h/a",
        f"https://{WORD}@h/a",
        f"//server/share username=me,password={WORD},vers=3",
        f"?access_token={WORD}&x=1",
        f"gitfs_password: {WORD}",
        f"[{{'https://h/a': [{{'password': '{WORD} {WORD}'}}]}}]",
        f'{{"api_key": "{WORD}"}}',
        f"mysql.pass: '{WORD}'\nother: 5",
    ],
)
def test_a_text_of_somebody_elses_shows_no_secret(options, text):
    assert WORD not in options.without_secrets(text, KEY)


@pytest.mark.parametrize(
    "text",
    [
        "https://git.example.com:8443/salt.git",
        "ssh://git.example.com/a@b",
        "Permission denied (publickey,password).",
        "fatal: could not read Password for 'https://git.example.com': terminal prompts disabled",
        "'int' object has no attribute 'items'",
    ],
)
def test_what_is_no_secret_is_shown(options, text):
    assert options.without_secrets(text, KEY) == text


def test_a_hash_says_nothing_without_the_key_of_the_masters(options):
    one, two = (options.shown("mysql.pass", WORD, options.hash_key(pem)) for pem in ("a", "b"))
    assert one.startswith(options.HASHED)
    assert one != two


def test_equal_options_have_no_difference(options):
    assert options.differences({"a": [], "b": {}}, {"a": [], "b": {}}, KEY) == {}


def test_what_the_formula_itself_sets_is_shown(options):
    ours = {
        "id": "saltm1",
        "module_dirs": ["/ext"],
        "engines": ["one", {"multimaster": {}}, {"multimaster_minion": {"masters": ["192.0.2.1"]}}],
        "multimaster": {"masters": [{"id": "saltm1", "address": "192.0.2.1"}]},
    }
    shown = {path: sides["new"] for path, sides in options.differences({}, ours, KEY).items()}
    # Anybody's engine but ours.
    assert shown.pop("engines:0").startswith(options.HASHED)
    assert shown == {path: value for path, value in options.leaves(ours).items() if path in shown}
    assert not any(str(value).startswith(options.HASHED) for value in shown.values())


def test_differences_in_words_are_few(options):
    here = {"nodegroups": dict.fromkeys("abcde", "x")}
    words = options.phrases({}, here, KEY, "{path} is {there} there and {here} here")
    assert words.count("is not there there and 'x' here") == 3
    assert words.endswith(", 2 more")


@pytest.mark.parametrize(
    ("resolved", "declared", "expected"),
    [
        ({"a": WORD}, {"a": "sdb://x/y"}, {"a": "sdb://x/y"}),
        ({"a": ["b", {"c": WORD}]}, {"a": ["b", {"c": "sdb://x"}]}, {"a": ["b", {"c": "sdb://x"}]}),
        ({"a": 1, "default": 2}, {"a": 1}, {"a": 1, "default": 2}),
        # Something that Salt has made of it.
        ({"a": ["b"]}, {"a": "b"}, {"a": ["b"]}),
    ],
)
def test_a_reference_stays_one(options, resolved, declared, expected):
    assert options.with_references(resolved, declared) == expected
