"""A run leaves as it came: layers and chart views first, then nodes and displays, then the folder."""

from __future__ import annotations

import slicer
import vtk

from . import charts, colors, layers
from .nodes import RUN, batch, children, hierarchy, of_class, of_run, run_id

_before: dict[str, object] = {}  # run -> what its views showed before; of this session only
_watchers: dict[str, _Watcher] = {}  # one per scene, by its address


def remember(run) -> None:
    """Keep what the views showed before a run, for its removal."""
    _before[run.id] = (run.views, run.charts)


def run_of(scene, thing) -> str:
    """The run that a folder's item or a node belongs to; empty for others."""
    if isinstance(thing, int):
        tree = hierarchy(scene)
        return tree.GetItemAttribute(thing, RUN) or ""
    return run_id(scene, thing)


def folder_of(scene, run: str) -> int:
    """The folder of a run, 0 when there is none."""
    tree = hierarchy(scene)
    return next((i for i in children(scene, tree.GetSceneItemID()) if tree.GetItemAttribute(i, RUN) == run), 0)


def nodes_of(scene, run: str) -> list:
    """Every node of a run with its displays and storage."""
    nodes = of_run(scene, run)
    return nodes + [node for node in _dependents(nodes) if node not in nodes]


def _dependents(nodes) -> list:
    found = []
    for node in nodes:
        if node.IsA("vtkMRMLDisplayableNode"):
            found += [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
        if node.IsA("vtkMRMLStorableNode"):
            found += [node.GetNthStorageNode(n) for n in range(node.GetNumberOfStorageNodes())]
    return [node for node in dict.fromkeys(found) if node is not None]


def remove(scene, thing) -> None:
    """Remove a run, given its folder's item or any of its nodes. Inputs and other runs are not touched."""
    run = run_of(scene, thing)
    if not run:
        return
    watcher = _watchers.get(_key(scene))
    if watcher is not None:
        watcher.busy += 1
    try:
        nodes = nodes_of(scene, run)
        leave_views(scene, run, nodes)
        folder = folder_of(scene, run)
        _remove_nodes(scene, nodes)
        tree = hierarchy(scene)
        if folder and tree.GetItemName(folder) is not None:
            # What somebody else put into the folder stays, one level up.
            tree.RemoveItem(folder, False, False)
        _before.pop(run, None)
    finally:
        if watcher is not None:
            watcher.busy -= 1


def _remove_nodes(scene, nodes) -> None:
    # Sequences and browser first, outside the batch: a browser that still watches makes its proxies anew.
    for kind in ("vtkMRMLSequenceNode", "vtkMRMLSequenceBrowserNode"):
        for node in nodes:
            if node.IsA(kind) and scene.IsNodePresent(node):
                scene.RemoveNode(node)
    with batch(scene):
        for node in nodes:
            if scene.IsNodePresent(node):
                scene.RemoveNode(node)
        _forget_colors(scene)


def leave_views(scene, run: str, nodes) -> None:
    """Nothing of a run is shown any more; where it was, there is what was shown before it."""
    gone = {node.GetID() for node in nodes}
    views, plots = _before.get(run) or (None, None)
    if views is not None and views.scene is scene:
        views.put_back(gone)
        plots.put_back(gone)
    else:
        for node in of_class(scene, "vtkMRMLSliceCompositeNode"):
            layers.clear(node, gone)
        charts.leave(scene, gone)


def _forget_colors(scene) -> None:
    """Remove our colour tables when nothing uses them any more."""
    used = {node.GetColorNodeID() for node in of_class(scene, "vtkMRMLDisplayNode")}
    for tag in colors.OURS:
        node = scene.GetSingletonNode(tag, "vtkMRMLColorTableNode")
        if node is not None and node.GetID() not in used:
            for storage in _dependents([node]):
                scene.RemoveNode(storage)
            scene.RemoveNode(node)


def _key(scene) -> str:
    return scene.GetAddressAsString("")


def watch(scene) -> None:
    """From now on a run that somebody deletes by hand leaves views, displays and colours clean. Once per scene."""
    for key in [key for key, watcher in _watchers.items() if watcher.scene.Get() is None]:
        del _watchers[key]  # a scene that is no more; its address may be used again
    if _key(scene) not in _watchers:
        _watchers[_key(scene)] = _Watcher(scene)


def unwatch(scene=None) -> None:
    """Take the observers off again (of every scene by default): at module reload and application exit."""
    for key in [_key(scene)] if scene is not None else list(_watchers):
        watcher = _watchers.pop(key, None)
        if watcher is not None:
            watcher.stop()


class _Watcher:
    """Observes one scene. Holds no node and no reference that keeps the scene alive."""

    def __init__(self, scene):
        self.scene = vtk.vtkWeakReference()
        self.scene.Set(scene)
        self.busy = 0
        self.orphans: dict[str, tuple[str, list[str]]] = {}  # node -> its run, its displays and storage
        events = slicer.vtkMRMLScene
        self.tags = [
            # Before others look: the application forgets the node's item of the hierarchy at the same event.
            scene.AddObserver(events.NodeAboutToBeRemovedEvent, self._leaving, 1.0),
            scene.AddObserver(events.NodeRemovedEvent, self._left),
            scene.AddObserver(events.EndCloseEvent, self._closed),
        ]

    def stop(self) -> None:
        scene = self.scene.Get()
        if scene is not None:
            for tag in self.tags:
                scene.RemoveObserver(tag)
        self.tags = []

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _leaving(self, scene, event, node):
        """A node of a run is about to go: views first, so that nothing unrelated is shown in its place."""
        if self.busy or scene.IsClosing() or node is None:
            return
        run = run_id(scene, node)
        if not run or node.IsA("vtkMRMLDisplayNode") or node.IsA("vtkMRMLStorageNode"):
            return
        dependents = _dependents([node])
        leave_views(scene, run, [node, *dependents])
        self.orphans[node.GetID()] = (run, [d.GetID() for d in dependents])

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _left(self, scene, event, node):
        run, dependents = self.orphans.pop(node.GetID(), ("", ())) if node is not None else ("", ())
        if not run or self.busy or scene.IsClosing():
            return
        self.busy += 1
        try:
            for one in dependents:
                other = scene.GetNodeByID(one)
                if other is not None:
                    scene.RemoveNode(other)
            rest = of_run(scene, run)
            tree = hierarchy(scene)
            if not any(tree.GetItemByDataNode(other) for other in rest):
                # The last thing a person could see of it is gone: what is hidden goes too.
                _remove_nodes(scene, nodes_of(scene, run))
                _before.pop(run, None)
            _forget_colors(scene)
        finally:
            self.busy -= 1

    def _closed(self, scene, event):
        self.orphans.clear()
        for run in [run for run, (views, _) in _before.items() if views.scene is scene]:
            del _before[run]
