"""What the in-Slicer tests share: the event loop, models, volumes, and a worker that plays."""

import os
import shutil
import tempfile
import time
import unittest
from pathlib import Path

import numpy as np
import qt
import slicer
import vtk
from panel_testing_files import writeModel

HERE = Path(__file__).resolve().parent


def turn(seconds: float = 0.0):
    """Let the application's event loop run for a while, as it does when nobody tests."""
    loop = qt.QEventLoop()
    qt.QTimer.singleShot(max(0, int(seconds * 1000)), loop.quit)
    loop.exec_()


def waitFor(condition, seconds: float = 20.0) -> bool:
    """Run the event loop until something is so."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        turn(0.02)
    return bool(condition())


def realPanel(test, module: str):
    """The panel of a module in an empty scene, for a run with the real worker; skips the test where the worker's Python cannot compute."""
    from MedXAILib.panel import environment, worker_session

    clearScene()
    slicer.util.selectModule(module)
    panel = slicer.util.getModuleWidget(module).panel
    looked = []
    panel.environment.refresh(lambda: looked.append(True))
    test.assertTrue(waitFor(lambda: looked, 10))
    panel._onEnvironment()
    lacking = environment.missing(panel.environment.packages or []) or panel.environment.problem
    if lacking:
        test.skipTest(lacking)
    test.addCleanup(worker_session.closeSession)
    return panel


def crowded() -> bool:
    """Whether the computer has more to do than it has cores: then a wall clock measures the neighbours."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1)


class Heartbeat:
    """Measures how long the window was not served: a timer that should tick every 10 ms.

    ``gaps`` are (wall, own) seconds between two ticks, own being the time this thread computed.
    """

    def __init__(self):
        self.gaps, self._last = [], None
        self._timer = qt.QTimer()
        self._timer.setInterval(10)
        self._timer.connect("timeout()", self._tick)

    def _tick(self):
        now = time.perf_counter(), time.thread_time()
        if self._last is not None:
            self.gaps.append((now[0] - self._last[0], now[1] - self._last[1]))
        self._last = now

    def __enter__(self):
        self._last = None
        self._timer.start()
        return self

    def __exit__(self, *_):
        self._timer.stop()

    @property
    def wall(self) -> float:
        """Seconds of the longest turn on the wall clock."""
        return max((gap[0] for gap in self.gaps), default=0.0)

    @property
    def own(self) -> float:
        """Seconds this thread computed in its busiest turn."""
        return max((gap[1] for gap in self.gaps), default=0.0)

    @property
    def longest(self) -> float:
        """Seconds of the longest turn, by the clock that measures Slicer."""
        return self.own if crowded() else self.wall


class Stopwatch:
    """Seconds on the wall clock; on a crowded computer, this thread's own seconds."""

    def __enter__(self):
        self._wall, self._own = time.perf_counter(), time.thread_time()
        return self

    def __exit__(self, *_):
        wall, own = time.perf_counter() - self._wall, time.thread_time() - self._own
        self.seconds = own if crowded() else wall
        self.milliseconds = {"wall": round(1000 * wall), "own": round(1000 * own)}


def addVolume(shape=(24, 32, 40), name="CT of somebody", seed=0):
    """A volume node with an oblique, anisotropic grid."""
    array = np.random.default_rng(seed).normal(0, 100, shape).astype(np.int16)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy((-0.9, 0.1, 0, 60, 0.1, -1.1, 0, 70, 0, 0, 2.5, -30, 0, 0, 0, 1))
    node = slicer.util.addVolumeFromArray(array, ijkToRAS=matrix, name=name)
    slicer.util.setSliceViewerLayers(background=node)
    return node


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return os.name == "nt" or not Path("/proc").is_dir()


def group(pid: int) -> list[int]:
    """Every process of the group that a worker leads."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, leader = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except (OSError, ValueError):
            continue
        if int(leader) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def clearScene():
    """An empty scene; our colour tables are singletons, which closing a scene leaves."""
    slicer.mrmlScene.Clear()
    for node in slicer.util.getNodesByClass("vtkMRMLColorTableNode"):
        if (node.GetSingletonTag() or "").startswith("MedXAI"):
            slicer.mrmlScene.RemoveNode(node)


def sliceViews() -> list:
    """Where the slice views look: field of view and place."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    return [(n.GetID(), n.GetFieldOfView(), slicer.util.arrayFromVTKMatrix(n.GetSliceToRAS()).tolist()) for n in nodes]


