# ruff: noqa: E402
"""A panel's run on Slicer's libraries without Qt: a real worker process that plays, a real scene, every way it can end."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
if not hasattr(slicer, "vtkMRMLScene"):
    pytest.skip("needs Slicer's libraries (slicer-core)", allow_module_level=True)

from test_panel_logic import write_model

from MedXAILib.explanation import Layer
from MedXAILib.panel.live_run import LiveRun
from MedXAILib.panel.run_state import RunState
from MedXAILib.scene import filters, layers, pick, read, repeat
from MedXAILib.scene.host import HeadlessHost
from MedXAILib.scene.nodes import RUN, children, hierarchy, voxels
from MedXAILib.volume import Volume
from MedXAILib.worker.client import Client
from MedXAILib.worker.jobs import RunRequest
from MedXAILib.worker.launch import Launch
from MedXAILib.worker.transports import Loop, SubprocessTransport

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "MedXAI" / "MedXAIDeepDream" / "Testing" / "fake_worker.py"


class Control:
    """Notes what a run control would show."""

    def __init__(self):
        self.states, self.lines, self.stages = [], [], []
        self.elapsed = "1.0 s"

    def setState(self, state, message="", hint=""):
        self.states.append(state)
        self.message, self.hint = message, hint

    def setProgress(self, fraction, stage, eta):
        self.stages.append((fraction, stage, eta))
        if self.states[-1] in (RunState.STARTING, RunState.QUEUED):
            self.states.append(RunState.RUNNING)

    def log(self, line):
        self.lines.append(line)

    def repaint(self):
        pass

    @property
    def state(self):
        return self.states[-1]


class Desk:
    """A scene with a volume, a client and a run, as a panel has them."""

    def __init__(self, tmp_path, way="quick"):
        self.loop, self.way, self.later = Loop(), way, []
        self.client = Client(self.transport, self.loop.call_later, temporary=tmp_path / "private")
        self.host = HeadlessHost()
        self.scene = self.host.scene
        array = np.random.default_rng(3).normal(0, 50, (20, 24, 28)).astype(np.float32)
        matrix = np.array([[-0.9, 0.1, 0, 60], [0.1, -1.1, 0, 70], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])
        self.node = layers.add_volume(self.scene, Volume(array, matrix), "CT")
        layers.display(self.scene, self.node, Layer(Volume(array, matrix)))
        layers.show(self.scene, self.node)
        self.model = write_model(tmp_path / "model")
        self.control, self.finished = Control(), []
        self.live = LiveRun(self.control, lambda *told: self.finished.append(told), self.host, self.later.append)

    def transport(self):
        how = Launch(sys.executable, (str(FAKE),), {**os.environ, "MEDXAI_FAKE": self.way})
        return SubprocessTransport(how, self.loop)

    def start(self, method="dream", segments=(), **settings):
        volume = read.volume(self.node)
        settings = {"steps": 10, **settings} if method == "dream" else settings
        request = RunRequest(method, str(self.model), [volume], settings, segments)
        first = {"dream": volume} if method == "dream" else {}
        self.live.start(self.client, request, [self.node], "Run", first=first)

    def wait(self, condition, seconds=20.0):
        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until:
            self.loop.poll(0.02)
            while self.later:
                self.later.pop(0)()
        assert condition(), (self.control.states, self.control.message, self.control.lines)

    def state(self):
        tree = hierarchy(self.scene)
        nodes = [self.scene.GetNthNode(n) for n in range(self.scene.GetNumberOfNodes())]
        return {n.GetID() for n in nodes}, set(children(self.scene, tree.GetSceneItemID()))

    def of_run(self, kind="vtkMRMLNode"):
        nodes = [self.scene.GetNthNode(n) for n in range(self.scene.GetNumberOfNodes())]
        return [n for n in nodes if n.GetAttribute(RUN) and n.IsA(kind)]


def notes_of(one):
    return one.finished[0][1].notes


@pytest.fixture
def desk(tmp_path):
    made = []

    def make(way="quick"):
        made.append(Desk(tmp_path, way))
        return made[-1]

    yield make
    for one in made:
        one.client.shutdown()


def test_run_ends_in_the_scene(desk):
    one = desk()
    one.start()
    one.wait(lambda: one.finished)
    assert one.control.state is RunState.DONE and "Done in" in one.control.message
    assert RunState.WRITING in one.control.states
    folder, explanation = one.finished[0]
    assert hierarchy(one.scene).GetItemName(folder) == "Run"
    assert explanation.method == "dream"
    assert not any("changed" in note for note in notes_of(one))
    assert {n.GetAttribute("MedXAI.Name") for n in one.of_run()} >= {"dream", "change", "masks", "curves", "steps"}
    assert not one.live.active and one.live.Observations == []


def test_cancel_leaves_the_scene_as_it_was(desk):
    one = desk("slow")
    before = one.state()
    one.start(steps=100)
    one.wait(lambda: len(one.of_run("vtkMRMLTableNode")) == 1)
    one.live.cancel()
    assert one.control.state is RunState.CANCELLING
    began = time.monotonic()
    one.wait(lambda: one.control.state is RunState.CANCELLED)
    assert time.monotonic() - began < 3
    assert one.state() == before and one.finished == [(0, None)]
    assert one.live.Observations == []


def test_live_layers_are_overwritten_not_added(desk):
    one = desk("slow")
    one.start(steps=100)
    first = one.of_run("vtkMRMLScalarVolumeNode")
    assert len(first) == 1  # shown at once, before the first step: the views need no new node while it runs
    start = voxels(first[0].GetImageData()).copy()
    one.wait(lambda: one.control.stages and one.control.stages[-1][0] > 0.1)
    assert one.of_run("vtkMRMLScalarVolumeNode") == first
    assert (voxels(first[0].GetImageData()) != start).any()


def test_refusal_is_one_sentence_and_nothing_is_left(desk):
    one = desk("error")
    before = one.state()
    one.start()
    one.wait(lambda: one.finished)
    assert one.control.state is RunState.FAILED
    assert one.control.message == "The fake worker refuses; this is its one sentence." and one.control.hint
    assert one.state() == before


def test_worker_that_ends_is_told_and_the_next_run_works(desk):
    one = desk("die")
    before = one.state()
    one.start()
    one.wait(lambda: one.finished)
    assert one.control.state is RunState.FAILED and "exit code 3" in one.control.message
    assert one.state() == before
    one.way = "quick"
    one.start()
    one.wait(lambda: len(one.finished) == 2)
    assert one.control.state is RunState.DONE


def test_input_removed(desk):
    one = desk("slow")
    one.start(steps=100)
    one.wait(lambda: one.control.state is RunState.RUNNING)
    one.scene.RemoveNode(one.node)
    one.wait(lambda: one.finished)
    assert "'CT' was removed" in one.control.message
    assert one.of_run() == []


def test_run_removed_by_hand(desk):
    one = desk("slow")
    one.start(steps=100)
    one.wait(lambda: one.of_run("vtkMRMLTableNode"))
    one.scene.RemoveNode(one.of_run("vtkMRMLScalarVolumeNode")[0])
    one.wait(lambda: one.finished)
    assert "The run was removed" in one.control.message
    assert one.of_run() == []
    assert one.scene.GetNodeByID(one.node.GetID()) is one.node


def test_scene_closed(desk):
    one = desk("slow")
    one.start(steps=100)
    one.wait(lambda: one.control.state is RunState.RUNNING)
    one.scene.Clear(0)
    assert "scene was closed" in one.control.message and not one.live.active
    one.wait(lambda: not one.client.jobs)
    assert one.of_run() == [] and one.live.Observations == []


def test_input_changed_is_noted(desk):
    one = desk("slow")
    one.start(steps=10)
    one.wait(lambda: one.control.state is RunState.RUNNING)
    layers.write_voxels(one.node, Volume(np.zeros((20, 24, 28), np.float32), np.eye(4)))
    one.wait(lambda: one.finished)
    assert any("changed while the run was going" in note for note in notes_of(one))


def test_newer_run_replaces_the_older_one(desk):
    one = desk("slow")
    one.start(steps=100)
    one.wait(lambda: one.control.state is RunState.RUNNING)
    one.start(steps=3)
    assert one.finished == [(0, None)]  # the older one is over, and out of the scene
    one.wait(lambda: len(one.finished) == 2)
    assert one.control.state is RunState.DONE
    assert len([f for f in one.finished if f[0]]) == 1
    tree = hierarchy(one.scene)
    folders = [
        i
        for i in children(one.scene, tree.GetSceneItemID())
        if tree.GetItemAttribute(i, RUN) and not tree.GetItemDataNode(i)
    ]
    assert len(folders) == 1


def test_what_cannot_be_started_leaves_nothing(desk):
    one = desk()
    before = one.state()
    one.client._make_transport = lambda: (_ for _ in ()).throw(RuntimeError("no python"))
    with pytest.raises(RuntimeError):
        one.start()
    assert one.state() == before and not one.live.active


def test_ability_ends_with_maps_to_look_up(desk):
    one = desk()
    one.start("ability", noise_levels=[0.3])
    one.wait(lambda: one.finished)
    assert one.control.state is RunState.DONE, one.control.message
    run = one.of_run("vtkMRMLSegmentationNode")[0].GetAttribute(RUN)
    assert pick.shown(one.scene, run) == ("layers", 4) and pick.levels(one.scene, run) == [0.3]
    assert pick.show(one.scene, run, "noise-0.3", 2) == "2 block.2, noise 0.3"
    assert repeat.provenance(one.scene, one.finished[0][0])["scores"] == {"mean_sa": 0.46}


def test_ability_cancelled_leaves_the_scene_as_it_was(desk):
    one = desk("slow")
    before = one.state()
    one.start("ability")
    one.wait(lambda: one.of_run("vtkMRMLSegmentationNode") and one.of_run("vtkMRMLTableNode"))
    one.live.cancel()
    one.wait(lambda: one.control.state is RunState.CANCELLED)
    assert one.state() == before


def test_back_projection_ends_with_filters_to_look_at_and_landmarks(desk):
    one = desk()
    volume = read.volume(one.node)
    left, right = np.zeros((2, *volume.shape), np.uint8)
    left[:, :, :10], right[:, :, 18:] = 1, 1
    segments = [volume.with_array(left, "left", ""), volume.with_array(right, "right", "")]
    one.start("backproject", segments, filters=6, combine="activation")
    one.wait(lambda: one.finished)
    assert one.control.state is RunState.DONE, one.control.message
    folder, explanation = one.finished[0]
    assert explanation.tables["landmarks"].columns["landmark"] == ["left", "right", "elsewhere"]
    found = filters.Filters(one.scene, one.of_run()[0].GetAttribute(RUN))
    told = found.landmarks(6).columns["heat_share"]
    assert told == pytest.approx(explanation.tables["landmarks"].columns["heat_share"])
    found.heat(2)
    found.show(3)
    assert found.used == 2 and found.shown == 3
    assert repeat.provenance(one.scene, folder)["settings"]["filters"] == 6


def test_back_projection_is_live_and_a_cancel_leaves_the_scene_as_it_was(desk):
    one = desk("slow")
    before = one.state()
    one.start("backproject")
    one.wait(lambda: one.of_run("vtkMRMLScalarVolumeNode"))
    (node,) = one.of_run("vtkMRMLScalarVolumeNode")
    first = voxels(node.GetImageData()).copy()
    one.wait(lambda: (voxels(node.GetImageData()) != first).any())
    one.live.cancel()
    one.wait(lambda: one.control.state is RunState.CANCELLED)
    assert one.state() == before
