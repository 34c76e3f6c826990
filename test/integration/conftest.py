"""The modules here that have assertions in their helpers."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("integration.cleaned", "kitchen.topology_checks")
