"""Slicer's own slice views, off screen: the reslicing, windows, colours, thresholds and blending that the application shows.

`vtkMRMLSliceLogic` computes a slice view's image on the processor; OpenGL only copies it to the screen. Taken from there, it needs no
display, no GPU and no graphics library: where libEGL and libOSMesa are missing, as on a bare Debian, VTK's windows crash.
(`slicer-core` is enough; trame-slicer would add a web server and pins another slicer-core.)
"""

from __future__ import annotations

import numpy as np
import slicer
from vtk.util import numpy_support

from .nodes import array_of


class SliceView:
    """One slice view of a headless host, ``size`` pixels square."""

    def __init__(self, host, size: int = 560, name: str = "Report"):
        self.host, self.size = host, size
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(host.application)
        host.application.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(host.scene)
        self.node = self.logic.AddSliceNode(name)
        self.composite = self.logic.GetSliceCompositeNode()
        self.logic.ResizeSliceNode(size, size)

    def close(self) -> None:
        """Let go of the host's scene."""
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
        """Choose the layers."""
        self.composite.SetBackgroundVolumeID(background.GetID())
        self.composite.SetForegroundVolumeID(foreground.GetID() if foreground is not None else None)
        self.composite.SetForegroundOpacity(opacity)

    def picture(self) -> np.ndarray:
        """What the view shows: (size, size, 3) uint8, first row on top."""
        self.logic.UpdatePipeline()
        connection = self.logic.GetImageDataConnection()
        if connection is None:
            return np.zeros((self.size, self.size, 3), np.uint8)
        connection.GetProducer().Update()
        image = connection.GetProducer().GetOutputDataObject(connection.GetIndex())
        width, height, _ = image.GetDimensions()
        values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
        # Outside every layer nothing is drawn: the view's black shows through.
        return np.where(values[::-1, :, 3:] > 0, values[::-1, :, :3], 0).astype(np.uint8)

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
