"""A panel's training without Qt: a real worker process that plays, every way it can stop, what is kept, where it goes."""

import json
import os
import signal
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAYING = ROOT / "MedXAI" / "MedXAIDeepDream" / "Testing"
sys.path.insert(0, str(PLAYING))

from panel_testing_files import writeExplainer, writeModel  # noqa: E402

from MedXAILib.errors import MedXAIError  # noqa: E402
from MedXAILib.files import partial_of  # noqa: E402
from MedXAILib.package import Package  # noqa: E402
from MedXAILib.panel.training_run import Phase, TrainingRun, proposal, rowsOf  # noqa: E402
from MedXAILib.settings import CycleJobSettings  # noqa: E402
from MedXAILib.worker.client import Client  # noqa: E402
from MedXAILib.worker.jobs import Cancelled  # noqa: E402
from MedXAILib.worker.launch import Launch  # noqa: E402
from MedXAILib.worker.transports import Loop, SubprocessTransport  # noqa: E402


class Desk:
    def __init__(self, tmp_path):
        self.loop = Loop()
        how = Launch(sys.executable, (str(PLAYING / "fake_worker.py"),), dict(os.environ))
        self.client = Client(lambda: SubprocessTransport(how, self.loop), self.loop.call_later, temporary=tmp_path / "private")  # fmt: skip
        about = {"spatial_dims": 2, "channels": ["CT"], "orientation": None, "spacing": None, "size": None, "multiple_of": None, "intensity": {"kind": "none"}}  # fmt: skip
        folder = writeModel(
            tmp_path / "classifier", task="classification", input=about, output={"labels": ["a", "b"], "activation": "softmax"},
            network={"name": "DenseNet121", "arguments": {}},
        )  # fmt: skip
        self.classifier, self.output = Package.read(folder), str(tmp_path / "classifier-cycle")
        self.source = tmp_path / "images"
        self.source.mkdir()
        self.changes, self.done = 0, []
        self.run = TrainingRun(lambda: self.client, self._changed, lambda *told: self.done.append(told))
        self.run.look(self.output)

    def _changed(self):
        self.changes += 1

    def settings(self, epochs=4, **more):
        return CycleJobSettings(source=str(self.source), output=self.output, epochs=epochs, **more).to_json()

    def start(self, **more):
        self.run.start(self.classifier, self.settings(**more))

    def wait(self, condition, seconds=20.0):
        import time

        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until:
            self.loop.poll(0.02)
        assert condition(), (self.run.phase, self.run.message, self.run.rows)

    def idle(self):
        self.wait(lambda: not self.run.phase.active)


@pytest.fixture
def desk(tmp_path):
    one = Desk(tmp_path)
    yield one
    one.client.shutdown()


def test_to_the_end(desk):
    desk.start()
    assert desk.run.phase is Phase.RUNNING and desk.run.picture is None
    desk.wait(lambda: len(desk.run.rows) >= 2)
    assert desk.run.picture.parent == partial_of(desk.output) and 0 < desk.run.fraction < 1 and desk.run.stage
    desk.idle()
    assert desk.run.done and not desk.run.failed and "The explainer of epoch 4 is ready" in desk.run.message
    assert desk.done == [(desk.output, desk.classifier)] and sorted(desk.run.rows) == [1, 2, 3, 4]
    package = Package.read(desk.output)
    assert package.explains.sha256 == desk.classifier.sha256 and desk.run.picture.parent == Path(desk.output)


def test_pause_another_look_and_on(desk):
    desk.start(epochs=50)
    desk.wait(lambda: desk.run.rows)
    desk.run.pause()
    assert desk.run.phase is Phase.PAUSING
    desk.run.pause()  # once is enough
    desk.idle()
    kept = len(desk.run.rows)
    assert desk.run.message == f"Paused. Finished epochs kept: {kept}."
    again = TrainingRun(lambda: desk.client, desk._changed, lambda *told: None)  # as after Slicer was started again
    again.look(desk.output)
    assert len(again.rows) == kept and again.picture is not None
    desk.start(epochs=50)
    desk.wait(lambda: len(desk.run.rows) > kept)
    desk.run.pause()
    desk.idle()
    desk.run.discard()
    assert desk.run.rows == {} and not partial_of(desk.output).exists() and desk.run.message == ""


def test_use_now_while_it_runs_and_while_it_rests(desk):
    desk.start(epochs=50)
    desk.wait(lambda: desk.run.rows)
    desk.run.useNow()
    assert desk.run.phase is Phase.PAUSING
    desk.wait(lambda: desk.done)
    assert desk.run.phase is Phase.IDLE and (Path(desk.output) / "model.json").is_file()
    desk.output += "-2"
    desk.start(epochs=50)
    desk.wait(lambda: desk.run.rows)
    desk.run.pause()
    desk.idle()
    desk.run.useNow(desk.classifier, desk.settings(epochs=50))
    assert desk.run.phase is Phase.FINISHING
    desk.wait(lambda: len(desk.done) == 2)


def test_use_now_before_the_first_epoch_only_pauses(desk):
    desk.start(epochs=50)
    desk.wait(lambda: desk.run.stage.startswith("Epoch"))
    desk.run.useNow()
    desk.idle()
    assert (desk.run.rows == {}) == (desk.done == [])


