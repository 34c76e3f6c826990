"""Where those tests run that would take long in every driver and mode."""

from __future__ import annotations

import pytest

PROCESS = pytest.param("process", "hot", id="process-hot")
CONTAINERS = pytest.param("docker", "failover", id="docker-failover", marks=pytest.mark.docker)
# Each driver in one of the modes.
everywhere = pytest.mark.parametrize(("built", "mode"), [PROCESS, CONTAINERS], indirect=True)
in_docker = pytest.mark.parametrize(("built", "mode"), [CONTAINERS], indirect=True)
