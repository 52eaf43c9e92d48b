"""Reload and test: the worker ends, every room is read again, every open panel is built again."""

from __future__ import annotations

import sys

MODULES = ("MedXAIModels", "MedXAIDeepDream", "MedXAISegmentationAbility", "MedXAIFeatureBackProjection", "MedXAICounterfactualImpact", "MedXAICycleExplanation")  # fmt: skip


def reloadPanels():
    """Shut the worker down, forget every ``MedXAILib`` module and reload the MedXAI panels that have been opened."""
    import slicer

    opened = [name for name in MODULES if hasattr(slicer.modules, name + "Widget")]
    for name in opened:
        getattr(slicer.modules, name + "Widget").cleanup()
    from ..scene import remove
    from .worker_session import closeSession

    closeSession()
    remove.unwatch()
    for name in [n for n in sys.modules if n == "MedXAILib" or n.startswith("MedXAILib.")]:
        del sys.modules[name]
    for name in opened:
        slicer.util.reloadScriptedModule(name)


def runTestCases(test, folder):
    """Run every ``*TestCase.py`` of a folder and fail with what failed; fails as well when nothing ran."""
    import unittest

    if not folder.is_dir():
        test.skipTest("An installed extension carries no tests; use the source tree.")
    sys.path.insert(0, str(folder))
    try:
        suite = unittest.defaultTestLoader.discover(str(folder), pattern="*TestCase.py", top_level_dir=str(folder))
        result = unittest.TextTestRunner(verbosity=2, stream=sys.stdout).run(suite)
    finally:
        sys.path.remove(str(folder))
    ran = result.testsRun - len(result.skipped)
    print(f"{ran} tests ran, {len(result.skipped)} were skipped: {[reason for _case, reason in result.skipped]}")
    test.assertGreater(ran, 0, "No test ran.")
    test.assertTrue(result.wasSuccessful(), [str(case) for case, _ in result.failures + result.errors])