def test_a_killed_worker_loses_no_finished_epoch(desk):
    desk.start(epochs=50)
    desk.wait(lambda: len(desk.run.rows) >= 2)
    os.kill(desk.client.environment["pid"], signal.SIGKILL)
    desk.idle()
    kept = len(desk.run.rows)
    assert kept >= 2 and desk.run.failed and f"Finished epochs kept: {kept}; press Go on." in desk.run.message
    desk.start(epochs=kept + 1)
    desk.wait(lambda: desk.done)
    assert sorted(desk.run.rows) == list(range(1, kept + 2))


def test_a_refusal_is_one_sentence(desk):
    desk.source = desk.source / "nowhere"
    desk.start()
    desk.idle()
    assert desk.run.failed and "There is no folder" in desk.run.message and "kept" not in desk.run.message


def test_closing_the_panel_stops_it_and_keeps_what_is_finished(desk):
    desk.start(epochs=50)
    desk.wait(lambda: desk.run.rows)
    job, kept = desk.run._job, len(desk.run.rows)
    desk.run.close()
    desk.wait(lambda: job.finished)
    assert len(rowsOf(desk.output)) >= kept


class Slow:
    """A client that says nothing by itself: the test tells what the worker would, in the order that is wanted."""

    def __init__(self):
        self.requests, self.ended = [], 0

    def run(self, request, on_event):
        self.requests.append(dict(request.settings))
        job = SimpleNamespace(finished=False, cancel=lambda: None)
        self.stopped = lambda: on_event(Cancelled(job, "asked"))
        return job

    def shutdown(self):
        self.ended += 1


def keep(desk, epochs=2):
    """Finished epochs of a training."""
    partial = partial_of(desk.output)
    partial.mkdir(parents=True)
    rows = [{"about": 1}, *({"epoch": n, "probability": 0.5} for n in range(1, epochs + 1))]
    (partial / "epochs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return partial


def test_use_now_and_then_closed_begins_nothing(desk):
    desk.client, real = Slow(), desk.client
    keep(desk)
    desk.start()
    desk.run.useNow()
    stopped, changes = desk.client.stopped, desk.changes
    desk.run.close()
    stopped()
    assert len(desk.client.requests) == 1 and desk.client.ended == 1 and desk.changes == changes
    assert desk.run.phase is Phase.IDLE and not desk.run._finishNext
    desk.client = real


@pytest.mark.parametrize("use", [False, True], ids=["pause", "use now"])
def test_a_stop_after_the_explainer_was_made_is_its_end(desk, use):
    desk.client, real = Slow(), desk.client
    partial = keep(desk)
    desk.start()
    (desk.run.useNow if use else desk.run.pause)()
    writeExplainer(Path(desk.output), desk.classifier)
    partial.rename(partial.with_name("gone"))
    desk.client.stopped()
    assert desk.run.done and desk.run.message == f"The explainer is ready: {desk.output}" and len(desk.run.rows) == 2
    assert desk.done == [(desk.output, desk.classifier)] and len(desk.client.requests) == 1
    desk.client = real


def test_use_now_and_then_the_workers_end_begins_nothing(desk):
    desk.start(epochs=50)
    desk.wait(lambda: desk.run.rows)
    desk.run.useNow()
    desk.client.shutdown()  # as Stop in MedXAI Models, or the application's end
    assert desk.run.phase is Phase.IDLE and desk.run.message.startswith("Paused.")
    assert desk.client.phase == "stopped" and not desk.client.jobs and desk.done == []


def test_the_worker_ends_with_the_training_and_not_before_its_explainer(desk):
    desk.client, real = Slow(), desk.client
    keep(desk)
    desk.start()
    desk.run.useNow()
    desk.client.stopped()
    assert [one["finish"] for one in desk.client.requests] == [False, True]
    assert desk.client.ended == 0 and desk.run.phase is Phase.FINISHING
    desk.client.stopped()
    assert desk.client.ended == 1 and desk.run.phase is Phase.IDLE
    desk.client = real
    desk.start(epochs=2)
    desk.idle()
    assert real.phase == "stopped" and not real.jobs


def test_a_torn_log_is_read_to_its_last_whole_line(tmp_path):
    output = tmp_path / "x-cycle"
    partial = partial_of(output)
    partial.mkdir()
    rows = [json.dumps({"epoch": n, "probability": 0.5}) for n in (1, 2)]
    (partial / "epochs.jsonl").write_text("\n".join(['{"about": 1}', *rows, '{"epoch": 3, "prob']))
    assert sorted(rowsOf(str(output))) == [1, 2]
    assert rowsOf("") == {} and rowsOf(str(tmp_path / "nothing")) == {}


def test_where_an_explainer_goes(tmp_path):
    model, own = tmp_path / "models" / "nodules", tmp_path / "own"
    model.mkdir(parents=True)
    assert proposal(model, own, False) == tmp_path / "models" / "nodules-cycle"
    assert proposal(model, own, True) == own / "nodules-cycle"
    (tmp_path / "models" / "nodules-cycle").mkdir()
    assert proposal(model, own, False) == tmp_path / "models" / "nodules-cycle-2"
    if os.geteuid():
        model.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
        assert proposal(model, own, False) == own / "nodules-cycle"
        model.parent.chmod(0o755)


def test_settings_are_checked_before_anything_begins(desk):
    with pytest.raises(MedXAIError, match="--epochs"):
        desk.settings(epochs=0)
