"""The worker as a real process, with an engine that misbehaves (`worker_fakes`), and once with the real one."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from MedXAILib.volume import Volume
from MedXAILib.worker import launch, protocol, wire
from MedXAILib.worker.jobs import RunRequest, State
from MedXAILib.worker.transports import LocalClient

HERE = Path(__file__).resolve().parent
FAKE = ("--engine", "worker_fakes:FakeEngine")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE)}  # without MedXAILib's parent: the worker has to find it by itself
posix = pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")


def alive(pid):
    """Whether a process runs; a zombie does not (in a container nobody may ever wait for it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        pass
    if os.path.isdir("/proc/self"):
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def gone(pids, seconds=3.0):
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    return not any(map(alive, pids))


class Session:
    """A client and what it has heard."""

    def __init__(self, tmp_path, python="", arguments=FAKE):
        self.client = LocalClient(python, arguments, ENVIRONMENT, temporary=tmp_path / "private")
        self.model = tmp_path / "model"
        self.model.mkdir(exist_ok=True)
        (self.model / "model.json").write_text("{}")
        self.events = []
        self.log = []
        self.client.observe(lambda what, value: self.log.append(value) if what == "log" else None)
        self.volume = Volume(np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.diag([2.0, 3, 4, 1]), "study", "HU")

    def start(self, method, on_event=None, panel="", segments=(), model=None, **settings):
        request = RunRequest(method, model or self.model, [self.volume], settings, segments, panel=panel)
        return self.client.run(request, on_event or self.events.append)

    def finish(self, job, seconds=20):
        assert self.client.wait(job, seconds), f"{job} did not end; log: {self.log}"
        return job

    def run(self, method, **settings):
        return self.finish(self.start(method, **settings))

    def until(self, condition, seconds=10):
        assert self.client.wait(condition, seconds), f"log: {self.log}"

    @property
    def pid(self):
        return self.client.environment["pid"]

    def stuck(self, **settings):
        """A job stuck within a step; returns it with the pids of the worker and its children."""
        sign = self.model / "stuck"
        sign.unlink(missing_ok=True)
        job = self.start("stuck", sign=str(sign), **settings)
        self.until(lambda: job.stage.startswith("pids") and sign.exists())
        return job, [self.pid, *map(int, job.stage.split()[1:])]


@pytest.fixture
def session(tmp_path):
    one = Session(tmp_path)
    yield one
    pid = one.client.environment.get("pid")
    one.client.shutdown()
    assert pid is None or gone([pid])
    assert not list((tmp_path / "private").glob("*"))


@pytest.fixture(scope="module")
def everyones(tmp_path_factory):
    one = Session(tmp_path_factory.mktemp("warm"))
    yield one
    one.client.shutdown()


@pytest.fixture
def warm(everyones):
    """A session whose worker other tests use too, for tests that do not end it: checked afterwards."""
    everyones.events.clear()
    everyones.log.clear()
    everyones.run("simple")
    pid = everyones.pid
    everyones.events.clear()
    yield everyones
    assert everyones.run("simple").state is State.DONE and everyones.pid == pid


@pytest.fixture
def launcher(tmp_path):
    """As PythonSlicer: a program whose child is the real interpreter; killing it leaves the child alive."""
    script = tmp_path / "PythonSlicer"
    script.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n')
    script.chmod(0o755)
    return str(script)


# --- What comes back ---


def test_everything_an_explanation_holds(warm):
    job = warm.start(
        "simple", segments=[warm.volume.with_array((warm.volume.array > n).astype(np.uint8)) for n in (20, 21)]
    )
    seen = {}

    def look(event):
        warm.events.append(event)
        if event.name == "result":
            said = event.explanation
            seen.update(dream=np.array(said.maps["dream"].volume.array), matrix=said.maps["dream"].volume.ijk_to_ras)
            seen.update(z=np.array(said.curves["curves"].columns["z"]), said=said)
        if event.name == "preview":
            seen.setdefault("previews", []).append((event.title, np.array(event.image.array)))

    job.on_event = look
    warm.finish(job)
    assert job.state is State.DONE
    assert (seen["dream"] == warm.volume.array * 2).all() and (seen["matrix"] == warm.volume.ijk_to_ras).all()
    assert np.isnan(seen["z"][1])
    said = seen["said"]
    # The worker's own folder is not searched: its `protocol` or `client` would stand before anybody else's.
    assert said.provenance["path"] == str(HERE.parents[1]) and not said.provenance["shadowed"]
    assert said.provenance["mapped"] and said.scores["bad"] == -np.inf and said.scores["segments"] == 3 + 2
    assert said.notes == ["Ü is not ASCII"] and said.self_checks["agree"] == {
        "value": 0.5,
        "passed": True,
        "meaning": "It does.",
    }
    points = [p for e in warm.events if e.name == "point" for p in e.points]
    assert [p.step for p in points] == list(range(5)) and points[3].values["response"] == 1.5
    assert np.isnan(points[0].values["undefined"]) and points[0].values["endless"] == np.inf
    names = [e.name for e in warm.events]
    assert names[0] == "queued" and names[-1] == "result" and names.count("result") == 1 and "log" in names
    title, first = seen["previews"][0]
    assert title == "dream" and (first == warm.volume.array).all()


def test_hello_comes_before_the_engine(session):
    begun = time.monotonic()
    session.client.start()
    session.until(lambda: session.client.phase == "ready")
    took = time.monotonic() - begun
    versions = session.client.environment["versions"]
    assert set(versions) == {"MedXAI", "torch", "monai", "numpy", "pyradiomics"} and versions["numpy"] == np.__version__
    assert took < 3
    session.until(lambda: session.client.environment["versions"]["torch"] == "fake")


def test_stays_warm_and_knows_a_changed_model(session):
    assert session.run("simple").explanation.scores["loaded"] == 1
    first = session.pid
    assert session.run("simple").explanation.scores["loaded"] == 1
    (session.model / "model.json").write_text('{"changed": 1}')
    assert session.run("simple").explanation.scores["loaded"] == 2
    assert session.pid == first


def test_least_recently_used_models_go_and_release_lets_go_of_all(tmp_path):
    session = Session(tmp_path, arguments=(*FAKE, "--model-bytes", "2500"))
    models = [tmp_path / name for name in "abc"]
    with session.client:
        for model in models:
            model.mkdir()
        loads = [
            session.run("simple", model=m).explanation.scores["loaded"]
            for m in (*models, models[1], models[2], models[0])
        ]
        assert loads == [1, 2, 3, 3, 3, 4]  # room for two: b and c were kept, a had to be loaded again
        released = []
        session.finish(session.client.release(released.append))
        assert released[0].bytes == 2000
        assert session.run("simple", model=models[0]).explanation.scores["loaded"] == 6  # "released" counted as one


def test_stored_volume_is_the_same_object_in_the_next_run(warm):
    stored = warm.client.store(warm.volume, "key")

    def run():
        job = warm.client.run(RunRequest("simple", warm.model, [stored]))
        return warm.finish(job).explanation.provenance["same"]

    assert run() == run()


def test_describe_is_answered_while_a_run_goes_on(warm):
    answers = []
    job = warm.start("careful", sign=str(warm.model / "sign"))
    warm.until(lambda: job.state is State.RUNNING)
    warm.finish(warm.client.describe(warm.model, answers.append, ["AB12"]))
    warm.finish(warm.client.describe("/no/such", answers.append))
    assert answers[0].description["labels"] == ["background", "lesion"]
    assert answers[0].description["trusted"] == ["ab12"]
    assert answers[1].kind == "refused" and "no model in '/no/such'" in answers[1].message
    assert job.state is State.RUNNING
    job.cancel()
    warm.finish(job)


def test_computes_in_the_main_thread(warm):
    warm.run("threads")
    assert [e.stage for e in warm.events if e.name == "progress"][-1] == "in the main thread"


# --- Cancel, queue, replace ---


def test_cancel_between_steps_is_quick_and_closes_the_generator(warm):
    sign = warm.model / "sign"
    job = warm.start("careful", sign=str(sign))
    warm.until(lambda: job.stage == "working")
    pid, begun = warm.pid, time.monotonic()
    job.cancel()
    warm.finish(job)
    assert time.monotonic() - begun < 1.0
    assert job.state is State.CANCELLED and sign.exists()
    assert warm.pid == pid  # still the same


@posix
@pytest.mark.parametrize("how", [{}, {"hold_lock": True}, {"deaf": True, "hold_lock": True}], ids=str)
def test_cancel_of_a_stuck_step_within_three_seconds(session, how):
    job, pids = session.stuck(children=1, **how)
    waiting = session.start("simple", panel="other")
    begun = time.monotonic()
    job.cancel()
    session.finish(job)
    assert time.monotonic() - begun < 3
    assert job.state is State.CANCELLED and gone(pids)
    assert session.finish(waiting).state is State.DONE  # in a new worker


def test_queue_and_replacement(warm):
    first = warm.start("careful", panel="a", sign=str(warm.model / "sign"))
    warm.until(lambda: first.state is State.RUNNING)
    second, third = warm.start("simple", panel="b"), warm.start("simple", panel="c")
    warm.until(lambda: third.position == 2)
    assert (second.position, second.state) == (1, State.QUEUED)
    begun = time.monotonic()
    second.cancel()
    warm.finish(second)
    assert time.monotonic() - begun < 1.0 and second.state is State.CANCELLED and first.state is State.RUNNING
    warm.until(lambda: third.position == 1)
    newer = warm.start("simple", panel="a")
    warm.finish(first)
    assert first.state is State.CANCELLED and first.reason == "replaced"
    assert warm.finish(newer).state is State.DONE and warm.finish(third).state is State.DONE
    ends = [(e.job, e.name) for e in warm.events if e.name in ("result", "cancelled")]
    assert ends == [(second, "cancelled"), (first, "cancelled"), (third, "result"), (newer, "result")]


def test_many_quick_replacements(warm):
    """A slider that is moved: every job ends once, only the last one with a result."""
    all_jobs = [warm.start("simple", pause=0.01, steps=3) for _ in range(30)]
    warm.finish(all_jobs[-1])
    for job in all_jobs[:-1]:
        warm.finish(job)
    assert [j.state for j in all_jobs] == [State.CANCELLED] * 29 + [State.DONE]
    ends = [e for e in warm.events if e.name in ("result", "cancelled", "error")]
    assert len(ends) == 30


def test_shutdown_while_it_computes(session):
    job, pids = session.stuck(children=1)
    begun = time.monotonic()
    session.client.shutdown()
    assert time.monotonic() - begun < 1.5 and job.state is State.CANCELLED and gone(pids)


# --- Flow ---


def test_fast_steps_do_not_flood_the_client(warm):
    kept, files = [], set()

    def slow(event):
        warm.events.append(event)
        if event.name == "preview":
            files.update(Path(event.job.command["folder"]).glob("preview-*"))
            assert len(list(Path(event.job.command["folder"]).glob("preview-*"))) == 1
            kept.append(int(event.image.array[0, 0, 0]))
            time.sleep(0.15)

    job = warm.finish(warm.start("fast", slow, seconds=1.5))
    steps = job.explanation.scores["steps"]
    points = [p.step for e in warm.events if e.name == "point" for p in e.points]
    assert points == list(range(1, steps + 1)) and steps > 200  # all of them
    assert sum(e.name == "point" for e in warm.events) <= 20
    assert sum(e.name == "progress" for e in warm.events) <= 22
    assert 2 <= len(kept) <= 11 and kept == sorted(set(kept)) and len(files) == len(kept)
    etas = [(e.fraction, e.eta) for e in warm.events if e.name == "progress" and e.fraction > 0.5]
    assert all(eta == pytest.approx(1.5 * (1 - f), abs=0.3) for f, eta in etas)


# --- What libraries do ---


@posix
def test_library_that_prints_and_reads(warm):
    assert warm.run("noisy").state is State.DONE
    for _ in range(20):  # its standard error is another pipe: it may come a little later
        if "from C" in "\n".join(warm.log):
            break
        time.sleep(0.1)
        warm.run("simple")
    log = "\n".join(warm.log)
    for words in ("printed", '{"event":"result","job":"x"}', "from C", "child"):
        assert words in log
    assert not any("Not a message" in line for line in warm.log)


@pytest.mark.parametrize(
    "what, kind, words",
    [
        ("refused", "refused", "No such label."),
        ("value", "crashed", "internal error (ValueError: secret detail)"),
        ("memory", "memory", "Memory ran out: Unable to allocate 9 TiB."),
        ("torch", "memory", "Memory ran out"),
        ("cuda", "memory", "CUDA out of memory"),
        ("disk", "disk", "The disk is full (/tmp/x)."),
        ("missing", "missing", "'radiomics' is not installed"),
        ("own", "crashed", "internal error (ModuleNotFoundError"),
        ("closed", "crashed", "internal error (GeneratorExit)"),
    ],
)
def test_errors_and_the_worker_lives_on(warm, what, kind, words):
    job = warm.run("raise", what=what)
    assert job.state is State.FAILED and job.failure.kind == kind and words in job.failure.message
    assert "Traceback" not in job.failure.message + job.failure.hint
    logged = "".join(e.text for e in warm.events if e.name == "log")
    assert ("Traceback" in logged) is (what != "refused")


def test_wrong_settings_and_untrusted_programs_are_refused(warm):
    assert warm.run("simple", nonsense=1).failure.message.startswith("There is no setting 'nonsense'")
    untrusted = warm.model / "untrusted"
    untrusted.mkdir()
    assert warm.run("simple", model=untrusted).failure.kind == "untrusted"
    trusting = RunRequest("simple", untrusted, [warm.volume], trusted={"AB"})
    assert warm.finish(warm.client.run(trusting)).state is State.DONE
    assert warm.run("simple", model=untrusted).failure.kind == "untrusted"  # the loaded one is not a way around it


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory that is kept")
def test_memory_really_runs_out(session):
    job = session.run("allocate")
    assert (
        job.failure.kind == "memory" and "Unable to allocate" in job.failure.message and "smaller" in job.failure.hint
    )
    assert session.run("simple").state is State.DONE


def test_disk_full_leaves_nothing(warm):
    folders = []
    job = warm.start("full")
    job.on_event = lambda event: folders.append(sorted(p.name for p in Path(job.command["folder"]).iterdir()))
    warm.finish(job)
    assert job.failure.kind == "disk" and "is full" in job.failure.message
    assert folders[-1] == ["volume-0.npy"] and not os.path.exists(job.command["folder"])


def test_explanation_that_cannot_be_sent(warm):
    job = warm.run("unsendable")
    assert job.failure.kind == "crashed" and "fake.scores.what is a object" in job.failure.message


def test_spawn_pool_works_inside(warm):
    assert warm.run("pool").explanation.scores["value"] == 7


# --- Death ---


@posix
@pytest.mark.parametrize(
    "method, settings, words",
    [("abort", {}, "SIGABRT"), ("exit", {"code": 0}, "exit code 0"), ("exit", {"code": 7}, "exit code 7")],
)
def test_crash_is_told_and_the_next_run_has_a_new_worker(session, method, settings, words):
    job = session.run(method, **settings)
    assert job.state is State.FAILED and job.failure.kind == "crashed" and words in job.failure.message
    if method == "abort":
        assert "last words" in job.failure.hint
    assert session.run("simple").state is State.DONE


def test_sysexit_in_a_library_does_not_end_the_worker(warm):
    assert warm.run("sysexit").failure.kind == "crashed"


@posix
def test_killed_worker_takes_its_children_along(session):
    job, pids = session.stuck(children=2)
    os.kill(pids[0], signal.SIGKILL)
    session.finish(job)
    assert "SIGKILL" in job.failure.message and "memory" in job.failure.hint and gone(pids)


@posix
@pytest.mark.parametrize("how", [{}, {"hold_lock": True}], ids=str)
@pytest.mark.parametrize("launched", [False, True], ids=["direct", "launcher"])
def test_killed_client_takes_the_worker_and_its_children_along(tmp_path, launcher, how, launched):
    script = f"""
        import sys
        sys.path[:0] = {[str(HERE), str(HERE.parents[1])]!r}
        from pathlib import Path
        from test_worker_process import Session
        session = Session(Path({str(tmp_path)!r}), {launcher if launched else ""!r})
        job, pids = session.stuck(children=2, **{how!r})
        print(*pids, flush=True)
        while True:
            session.client.poll(1)
    """
    client = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    pids = [int(p) for p in client.stdout.readline().split()]
    assert len(pids) == 3 and all(map(alive, pids))
    client.kill()
    client.wait()
    client.stdout.close()
    assert gone(pids, 1.0)


@posix
def test_through_a_launcher(tmp_path, launcher):
    session = Session(tmp_path, launcher)
    with session.client:
        assert session.run("simple").explanation.provenance["pid"] == session.pid
        parent = (
            int(Path(f"/proc/{session.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            if os.path.isdir("/proc/self")
            else None
        )
        assert os.getpgid(session.pid) == session.pid != parent
        job, pids = session.stuck(children=1, deaf=True)
        begun = time.monotonic()
        job.cancel()
        session.finish(job)
        assert time.monotonic() - begun < 3 and gone([*pids, *([parent] if parent else [])])
        job, pids = session.stuck(children=1)
    assert gone(pids)  # after shutdown


@posix
def test_shutdown_before_hello_through_a_launcher(tmp_path, launcher):
    session = Session(tmp_path, launcher)
    job = session.start("simple")
    time.sleep(0.02)
    session.client.shutdown()
    assert job.state is State.CANCELLED
    main = str(launch.main_file())

    def left():
        found = subprocess.run(["ps", "-eo", "pid=,stat=,args="], capture_output=True, text=True).stdout.splitlines()
        return [line for line in found if main in line and str(launcher) in line and " Z" not in line]

    until = time.monotonic() + 2
    while left() and time.monotonic() < until:
        time.sleep(0.02)
    assert not left()


def test_python_that_does_not_exist(tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    session = Session(tmp_path, str(broken))
    job = session.run("simple")
    assert job.failure.kind == "missing" and "could not be started" in job.failure.message
    session.client.shutdown()


def test_python_that_is_not_a_python(tmp_path):
    session = Session(tmp_path, "/bin/false" if os.path.exists("/bin/false") else "/usr/bin/false")
    job = session.run("simple")
    assert job.failure.kind == "crashed" and "exit code 1" in job.failure.message
    session.client.shutdown()


# --- The pipe itself, without the client ---


@pytest.fixture
def raw():
    process = subprocess.Popen(
        [sys.executable, str(launch.main_file()), *FAKE], env=ENVIRONMENT, bufsize=0, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    decoder, found = protocol.Decoder("event"), []

    def read(until):
        while not any(until(m) for m in found):
            data = process.stdout.read(65536)
            assert data, found
            found.extend(decoder.feed(data))
        return next(m for m in found if until(m))

    process.events, process.until = found, read
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_garbage_to_the_worker(raw):
    raw.stdin.write(b"\x00\xff garbage\n" + b"[" * 3000 + b"\n" + b"z" * 100)
    raw.stdin.write(b"\n" + b'{"command":"run","job":"bad","panel":"p"}\n{"command":"cancel","job":"nobody"}\n')
    raw.stdin.write(protocol.encode({"command": "ack", "job": "nobody", "file": "x"}))
    raw.stdin.write(protocol.encode({"command": "describe", "job": "good", "model": str(HERE)}))
    raw.until(lambda m: m["event"] == "described")
    bad = raw.until(lambda m: m["event"] == "error")
    assert bad["job"] == "bad" and bad["kind"] == "refused" and "'run' needs the field 'method'" in bad["message"]
    assert sum(m["event"] == "log" and "ignored a line" in m["text"] for m in raw.events) == 3
    assert raw.events[0]["event"] == "hello" and raw.events[0]["pid"] == raw.pid


def test_quit_ends_it_orderly(raw):
    raw.until(lambda m: m["event"] == "hello")
    raw.stdin.write(protocol.encode({"command": "quit"}))
    assert raw.wait(5) in (0, -signal.SIGKILL if os.name == "posix" else 0)  # the watcher ends the group as well


def test_end_of_input_ends_it_at_once(raw):
    raw.until(lambda m: m["event"] == "environment")
    begun = time.monotonic()
    raw.stdin.close()
    raw.wait(5)
    assert time.monotonic() - begun < 1.0


@posix
def test_nobody_listens(raw, tmp_path):
    """The client closed its end of the events only: the worker ends as soon as it has something to say."""
    raw.until(lambda m: m["event"] == "environment")
    raw.stdout.close()
    raw.stdin.write(protocol.encode({"command": "describe", "job": "a", "model": str(tmp_path)}))
    raw.wait(5)
    raw.stdout = open(os.devnull)


# --- The real engine ---


def test_the_real_engine_says_what_it_has(tmp_path):
    torch = pytest.importorskip("torch")
    session = Session(tmp_path, arguments=())
    with session.client:
        session.client.start()
        session.until(lambda: session.client.environment.get("devices", [{}])[0].get("total_bytes"), 60)
        environment = session.client.environment
        assert environment["versions"]["torch"] == torch.__version__ and not environment.get("problem")
        assert environment["devices"][0]["name"] == "cpu"
        job = session.run("no-such-method")
        assert job.failure.kind == "refused" and "There is no method 'no-such-method'" in job.failure.message
        job = session.run("dream", colour=1)
        assert "There is no setting 'colour'" in job.failure.message
        package, answers = program(torch, tmp_path / "program"), []
        for trusted in ((), [package.sha256.upper()]):
            session.finish(session.client.describe(package.folder, answers.append, trusted))
        closed, opened = (answer.description for answer in answers)
        assert not closed["trusted"] and closed["layers"] is None and closed["parameters"] is None
        assert opened["trusted"] and opened["parameters"] == 8 and opened["layers"], (
            "a trusted program lists its layers"
        )


def program(torch, folder):
    """A package whose weights are a TorchScript program."""
    from MedXAILib.package import write_package

    channels = {"spatial_dims": 2, "channels": ["CT"], "multiple_of": 2, "intensity": {"kind": "none"}}
    output = {"labels": ["background", "liver"], "activation": "softmax"}
    fields = {"name": "program", "task": "segmentation", "input": channels, "output": output, "weights": "w.ts"}
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(2, 2, 1, bias=False)).eval()
    return write_package(folder, fields, lambda path: torch.jit.script(module).save(str(path)))


def test_client_side_needs_no_torch():
    """DESIGN: Slicer's process never imports torch."""
    code = "import sys, MedXAILib.worker.transports, MedXAILib.worker.launch; print([m for m in ('torch', 'monai', 'qt', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parents[1], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_arrays_are_written_whole_or_not_at_all(tmp_path):
    array = np.arange(10**6, dtype=np.float32).reshape(100, 100, 100).transpose(2, 0, 1)
    wire.save_array(tmp_path / "a.npy", array)
    assert (np.load(tmp_path / "a.npy") == array).all()
