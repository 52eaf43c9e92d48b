"""What the tests of the scene share."""

from __future__ import annotations

import pytest

from MedXAILib.errors import MedXAIError
from MedXAILib.scene import require_slicer


def needed() -> None:
    """Skip (counted) where Slicer's libraries are not installed."""
    try:
        require_slicer()
    except MedXAIError as error:
        pytest.skip(error.message, allow_module_level=True)


@pytest.fixture
def host():
    from MedXAILib.scene.host import HeadlessHost

    made = HeadlessHost()
    yield made
    made.close()


def ids(scene) -> set[str]:
    return {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}
