"""An engine for the worker's tests: its methods misbehave in every way that has been seen, or was feared."""

import ctypes
import errno
import importlib.util
import os
import subprocess
import sys
import threading
import time

import numpy as np

from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import Curve, Explanation, Layer, Patch, Point, Sequence, Step, Table
from MedXAILib.settings import DreamSettings
from MedXAILib.volume import Volume


class Values:
    """Settings that take anything."""

    device = "cpu"

    def __init__(self, values):
        self.__dict__.update(values)


class FakeModel:
    def __init__(self, folder):
        self.folder = folder


class FakeEngine:
    """Counts what it loads; ``explain`` looks the method up among the functions below."""

    def __init__(self):
        self.loaded = []

    def environment(self):
        return {"versions": {"torch": "fake"}, "devices": [{"name": "cpu"}]}

    def describe(self, folder, trusted):
        if not os.path.isdir(folder):
            raise MedXAIError(f"There is no model in '{folder}'.")
        return {
            "name": os.path.basename(folder),
            "labels": ["background", "lesion"],
            "loaded": len(self.loaded),
            "trusted": sorted(trusted),
        }

    def load(self, folder, device, trusted):
        self.loaded.append(folder)
        if folder.endswith("untrusted") and not trusted:
            raise MedXAIError("The program has not been trusted yet.", kind="untrusted", hint="Trust it.")
        return FakeModel(folder)

    def size(self, model):
        return 1000

    def settings(self, method, values):
        if "nonsense" in values:
            return DreamSettings.from_json(values)
        return Values(values)

    def explain(self, method, model, volumes, settings, segments):
        return globals()["do_" + method](self, model, volumes, settings, segments)

    def release(self):
        self.loaded.append("released")


def explanation(volume, **more):
    return Explanation("fake", "A fake", maps={"map": Layer(volume, "signed", "Map [HU]")}, **more)


def do_simple(engine, model, volumes, settings, segments):
    """Steps with points, previews and a message; ends with everything an explanation can hold."""
    steps = getattr(settings, "steps", 5)
    volume = volumes[0]
    for n in range(steps):
        time.sleep(getattr(settings, "pause", 0))
        points = (Point("curves", n, {"response": n / 2, "undefined": float("nan"), "endless": float("inf")}),)
        box = np.full((1, 2, 2), n, np.float32)

        def previews(n=n, box=box):
            return {"dream": volume.with_array(volume.array + n) if n == 0 else Patch(box, (1, 0, 1))}

        yield Step((n + 1) / steps, f"Step {n + 1}", points, previews, "hello" if n == 0 else "")
    return Explanation(
        "simple",
        "Simple",
        maps={"dream": Layer(volume.with_array(volume.array * 2), "image", "Dream", 0.0, None)},
        masks={"mask": volume.with_array((volume.array > 0).astype(np.uint8))},
        curves={"curves": Curve("C", "step", {"step": np.arange(3), "z": np.array([1.0, np.nan, 2])}, bands={"r": (-1.0, 1.0)}, shown=("z",))},
        tables={"verdicts": Table("V", {"feature": ["a", "b"], "z": [1.5, float("nan")]})},
        sequences={"steps": Sequence("S", [(0, volume), (4, volume.crop((0, 0, 0), (1, 2, 2)))], thinned=3)},
        scores={"loaded": len(engine.loaded), "bad": float("-inf"), "segments": sum(int(s.array.sum()) for s in segments)},
        self_checks={"agree": {"value": np.float32(0.5), "passed": np.bool_(True), "meaning": "It does."}},
        notes=["Ü is not ASCII"],
        provenance={"pid": os.getpid(), "mapped": isinstance(volume.array, np.memmap), "same": id(volume), "path": sys.path[0], "shadowed": importlib.util.find_spec("protocol") is not None},
    )  # fmt: skip


def do_noisy(engine, model, volumes, settings, segments):
    """A library that prints on every level, reads, and fills the streams."""
    print("printed")
    sys.stdout.flush()
    os.write(1, b'{"event":"result","job":"x"}\n')
    sys.__stdout__.write("x" * 200000 + "\n")
    libc = ctypes.CDLL(None)
    libc.printf(b"from C\n")
    libc.fflush(None)
    subprocess.run([sys.executable, "-c", "print('child', input() if False else '')"], check=True)
    assert sys.stdin.read() == "" and os.read(0, 10) == b""
    yield Step(1.0, "noise")
    return explanation(volumes[0])


