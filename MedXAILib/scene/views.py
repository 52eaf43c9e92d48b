"""Slicer's own slice views, off screen: the same reslicing, colours, thresholds and outlines as on screen.

Needs `slicer-core` alone (trame-slicer would add a web server). With OpenGL (a GPU, or Mesa through EGL or OSMesa) everything is
drawn; without it the slice's image is still computed by Slicer's pipeline, and only what lies over it is missing.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

from .nodes import array_of

MANAGERS = ("vtkMRMLSegmentationsDisplayableManager2D",)
_opengl: bool | None = None


def opengl() -> bool:
    """Whether this machine can draw off screen; asked once."""
    global _opengl
    if _opengl is None:
        if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
            # Otherwise VTK tries X first and complains.
            os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
        quiet = vtk.vtkObject.GetGlobalWarningDisplay()
        vtk.vtkObject.GlobalWarningDisplayOff()
        try:
            window = vtk.vtkRenderWindow()
            window.SetOffScreenRendering(True)
            _opengl = bool(window.SupportsOpenGL())
        finally:
            vtk.vtkObject.SetGlobalWarningDisplay(quiet)
    return _opengl


class SliceView:
    """One slice view of a headless host, ``size`` pixels square."""

    def __init__(self, host, size: int = 640, name: str = "Report"):
        self.host, self.size = host, size
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(host.application)
        host.application.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(host.scene)
        self.node = self.logic.AddSliceNode(name)
        self.composite = self.logic.GetSliceCompositeNode()
        self.logic.ResizeSliceNode(size, size)
        self._window = self._start() if opengl() else None

    @property
    def complete(self) -> bool:
        """Whether outlines and points are drawn, not the slice alone."""
        return self._window is not None

    def _start(self):
        window, renderer = vtk.vtkRenderWindow(), vtk.vtkRenderer()
        window.SetOffScreenRendering(True)
        window.SetMultiSamples(8)
        window.SetSize(self.size, self.size)
        renderer.GetActiveCamera().ParallelProjectionOn()
        window.AddRenderer(renderer)
        self._interactor = vtk.vtkRenderWindowInteractor()
        self._interactor.SetRenderWindow(window)
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        actor = vtk.vtkActor2D()
        actor.SetMapper(self._mapper)
        actor.GetProperty().SetDisplayLocationToBackground()
        renderer.AddViewProp(actor)
        self._actor = actor
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(self.host.application)
        for manager in MANAGERS:
            if not factory.IsDisplayableManagerRegistered(manager):
                factory.RegisterDisplayableManager(manager)
        self._group = slicer.vtkMRMLDisplayableManagerGroup()
        self._group.Initialize(factory, renderer)
        self._group.SetMRMLDisplayableNode(self.node)
        return window

    def close(self) -> None:
        """Give the window and the observers back."""
        if self._window is not None:
            self._group.SetMRMLDisplayableNode(None)
            self._window.Finalize()
            self._window = None
        self.host.application.GetSliceLogics().RemoveItem(self.logic)
        self.logic.SetMRMLScene(None)

    def look(self, plane: str, volume_node, point, field: float, along_volume: bool) -> None:
        """Turn to a plane (``axial``…) through a world point, which is centred, showing ``field`` mm across.

        ``along_volume`` turns the plane to the closest axes of an oblique volume.
        """
        self.composite.SetBackgroundVolumeID(volume_node.GetID())
        self.node.SetOrientation(plane.capitalize())
        if along_volume:
            self.node.RotateToVolumePlane(volume_node)
        self.logic.ResizeSliceNode(self.size, self.size)
        self.node.SetFieldOfView(field, field, self.node.GetFieldOfView()[2])
        self.node.JumpSliceByCentering(*point)

    def show(self, background, foreground=None, opacity: float = 1.0) -> None:
        self.composite.SetBackgroundVolumeID(background.GetID())
        self.composite.SetForegroundVolumeID(foreground.GetID() if foreground is not None else None)
        self.composite.SetForegroundOpacity(opacity)

    def picture(self) -> np.ndarray:
        """What the view shows: (size, size, 3) uint8, first row on top."""
        self.logic.UpdatePipeline()
        if self._window is None:
            return self._slice()
        self._mapper.SetInputConnection(self.logic.GetImageDataConnection())
        self._actor.SetVisibility(self.logic.GetImageDataConnection() is not None)
        self._window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.SetInputBufferTypeToRGB()
        grab.ReadFrontBufferOff()
        grab.Update()
        return _rows(grab.GetOutput())

    def _slice(self) -> np.ndarray:
        connection = self.logic.GetImageDataConnection()
        if connection is None:
            return np.zeros((self.size, self.size, 3), np.uint8)
        connection.GetProducer().Update()
        return _rows(connection.GetProducer().GetOutputDataObject(connection.GetIndex()))[..., :3]

    def pixel(self, world) -> tuple[float, float]:
        """Column and row (from the top) of a world position in the picture."""
        xy = np.linalg.solve(array_of(self.node.GetXYToRAS()), [*world, 1.0])
        return float(xy[0]), float(self.size - 1 - xy[1])

    def letters(self) -> dict[str, str]:
        """The patient direction at each edge: ``left``, ``right``, ``top``, ``bottom``."""
        axes = array_of(self.node.GetSliceToRAS())[:3, :3]
        right, top = _letter(axes[:, 0]), _letter(axes[:, 1])
        return {"right": right, "left": _OPPOSITE[right], "top": top, "bottom": _OPPOSITE[top]}

    def position(self) -> str:
        """Where the slice lies, such as ``S 310.2 mm``."""
        origin, normal = array_of(self.node.GetSliceToRAS())[:3, 3], array_of(self.node.GetSliceToRAS())[:3, 2]
        axis = int(np.argmax(np.abs(normal)))
        return f"{'RAS'[axis] if origin[axis] >= 0 else 'LPI'[axis]} {abs(origin[axis]):.1f} mm"


_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


def _letter(direction) -> str:
    axis = int(np.argmax(np.abs(direction)))
    return "RAS"[axis] if direction[axis] > 0 else "LPI"[axis]


def _rows(image) -> np.ndarray:
    width, height, _ = image.GetDimensions()
    values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    return values.reshape(height, width, -1)[::-1].copy()
