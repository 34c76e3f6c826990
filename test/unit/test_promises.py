"""What the documents name as the test of a promise is there."""

from __future__ import annotations

import re

from lab.model import REPOSITORY

TEST = re.compile(r"`(test_\w+)`|`(test/[\w/.]+)`")


def test_every_test_that_the_documents_name_is_there():
    defined = {
        name
        for path in REPOSITORY.glob("test/**/*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    missing = set()
    for path in [*REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("*.md")]:
        for function, file in TEST.findall(path.read_text()):
            there = function in defined if function else (REPOSITORY / file).exists()
            if not there:
                missing.add(function or file)
    assert missing == set()