def do_abort(engine, model, volumes, settings, segments):
    yield Step(0.5, "about to")
    sys.stderr.write("last words\n")
    sys.stderr.flush()
    os.abort()


def do_exit(engine, model, volumes, settings, segments):
    yield Step(0.5, "about to")
    os._exit(settings.code)


def do_sysexit(engine, model, volumes, settings, segments):
    yield Step(0.5, "about to")
    sys.exit(3)


def do_raise(engine, model, volumes, settings, segments):
    yield Step(0.5, "about to")
    error = {
        "refused": MedXAIError("No such label.", hint="Choose another."),
        "value": ValueError("secret detail\nsecond line"),
        "memory": MemoryError("Unable to allocate 9 TiB"),
        "torch": RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        "cuda": type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB"),
        "disk": OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
        "missing": ModuleNotFoundError("No module named 'radiomics'", name="radiomics"),
        "own": ModuleNotFoundError(
            "No module named 'MedXAILib.x'", name="MedXAILib.x"
        ),  # nothing a person could install
        "closed": GeneratorExit(),
    }[settings.what]
    raise error


def do_allocate(engine, model, volumes, settings, segments):
    """Really runs out of memory."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    yield Step(0.5, "allocating")
    return explanation(volumes[0].with_array(np.ones((4096, 4096, 4096), np.float32)))


def do_stuck(engine, model, volumes, settings, segments):
    """Sleeps inside a step, deaf to SIGTERM where asked; children may be there."""
    import signal

    if getattr(settings, "deaf", False):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    children = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        for _ in range(getattr(settings, "children", 0))
    ]
    yield Step(0.1, "pids " + " ".join(str(c.pid) for c in children))
    open(settings.sign, "w").close()  # from here on no step ends
    if getattr(settings, "hold_lock", False):  # as foreign code that never lets the interpreter go
        ctypes.PyDLL(None).sleep(600)
    time.sleep(600)


def do_careful(engine, model, volumes, settings, segments):
    """Cleans up when it is stopped, and leaves a sign."""
    try:
        while True:
            time.sleep(0.02)
            yield Step(0.5, "working")
    finally:
        open(settings.sign, "w").close()


def do_fast(engine, model, volumes, settings, segments):
    """As many steps as it can in a second, each with points and previews."""
    begun, n = time.monotonic(), 0
    while time.monotonic() - begun < settings.seconds:
        n += 1
        now = n
        time.sleep(getattr(settings, "pause", 0))
        yield Step(
            min(1.0, (time.monotonic() - begun) / settings.seconds),
            f"Step {n}",
            (Point("curves", n, {"response": n}),),
            lambda now=now: {"dream": Patch(np.full((1, 1, 1), now, np.float32), (0, 0, 0))},
        )
    return explanation(volumes[0], scores={"steps": n})


def do_full(engine, model, volumes, settings, segments):
    """The disk is full when the result is written."""
    from MedXAILib.worker import wire

    yield Step(0.5, "about to")
    original = wire.save_array

    def save(file, array):
        wire.save_array = original
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    wire.save_array = save
    return explanation(volumes[0])


def do_threads(engine, model, volumes, settings, segments):
    yield Step(1.0, "in the main thread" if threading.current_thread() is threading.main_thread() else "elsewhere")
    return explanation(volumes[0])


def do_unsendable(engine, model, volumes, settings, segments):
    yield Step(1.0, "done")
    return explanation(volumes[0], scores={"what": object()})


def do_pool(engine, model, volumes, settings, segments):
    """A spawn pool, as the features use it: its children import the worker's main file again."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        value = pool.apply(abs, (-7,))
    yield Step(1.0, "pooled")
    return explanation(volumes[0], scores={"value": value, "free": int(isinstance(volumes[0], Volume))})


def do_training(engine, model, volumes, settings, segments):
    """A work without volumes: epochs with points, and an explanation without maps."""
    for epoch in range(1, settings.epochs + 1):
        time.sleep(getattr(settings, "pause", 0))
        yield Step(
            epoch / settings.epochs, f"epoch {epoch}", (Point("validation", epoch, {"probability": epoch / 10}),)
        )
    curve = Curve("Validation", "epoch", {"epoch": np.arange(1.0, settings.epochs + 1)})
    return Explanation("train-cycle", "A training", curves={"validation": curve}, scores={"given": len(volumes) + len(segments)}, provenance={"folder": "somewhere"})  # fmt: skip
