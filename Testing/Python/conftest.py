"""What every test may ask for."""

from pathlib import Path

import hypothesis
import planted
import pytest

# A busy machine makes examples slow, which says nothing of the code.
hypothesis.settings.register_profile("machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("machine")

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests share their cores with others, and small networks are slower on many threads."""
    try:
        import torch
    except ImportError:  # the tests of nouns, protocol and panel run without it
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real volumes and networks beside the repository; the test is skipped where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    return folder


@pytest.fixture
def linear_package(tmp_path):
    """``linear_package(weight, format="ts")``: a package of a linear neuron; see `planted.linear_package`."""

    def make(weight, **options):
        return planted.linear_package(tmp_path / f"linear-{len(list(tmp_path.iterdir()))}", weight, **options)

    return make


@pytest.fixture
def detector_package(tmp_path):
    """``detector_package("mean", ndim=3, radius=3)``: a package of a planted detector; see `planted.detector_package`."""

    def make(kind, **options):
        return planted.detector_package(tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}", kind, **options)

    return make
