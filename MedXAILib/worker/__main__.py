"""The worker process. Run by its path: ``python …/MedXAILib/worker/__main__.py``.

What it does before anything else: leads its own process group, so that it can be killed with all its children; moves
standard input and output aside, so that a library that prints or reads cannot break the protocol; leaves a watcher behind
that kills the group when the client or the worker itself is gone (also while the interpreter is stuck in foreign code);
says hello.
"""

import os
import signal
import sys


def set_path() -> None:
    """MedXAILib's parent first. PythonSlicer may drop PYTHONPATH, and this file's own folder must not be searched at all."""
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(here))
    sys.path[:] = [root, *(p for p in sys.path if p not in (here, root))]


def lead_group() -> None:
    """Become the leader of a process group of our own."""
    if hasattr(os, "setsid") and os.getpgrp() != os.getpid():
        os.setsid()


def move_streams() -> tuple[int, int]:
    """Descriptors for commands and events; 0 then reads nothing and 1 goes to stderr, also for children."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(2)
    except OSError:
        os.dup2(null, 2)
    commands, events = os.dup(0), os.dup(1)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(commands, os.O_BINARY)
        msvcrt.setmode(events, os.O_BINARY)
    return commands, events


def kill_group() -> None:
    """End this process and all its children, now."""
    if sys.platform == "win32":
        import subprocess

        subprocess.run(["taskkill", "/PID", str(os.getpid()), "/T", "/F"], check=False)
        os._exit(1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def watch(commands: int) -> None:
    """Leave a small process behind that kills the group once the client's end of the pipe, or this process, is gone.

    The reading thread does so too, but needs the interpreter's lock, which a library may hold for long; and a worker that was
    killed cannot take its children along. The watcher polls for hang-up only and never reads a command.
    """
    if not hasattr(os, "fork"):
        return
    import select

    gone, _alive = os.pipe()  # its other end stays open as long as this process lives, and no child inherits it
    if os.fork():
        os.close(gone)
        return
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        low, high = sorted((commands, gone))
        os.closerange(0, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, 65536)
        poll = select.poll()
        poll.register(commands, 0)
        poll.register(gone, 0)
        while True:
            for fd, state in poll.poll():
                if state & select.POLLHUP or fd == gone:
                    os.killpg(os.getpgrp(), signal.SIGKILL)
                poll.unregister(fd)  # not a pipe (started by hand): the reading thread alone will see its end
    finally:
        os._exit(1)


def versions() -> dict:
    """Installed versions, read without importing anything."""
    from importlib import metadata

    from MedXAILib import __version__

    found = {"MedXAI": __version__}
    for name in ("torch", "monai", "numpy", "pyradiomics"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def main() -> None:
    """Serve until ``quit`` or the end of the commands."""
    lead_group()
    commands, events = move_streams()
    watch(commands)
    set_path()

    from MedXAILib.worker import protocol

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(events, view) :]

    python = "{}.{}.{}".format(*sys.version_info)
    hello = {"pid": os.getpid(), "python": python, "versions": versions(), "devices": [{"name": "cpu"}]}
    try:
        write(protocol.encode({"event": "hello", **hello}))
    except OSError:
        kill_group()

    import argparse

    parser = argparse.ArgumentParser(description="MedXAI's background process; speaks JSON lines with its client.")
    parser.add_argument("--engine", help="module:attribute, called for the engine (tests)")
    parser.add_argument("--model-bytes", type=int, default=4 * 2**30, help="models kept loaded between jobs")
    parser.add_argument("--volume-bytes", type=int, default=4 * 2**30, help="volumes kept between jobs")
    options = parser.parse_args()

    from MedXAILib.worker.server import Server

    engine = None
    if options.engine:
        import importlib

        module, _, attribute = options.engine.partition(":")
        engine = getattr(importlib.import_module(module), attribute)()
    server = Server(
        lambda: os.read(commands, 65536), write, kill_group, engine, options.model_bytes, options.volume_bytes
    )
    server.serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what libraries left running has nothing to say any more; the watcher takes their processes along


if __name__ == "__main__":
    main()
