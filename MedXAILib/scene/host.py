"""Where the scene lives: inside the application, or on Slicer's libraries alone. Nothing else in this room knows which."""

from __future__ import annotations

import shutil
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import slicer
import vtk

from ..errors import MedXAIError

#: Slicer's layout with three slice views, a 3-D view and a chart.
CONVENTIONAL_PLOT = 36
VIEWS = {"Red": "Axial", "Green": "Coronal", "Yellow": "Sagittal"}


class Host(Protocol):
    """What this room needs of its surroundings."""

    scene: object

    def logic(self, name: str):
        """The logic of the module ``name`` (``Sequences``, ``Colors``, ``Plots``…)."""

    def save(self, path) -> None:
        """Write the scene as one `.mrb` file."""


def current() -> Host:
    """The application's host inside 3D Slicer, a new headless one elsewhere."""
    return ApplicationHost() if getattr(slicer, "app", None) is not None else HeadlessHost()


def dicom(instance: str, tag: str) -> str:
    """A value of Slicer's DICOM database, such as ``0028,0101`` of an instance; empty where that is not known, and headless."""
    database = getattr(slicer, "dicomDatabase", None)
    return (database.instanceValue(instance, tag) or "").strip() if database is not None else ""


def _let_go(logics, scene) -> None:
    for logic in logics:
        logic.SetMRMLScene(None)
    scene.Clear(1)


def _save(scene, path) -> None:
    path = Path(path).absolute()
    messages = slicer.vtkMRMLMessageCollection()
    with suppress(OSError):
        before = set(path.parent.iterdir())
    # What goes wrong is told in one sentence below, not as VTK's and ITK's own lines.
    window, quiet = vtk.vtkOutputWindow.GetInstance(), vtk.vtkStringOutputWindow()
    loud = vtk.vtkLogger.GetCurrentVerbosityCutoff()
    vtk.vtkOutputWindow.SetInstance(quiet)
    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
    try:
        written = scene.WriteToMRB(str(path), None, messages)
    finally:
        vtk.vtkOutputWindow.SetInstance(window)
        vtk.vtkLogger.SetStderrVerbosity(loud)
    if written and path.is_file():
        return
    with suppress(OSError):
        for left in set(path.parent.iterdir()) - before:
            if left == path:
                left.unlink()
            elif left.is_dir() and left.name.startswith("_tmp"):  # WriteToMRB's own, which it leaves behind
                shutil.rmtree(left, ignore_errors=True)
    raise MedXAIError(
        f"The scene could not be written to '{path}'; free some space or choose another folder.",
        kind="disk",
        hint=" ".join(messages.GetAllMessagesAsString().split()),
    )


@vtk.calldata_type(vtk.VTK_OBJECT)
def _forget_item(scene, event, node) -> None:
    tree = None if scene.IsClosing() else slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = tree.GetItemByDataNode(node) if tree is not None and node is not tree else 0
    if item:
        tree.RemoveItem(item, False, False)


class ApplicationHost:
    """The running application."""

    @property
    def scene(self):
        return slicer.mrmlScene

    def logic(self, name: str):
        return getattr(slicer.modules, name.lower()).logic()

    def save(self, path) -> None:
        _save(self.scene, path)


class HeadlessHost:
    """A scene of its own, with the logics that would be the application's, three slice views and a chart view.

    Needs no Qt, no display and no GPU; `views.SliceView` can show its slice views off screen. ``close()`` empties it.
    """

    def __init__(self):
        self.scene = slicer.vtkMRMLScene()
        self.application = slicer.vtkSlicerApplicationLogic()
        self.application.SetMRMLScene(self.scene)
        self.application.SetSliceLogics(vtk.vtkCollection())
        self.application.SetViewLogics(vtk.vtkCollection())
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self.scene.AddNode(crosshair)
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)
        self.scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
        self._logics = {}
        for name, make in {
            # Not vtkSlicerColorLogic: it complains where the application's colour files are not installed.
            "Colors": slicer.vtkMRMLColorLogic,
            "SubjectHierarchy": slicer.vtkSlicerSubjectHierarchyModuleLogic,
            "Segmentations": slicer.vtkSlicerSegmentationsModuleLogic,
            "Sequences": slicer.vtkSlicerSequencesLogic,
            "Plots": slicer.vtkSlicerPlotsLogic,
            "Tables": slicer.vtkSlicerTablesLogic,
            "Texts": slicer.vtkSlicerTextsLogic,
            "Volumes": slicer.vtkSlicerVolumesLogic,
            "Markups": slicer.vtkSlicerMarkupsLogic,
        }.items():
            logic = make()
            logic.SetMRMLApplicationLogic(self.application)
            logic.SetMRMLScene(self.scene)
            self.application.SetModuleLogic(name, logic)
            self._logics[name] = logic
        self.application.SetColorLogic(self._logics["Colors"])
        self._logics["Colors"].AddDefaultColorNodes()
        # As the application does: a node that goes takes its item of the subject hierarchy along.
        self.scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, _forget_item)
        # Adds Slicer's own layout descriptions, the layout node and the views a layout names.
        self._layout = slicer.vtkMRMLLayoutLogic()
        self._layout.SetMRMLScene(self.scene)
        self._layout.GetLayoutNode().SetViewArrangement(CONVENTIONAL_PLOT)
        self.slices = {name: self._slice_logic(name, plane) for name, plane in VIEWS.items()}
        # Python destroys these in any order, and a logic that outlives what it observes crashes: let go in order, always.
        # (Segmentations stays as it is: without a scene it looks for the subject hierarchy and complains.)
        rest = [logic for name, logic in self._logics.items() if name != "Segmentations"]
        order = [*self.slices.values(), self._layout, *reversed(rest), self.application]
        self.close = weakref.finalize(self, _let_go, order, self.scene)

    def _slice_logic(self, name: str, plane: str):
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(self.application)
        self.application.GetSliceLogics().AddItem(logic)
        logic.SetMRMLScene(self.scene)
        node = self.scene.GetSingletonNode(name, "vtkMRMLSliceNode")
        if node is None:
            node = logic.AddSliceNode(name)
        else:
            logic.SetSliceNode(node)
        node.SetOrientation(plane)
        logic.ResizeSliceNode(400, 400)
        return logic

    def logic(self, name: str):
        return self._logics[name]

    def save(self, path) -> None:
        _save(self.scene, path)

    def open(self, path) -> None:
        """Read a `.mrb` into the (cleared) scene."""
        import tempfile
        import zipfile

        self.scene.Clear(0)
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as bundle:
            bundle.extractall(folder)
            self.scene.SetURL(str(next(Path(folder).rglob("*.mrml"))))
            if not self.scene.Import(None):
                raise MedXAIError(f"The scene '{path}' cannot be read.")