def sceneState() -> set:
    """Every node of the scene and every item of its hierarchy; what a cancelled run must leave as it was."""
    from MedXAILib.scene.nodes import children, hierarchy

    scene = slicer.mrmlScene
    tree = hierarchy(scene)
    items = {(item, tree.GetItemName(item)) for item in children(scene, tree.GetSceneItemID())}
    nodes = (scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes()))
    return {(node.GetID(), node.GetName()) for node in nodes} | items


class PlayedWorker:
    """Makes the panels use the fake worker, with models and trust of its own; everything is put back by ``stop``."""

    KEYS = ("MedXAI/Models", "MedXAI/Trusted")

    def __init__(self, way="quick", samples=False):
        from MedXAILib.panel import worker_session
        from MedXAILib.worker.launch import Launch

        self.folder = Path(tempfile.mkdtemp(prefix="MedXAI-test-"))
        self.way = way
        self._session, self._choose = worker_session, worker_session.chooseLaunch
        worker_session.closeSession()

        def choose():
            how = self._choose()
            return Launch(how.program, (str(HERE / "fake_worker.py"),), {**how.environment, "MEDXAI_FAKE": self.way})

        worker_session.chooseLaunch = choose
        settings = slicer.app.userSettings()
        self._before = {key: settings.value(key) for key in self.KEYS}
        for key in self.KEYS:
            settings.remove(key)

    def stop(self):
        """Put settings back and end the worker."""
        self._session.closeSession()
        self._session.chooseLaunch = self._choose
        settings = slicer.app.userSettings()
        for key, value in self._before.items():
            settings.remove(key)
            if value is not None:
                settings.setValue(key, value)
        shutil.rmtree(self.folder, ignore_errors=True)


class PanelCase(unittest.TestCase):
    """A panel with one model and one volume chosen."""

    module = "MedXAIDeepDream"
    way = "quick"
    shape = (24, 32, 40)

    def setUp(self):
        clearScene()
        self.worker = PlayedWorker(self.way)
        self.addCleanup(self.worker.stop)
        from MedXAILib.panel.model_picker import library

        slicer.util.selectModule(self.module)
        self.panel = slicer.util.getModuleWidget(self.module).panel
        self.addCleanup(lambda: self.current().live.stop(""))
        self.model = library().add(writeModel(self.worker.folder / "played"))
        self.volume = addVolume(self.shape)
        self.panel.enter()
        self.have_torch_metadata = not self.panel.control.reason.startswith("The worker's Python lacks")
        # The worker that plays needs no torch: what its Python lacks does not count here.
        from MedXAILib.panel import environment

        self.panel.environment.refresh = lambda done: done()
        self.panel.environment.packages = environment.withVersions({p.name: "99" for p in environment.NEEDED})
        self.addCleanup(lambda: self.current().environment.__dict__.pop("refresh", None))
        self.panel.picker.refresh(str(self.model))
        self.panel._onModelChosen()
        self.panel._check()

    def current(self):
        return slicer.util.getModuleWidget(self.module).panel

    @property
    def control(self):
        return self.panel.control

    def press(self):
        self.control.applyButton.click()

    def runToEnd(self, seconds=30):
        self.press()
        self.assertTrue(waitFor(lambda: not self.control.state.active, seconds), self.control.state)
        self.assertEqual(self.control.state.value, "done", self.control.logEdit.plainText)

    def workerPid(self):
        from MedXAILib.panel import worker_session

        self.assertTrue(waitFor(lambda: worker_session.client().environment.get("pid")))
        return worker_session.client().environment["pid"]


class Refusal:
    """For a `PanelCase` with ``press()``: what the worker refuses is said, and leaves nothing behind."""

    def test_a_refusal_leaves_nothing(self):
        self.worker.way = "error"
        before = sceneState()
        self.press()
        self.assertTrue(waitFor(lambda: not self.control.state.active))
        self.assertIn("this is its one sentence", self.control.statusLabel.text)
        self.assertEqual(sceneState(), before)
