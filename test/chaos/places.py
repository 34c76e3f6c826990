"""Where those tests run that would take long in every driver and mode."""

from __future__ import annotations

import pytest

PROCESS = pytest.param("process", "failover", id="process-failover")
DOCKER = pytest.param("docker", "hot", id="docker-hot", marks=pytest.mark.docker)
# Each driver in one of the modes.
everywhere = pytest.mark.parametrize(("built", "mode"), [PROCESS, DOCKER], indirect=True)
in_docker = pytest.mark.parametrize(("built", "mode"), [DOCKER], indirect=True)
