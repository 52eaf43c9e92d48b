"""A training as a job of the worker: no volumes, what is finished outlives a cancel and a kill, the explainer is used at once."""

import os
import signal
import sys
import time

import numpy as np
import pytest
from test_worker_process import Session, gone

from MedXAILib.files import partial_of
from MedXAILib.volume import Volume
from MedXAILib.worker.jobs import RunRequest, State
from MedXAILib.worker.transports import LocalClient


def test_a_job_without_volumes(tmp_path):
    session = Session(tmp_path)
    request = RunRequest("training", session.model, [], {"epochs": 4, "pause": 0.05}, panel="training")
    with session.client:
        job = session.finish(session.client.run(request, session.events.append))
        assert job.state is State.DONE and job.explanation.maps == {} and job.explanation.scores["given"] == 0
        assert job.explanation.provenance["folder"] == "somewhere" and len(job.explanation.curves["validation"].columns["epoch"]) == 4  # fmt: skip
        told = [point for event in session.events if event.name == "point" for point in event.points]
        assert [(p.curve, p.step) for p in told] == [("validation", n) for n in range(1, 5)]
        assert any(event.name == "progress" and event.eta is not None for event in session.events)


def test_settings_of_a_training_are_checked_without_torch(tmp_path):
    from MedXAILib.errors import MedXAIError
    from MedXAILib.settings import CycleJobSettings
    from MedXAILib.worker.server import Engine

    settings = Engine().settings("train-cycle", {"epochs": 3, "source": "a", "output": "b"})
    assert isinstance(settings, CycleJobSettings) and settings.epochs == 3
    with pytest.raises(MedXAIError, match="--epochs"):
        Engine().settings("train-cycle", {"epochs": 0})
    with pytest.raises(MedXAIError, match="no setting 'colour'"):
        Engine().settings("train-cycle", {"colour": 1})


# --- The real engine ---


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    pytest.importorskip("torch")
    from cycle_examples import write_classifier, write_noise

    folder = tmp_path_factory.mktemp("training")
    write_classifier(folder / "model")
    write_noise(folder / "images", 40)
    return folder


class Desk:
    """A client whose worker is the real one, and what it has told."""

    def __init__(self, place, tmp_path):
        self.place, self.output, self.events = place, tmp_path / "explainer", []
        self.client = LocalClient(sys.executable, environment={**os.environ, "OMP_NUM_THREADS": "1"}, temporary=tmp_path / "private")  # fmt: skip

    def train(self, **settings):
        values = {"source": str(self.place / "images"), "output": str(self.output), "device": "cpu", "width": 0.05, "batch": 8, "epochs": 4, "patience": 0}  # fmt: skip
        request = RunRequest("train-cycle", self.place / "model", [], values | settings, panel="training")
        self.events.clear()
        return self.client.run(request, self.events.append)

    def wait(self, job, seconds=90):
        assert self.client.wait(job, seconds), job
        return job

    @property
    def epochs(self):
        return [p.step for e in self.events if e.name == "point" for p in e.points if p.curve == "validation"]

    @property
    def pid(self):
        return self.client.environment["pid"]


@pytest.fixture
def desk(place, tmp_path):
    one = Desk(place, tmp_path)
    yield one
    one.client.shutdown()


def weights(folder) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def test_stopped_killed_and_gone_on_it_ends_with_the_same_explainer(desk, tmp_path):
    whole = desk.wait(desk.train(output=str(tmp_path / "whole")))
    assert whole.state is State.DONE, whole.failure
    assert whole.explanation.provenance["folder"] == str(tmp_path / "whole") and desk.epochs == [1, 2, 3, 4]
    assert set(whole.explanation.curves) == {"training", "validation"} and not whole.explanation.maps

    job = desk.train()
    assert desk.client.wait(lambda: 1 in desk.epochs, 60)
    job.cancel()
    began = time.monotonic()
    desk.wait(job)
    assert job.state is State.CANCELLED and time.monotonic() - began < 3
    partial = partial_of(desk.output)
    assert (partial / "samples.png").is_file() and not desk.output.exists()

    job = desk.train()  # the same again goes on
    assert desk.client.wait(lambda: desk.epochs, 60)
    assert desk.epochs[0] > 1
    pid = desk.pid
    os.kill(pid, signal.SIGKILL)
    desk.wait(job)
    assert job.state is State.FAILED and job.failure.kind == "crashed" and gone([pid])
    kept = desk.epochs[-1]

    last = desk.wait(desk.train())
    assert last.state is State.DONE, last.failure
    assert (desk.epochs[0] if desk.epochs else 5) > kept
    assert weights(desk.output) == weights(tmp_path / "whole") and not partial.exists()


def test_the_best_so_far_is_used_at_once(desk):
    job = desk.train(epochs=100)
    assert desk.client.wait(lambda: desk.epochs, 60)
    job.cancel()
    desk.wait(job)
    done = desk.wait(desk.train(epochs=100, finish=True))
    assert done.state is State.DONE, done.failure
    assert (desk.output / "model.json").is_file() and not partial_of(desk.output).exists()
    volume = Volume(np.full((1, 16, 16), 50, np.float32), np.diag([1.0, 1, 1, 1]), "image", "HU")
    request = RunRequest("cycle", desk.place / "model", [volume], {"explainer": str(desk.output), "device": "cpu"})
    shown = desk.wait(desk.client.run(request))
    assert shown.state is State.DONE, shown.failure
    assert {"positive", "negative", "relevance", "delta-positive", "delta-negative"} <= set(shown.explanation.maps)


@pytest.mark.parametrize(
    ("settings", "words"),
    (
        ({"source": ""}, "choose both"),
        ({"source": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"finish": True}, "nothing to finish"),
        ({"positive": "round"}, "round"),
        ({"width": -1}, "--width"),
    ),
)
def test_bad_input_is_one_sentence(desk, settings, words):
    job = desk.wait(desk.train(**settings))
    assert job.state is State.FAILED and job.failure.kind == "refused", job
    assert words in job.failure.message and "\n" not in job.failure.message
    assert not partial_of(desk.output).exists()
