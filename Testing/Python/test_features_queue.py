"""Features computed beside an ascent, in a thread or in processes: never waited for, never left behind, never silently wrong."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from MedXAILib.errors import MedXAIError
from MedXAILib.features import FeatureQueue, Values, available, beside, compute, radiomic
from MedXAILib.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["firstorder_Mean", "glcm_Contrast", "shape_Sphericity", "line_texture"]
PEER = {"engine": "pyradiomics"}  # which works in processes
posix = pytest.mark.skipif(os.name != "posix", reason="signals of a POSIX system")
peer = pytest.mark.skipif(not available()[0], reason="pyradiomics is not installed")


@pytest.fixture(params=["builtin", pytest.param("pyradiomics", marks=peer)])
def engine(request):
    return {"engine": request.param}


def case(seed, size=12):
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size, size), np.uint8)
    mask[2:-2, 3:-3, 1:-1] = rng.random((size - 4, size - 6, size - 2)) > 0.3
    return Volume((rng.normal(size=mask.shape) * 100).astype(np.float32), np.eye(4)), Volume(mask, np.eye(4))


def expected(seed, engine, names=NAMES, size=12):
    """Values of `compute`; in a batch the last digit may be rounded otherwise."""
    found = compute(*case(seed, size), [name for name in names if name != "line_texture"], **engine)
    return found if engine == PEER else pytest.approx(found, rel=1e-12)


def alive(pid) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
        return state != "Z"
    except FileNotFoundError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc").is_dir()


def gone(pids, seconds=5.0) -> bool:
    """Whether all of them have ended within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def collect(queue, number, seconds=30.0):
    """Values of ``number`` steps by `ready` alone."""
    found, until = {}, time.monotonic() + seconds
    while len(found) < number and time.monotonic() < until:
        found.update(queue.ready())
        time.sleep(0.01)
    return found


def test_values_are_computes_own_and_every_step_comes_once(engine):
    steps = range(15)
    with FeatureQueue(NAMES, options=engine, processes=2, capacity=3) as queue:
        assert queue.names == NAMES[:3]  # the line texture is of the whole dream
        missing, found = [], []
        for step in steps:
            if not queue.offer(step, *case(step)):
                missing.append(step)
            found += queue.ready()
        assert missing  # three may wait
        found += queue.finish((step, *case(step)) for step in missing)
        assert not queue.notes and queue.ready() == []
    assert sorted(step for step, _ in found) == list(steps)
    for step, values in found:
        assert values == expected(step, engine)


def test_values_come_in_while_nobody_waits(engine):
    with FeatureQueue(NAMES, options=engine, processes=1) as queue:
        assert queue.offer(7, *case(7))
        assert collect(queue, 1) == {7: expected(7, engine)}


def test_an_offer_does_not_wait_and_does_not_keep_the_callers_arrays(engine, monkeypatch):
    image, mask = case(3, size=60)
    plain, go = radiomic.on_rois, threading.Event()
    monkeypatch.setattr(radiomic, "on_rois", lambda *given, **options: go.wait(30) and plain(*given, **options))
    with FeatureQueue(["glcm"], options=engine, processes=1, capacity=2) as queue:
        began = time.monotonic()
        taken = [queue.offer(step, image, mask) for step in range(50)]
        assert time.monotonic() - began < 1.0  # the process is not even up by then
        assert taken == [True, True] + [False] * 48
        go.set()
        before = compute(image, mask, ["glcm"], **engine)
        image.array[:] = 0
        mask.array[:] = 0
        assert collect(queue, 2) == {step: pytest.approx(before, rel=1e-12) for step in range(2)}
        assert queue.offer(50, *case(3))


def test_what_waits_is_bounded_in_bytes_too(engine, monkeypatch):
    image, mask = case(3, size=30)
    monkeypatch.setattr(beside, "_LIMIT", 3 * image.array.nbytes)
    with FeatureQueue(["glcm"], options=engine, processes=1, capacity=100) as queue:
        taken = [queue.offer(step, image, mask) for step in range(20)]
        assert 2 <= sum(taken) <= 8 and taken == sorted(taken, reverse=True)
        assert len(list(queue.finish((n, image, mask) for n in range(20)))) == 20 + sum(taken)


def test_what_is_missing_is_read_only_as_there_is_room(engine):
    read = []

    def missing():
        for step in range(12):
            read.append(step)
            yield step, *case(step)

    with FeatureQueue(["firstorder_Mean"], options=engine, processes=1, capacity=2) as queue:
        values = queue.finish(missing())
        next(values)
        assert len(read) <= 4
        assert len(list(values)) == 11 and len(read) == 12


def test_bad_masks_come_back_as_nan_with_a_note(engine):
    image, mask = case(0)
    empty = mask.with_array(np.zeros_like(mask.array))
    wild = image.with_array(image.array.astype(float) * 1e12)
    with FeatureQueue(["glcm_Contrast", "firstorder_Mean"], options=engine, processes=1) as queue:
        found = dict(queue.finish([(0, image, empty), (1, wild, mask), (2, image, mask), (3, image, empty)]))
        assert [text.split(":")[0] for text in sorted(queue.notes)] == ["capped", "empty"]
        assert "(2 steps)" in sorted(queue.notes)[1]
    assert math.isnan(found[0]["firstorder_Mean"]) and math.isnan(found[1]["glcm_Contrast"])
    assert math.isfinite(found[1]["firstorder_Mean"]) and math.isfinite(found[2]["glcm_Contrast"])


def test_options_and_single_slices(engine):
    rng = np.random.default_rng(1)
    image = Volume(rng.normal(size=(30, 1, 28)) * 40, np.diag([1.0, 9, 2, 1]))
    mask = image.with_array((rng.random(image.shape) > 0.3).astype(np.uint8))
    names = ["shape2D_Elongation", "glcm_Contrast"]
    with FeatureQueue(names, options={**engine, "bin_width": 7.0, "line_angle": 45}, processes=1) as queue:
        ((_, values),) = queue.finish([(0, image, mask)])
    assert values == compute(image, mask, names, bin_width=7.0, **engine) != compute(image, mask, names, **engine)
    with FeatureQueue(names, options={**engine, "bin_count": 16}, processes=1) as queue:
        ((_, values),) = queue.finish([(0, image, mask)])
    assert values == compute(image, mask, names, bin_count=16, **engine)
    with FeatureQueue("paper", options={**engine, "ndim": 2}, processes=1) as queue:
        ((_, values),) = queue.finish([(0, image, mask)])
    assert values["shape2D_PixelSurface"] == mask.array.sum() * 2 and len(values) == 9


def test_a_box_one_voxel_thick_is_still_a_volume(engine):
    """Boxes of a mask in a volume may be flat; asked for 3-D shape, the queue must give it."""
    image, mask = (one.crop((5, 2, 1), (6, 10, 11)) for one in case(4))
    with FeatureQueue(["shape_VoxelVolume", "shape_Elongation"], options=engine, processes=1) as queue:
        ((_, values),) = queue.finish([(0, image, mask)])
    assert values["shape_VoxelVolume"] == mask.array.sum() and math.isfinite(values["shape_Elongation"])


@pytest.mark.parametrize("names", ["none", ["line_texture"]])
def test_nothing_to_compute_needs_no_process(names):
    with FeatureQueue(names) as queue:
        assert queue.pids == [] and queue.offer(0, *case(0))
        assert list(queue.finish([(1, *case(1))])) == [(0, {}), (1, {})]


def test_without_processes_finish_does_it_all(engine):
    with FeatureQueue(NAMES, options=engine, processes=0) as queue:
        assert not queue.offer(0, *case(0)) and queue.pids == []
        assert list(queue.finish([(0, *case(0))])) == [(0, expected(0, engine))]


@peer
def test_where_no_process_can_be_started_it_is_computed_here(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with FeatureQueue(NAMES, options=PEER, processes=1) as queue:
        assert queue.offer(0, *case(0)) and queue.pids == []
        assert list(queue.finish([(1, *case(1))])) == [(0, expected(0, PEER)), (1, expected(1, PEER))]


def test_what_waits_is_one_batch(monkeypatch):
    """Bounded in boxes and in voxels; each step's values are its own."""
    plain, sizes, go = radiomic.on_rois, [], threading.Event()

    def on_rois(rois, *given, **options):
        sizes.append([roi.mask.size for roi in rois])
        go.wait(30)
        return plain(rois, *given, **options)

    monkeypatch.setattr(radiomic, "on_rois", on_rois)
    monkeypatch.setattr(beside, "_VOXELS", 10_000)
    with FeatureQueue(NAMES, processes=1, capacity=60) as queue:
        assert queue.pids == [] and queue.engine == "builtin"
        assert queue.offer(0, *case(0))
        while not sizes:
            time.sleep(0.001)
        for step in range(1, 40):
            assert queue.offer(step, *case(step, size=12 if step < 30 else 22))
        go.set()
        found = collect(queue, 40)
    assert [len(batch) for batch in sizes[:3]] == [1, 16, 14 - 1]  # the larger ones (6,000 voxels) go one by one
    assert all(sum(batch) <= 10_000 or len(batch) == 1 for batch in sizes) and sum(map(len, sizes)) == 40
    for step in range(40):
        assert found[step] == expected(step, {}, size=12 if step < 30 else 22)


@pytest.mark.parametrize("processes", [0, 1])
def test_a_batch_that_raises_costs_its_own_step_alone(monkeypatch, processes):
    plain = radiomic.on_rois

    def on_rois(rois, *given, **options):
        if any(roi.image.shape == (18, 16, 20) for roi in rois):
            raise ZeroDivisionError("no such luck")
        return plain(rois, *given, **options)

    monkeypatch.setattr(radiomic, "on_rois", on_rois)
    with FeatureQueue(NAMES, processes=processes) as queue:
        given = [(step, *case(step, size=22 if step in (3, 5) else 12)) for step in range(20)]
        found = dict(queue.finish(given))
        assert queue.notes == ["failed: ZeroDivisionError: no such luck (2 steps)"]
        assert dict(queue.finish([(20, *case(20))])) == {20: expected(20, {})}  # and it goes on
    for step in range(20):
        if step in (3, 5):
            assert set(found[step]) == set(NAMES[:3]) and all(map(math.isnan, found[step].values()))
        else:
            assert found[step] == expected(step, {})


def test_an_engine_that_loses_a_box_loses_no_step(monkeypatch):
    monkeypatch.setattr(
        radiomic, "on_rois", lambda rois, *_, **__: [Values({name: 1.0 for name in NAMES[:3]})] * (len(rois) - 1)
    )
    with FeatureQueue(NAMES, processes=1) as queue:
        found = dict(queue.finish([(step, *case(step)) for step in range(5)]))
        assert queue.notes == ["failed: RuntimeError: 0 answers to 1 boxes (5 steps)"]
    assert sorted(found) == list(range(5)) and all(math.isnan(v) for values in found.values() for v in values.values())


def test_closing_ends_the_thread_in_the_middle_of_a_batch():
    queue = FeatureQueue(["all"], processes=1)
    for step in range(30):
        assert queue.offer(step, *case(step, size=40))
    collect(queue, 1)
    (thread,) = queue._threads
    assert thread.is_alive()
    began = time.monotonic()
    queue.close()
    assert time.monotonic() - began < 1.5
    assert not queue.offer(99, *case(9)) and list(queue.finish([(99, *case(9))])) == []
    thread.join(30)
    assert not thread.is_alive() and len(queue.ready()) < 30
    queue.close()


def test_closing_does_not_wait_for_an_engine_that_does_not_look_up(monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(radiomic, "on_rois", lambda *_, **__: go.wait(30))
    with FeatureQueue(NAMES, processes=1) as queue:
        assert queue.offer(0, *case(0))
        began = time.monotonic()
    assert time.monotonic() - began < 1.5 and queue.ready() == []
    go.set()


def test_what_is_left_is_computed_by_the_caller_too(monkeypatch):
    """After the ascent; at its own priority, while the thread goes on."""
    plain, who = radiomic.on_rois, {}

    def on_rois(rois, *given, **options):
        who.setdefault(threading.current_thread(), []).append(len(rois))
        return plain(rois, *given, **options)

    monkeypatch.setattr(radiomic, "on_rois", on_rois)
    with FeatureQueue(["glcm"], processes=1) as queue:
        taken = [step for step in range(30) if queue.offer(step, *case(step))]
        found = dict(queue.finish((step, *case(step)) for step in range(30) if step not in taken))
        (thread,) = queue._threads
    assert set(who) == {thread, threading.current_thread()} and sum(map(sum, who.values())) == 30
    for step in range(30):
        assert found[step] == expected(step, {}, ["glcm"])


def test_the_thread_has_one_of_torchs_threads_and_others_keep_theirs(monkeypatch):
    import torch

    plain, seen, before = radiomic.on_rois, [], torch.get_num_threads()

    def on_rois(*given, **options):
        seen.append(torch.get_num_threads())
        return plain(*given, **options)

    monkeypatch.setattr(radiomic, "on_rois", on_rois)
    try:
        torch.set_num_threads(3)
        with FeatureQueue(["firstorder_Mean"], processes=1) as queue:
            assert torch.get_num_threads() == fresh(torch.get_num_threads) == 3
            assert queue.offer(0, *case(0)) and collect(queue, 1)
            assert torch.get_num_threads() == fresh(torch.get_num_threads) == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def fresh(work):
    """What a new thread answers."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(30)
    return found[0]


def drained(queue, missing=(), seconds=60):
    """`finish` in a thread, so that one that hangs is seen."""
    found = []
    thread = threading.Thread(target=lambda: found.extend(queue.finish(missing)), daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive()
    return dict(found)


@pytest.mark.parametrize("capacity", [0, -3])
def test_a_capacity_of_nothing_is_one(engine, capacity):
    with FeatureQueue(["firstorder_Mean"], options=engine, processes=1, capacity=capacity) as queue:
        assert sorted(drained(queue, ((step, *case(step)) for step in range(3)))) == [0, 1, 2]


def test_arrays_in_any_order_of_memory_go_through(engine):
    image, mask = case(2)
    turned = [one.with_array(np.asfortranarray(one.array)) for one in (image, mask)]
    for one in turned:  # whatever a volume makes of it
        object.__setattr__(one, "array", np.asfortranarray(one.array))
    with FeatureQueue(NAMES, options=engine, processes=1) as queue:
        assert queue.offer(0, *turned)
        assert drained(queue) == {0: expected(2, engine)} and not queue.notes


@peer
def test_whatever_goes_wrong_with_a_process_no_step_is_lost(monkeypatch):
    from MedXAILib.features import children

    plain = children._send

    def send(stream, message, *arrays):
        if arrays and arrays[0].shape == (18, 16, 20):
            plain(stream, message)  # half of it, so that the process waits for the rest
            raise TypeError("planted")
        plain(stream, message, *arrays)

    monkeypatch.setattr(children, "_send", send)
    with FeatureQueue(NAMES, options=PEER, processes=1) as queue:
        found = drained(queue, ((step, *case(step, size=22 if step == 1 else 12)) for step in range(4)))
        assert queue.notes == ["failed: TypeError: planted (1 step)"]
    assert all(map(math.isnan, found.pop(1).values())) and found == {n: expected(n, PEER) for n in (0, 2, 3)}


def test_the_device_is_where_it_is_counted():
    """An Apple GPU has no float64: it is the CPU that counts, in batches for it."""
    for device, where in (("mps", "cpu"), ("mps:0", "cpu"), ("cpu", "cpu"), ("cuda:1", "cuda:1")):
        assert radiomic.counting_device(device) == where
    with FeatureQueue(NAMES, options={"device": "mps"}, processes=0) as queue:
        assert queue._options["device"] == "cpu"
        assert dict(queue.finish([(0, *case(0))])) == {0: expected(0, {})}


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux")
def test_the_thread_gives_way(monkeypatch):
    seen = []
    plain = radiomic.on_rois

    def on_rois(*given, **options):
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return plain(*given, **options)

    monkeypatch.setattr(radiomic, "on_rois", on_rois)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with FeatureQueue(NAMES, processes=1) as queue:
        assert queue.offer(0, *case(0)) and collect(queue, 1)
    assert seen == [min(before + 10, 19)] and os.getpriority(os.PRIO_PROCESS, 0) == before


@posix
def test_a_program_that_ends_without_closing_ends_well(tmp_path):
    """While torch computes in the thread: a thread that Python ends inside it would take the process down."""
    body = "for n in range(12):\n    queue.offer(20 + n, *case(n, 60))\ntime.sleep(1.5)\nprint('end', flush=True)\n"
    process = script(tmp_path, body, {})
    assert process.communicate(timeout=60)[0] == "end\n" and process.returncode == 0


@pytest.mark.parametrize("options", [{"engine": "radiomics"}, {"bin_width": 0}, {"bin_count": -1}, {"bin_count": 1001}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(MedXAIError):
        FeatureQueue(NAMES, options=options)


@peer
@posix
def test_closing_ends_the_processes_at_once():
    queue = FeatureQueue(["all"], options=PEER, processes=2)
    for step in range(8):
        queue.offer(step, *case(step, size=40))
    collect(queue, 1)
    pids = queue.pids
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    began = time.monotonic()
    queue.close()
    assert time.monotonic() - began < 1.0 and not any(alive(pid) for pid in pids)
    assert not queue.offer(9, *case(9)) and list(queue.finish([(9, *case(9))])) == []
    queue.close()


@peer
@posix
def test_a_queue_is_closed_when_its_block_ends_with_an_error():
    with pytest.raises(KeyboardInterrupt), FeatureQueue(NAMES, options=PEER, processes=1) as queue:
        pids = queue.pids
        raise KeyboardInterrupt
    assert not any(alive(pid) for pid in pids)


@peer
@posix
def test_a_process_that_dies_is_replaced_and_its_step_computed():
    with FeatureQueue(NAMES, options=PEER, processes=1, capacity=20) as queue:
        for step in range(10):
            assert queue.offer(step, *case(step))
        (pid,) = queue.pids
        os.kill(pid, signal.SIGKILL)
        found = collect(queue, 10)
        assert queue.pids != [pid]
    assert found == {step: expected(step, PEER) for step in range(10)}


@peer
@posix
def test_a_step_that_kills_every_process_becomes_nan_with_a_note(monkeypatch):
    from MedXAILib.features import children

    monkeypatch.setattr(children, "_START", "import os; os._exit(3)")
    with FeatureQueue(NAMES, options=PEER, processes=1) as queue:
        found = dict(queue.finish([(0, *case(0)), (1, *case(1))]))
        assert len(queue.notes) == 1 and queue.notes[0].startswith("died: ") and "(2 steps)" in queue.notes[0]
    assert set(found) == {0, 1} and all(math.isnan(value) for values in found.values() for value in values.values())


@peer
@posix
def test_children_are_light_single_threaded_and_polite():
    with FeatureQueue(["all"], options=PEER, processes=1) as queue:
        queue.offer(0, *case(0, size=20))
        collect(queue, 1)
        (pid,) = queue.pids
        assert os.getpriority(os.PRIO_PROCESS, pid) >= min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
        if Path("/proc").is_dir():
            assert b"OMP_NUM_THREADS=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
            assert "torch" not in maps and "SimpleITK" in maps


def script(tmp_path, body, engine=PEER):
    """Run a script without a main guard, as a user writes one, in a process group of its own."""
    path = tmp_path / "script.py"
    path.write_text(
        textwrap.dedent(
            """
            import sys; sys.path[:0] = [{root!r}, {tests!r}]
            import time
            from MedXAILib.features import FeatureQueue
            from test_features_queue import case, NAMES
            queue = FeatureQueue(NAMES, options={engine!r}, processes=2, capacity=50)
            for step in range(20):
                queue.offer(step, *case(step))
            """
        ).format(root=str(ROOT), tests=str(Path(__file__).parent), engine=engine)
        + textwrap.dedent(body)
    )
    return subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )  # fmt: skip


@posix
def test_a_script_without_a_main_guard_runs_once(tmp_path, engine):
    process = script(tmp_path, "print(len(list(queue.finish())), flush=True); queue.close()", engine)
    assert process.communicate(timeout=60)[0] == "20\n" and process.returncode == 0


@peer
@posix
@pytest.mark.parametrize("how", ["kill", "exit", "forked"])
def test_no_child_outlives_its_parent(tmp_path, how):
    body = "queue.ready(); print(*queue.pids, flush=True)\n"
    if how == "forked":  # a process forked from the parent inherits the pipes and keeps them open
        body += "import os\nif not os.fork():\n    time.sleep(30); os._exit(0)\n"
    body += "" if how == "exit" else "time.sleep(60)\n"
    process = script(tmp_path, body)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    if how != "exit":
        assert all(alive(pid) for pid in pids)
        time.sleep(0.5)
        process.kill()
    process.wait(30)
    assert gone(pids)
    process.stdout.close()


@peer
@posix
def test_ctrl_c_is_the_parents_and_leaves_nothing(tmp_path):
    """Ctrl-C reaches the whole group: the children do not die of it, and the parent's way out ends them."""
    body = """
        pids = queue.pids
        print(*pids, flush=True)
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            same = pids == queue.pids
            found = list(queue.finish([(99, *case(99))]))  # the children are still at work
            print(len(found), queue.notes, same and pids == queue.pids[:2], flush=True)
        queue.close()
    """
    process = script(tmp_path, body)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    time.sleep(1.5)  # the children are up
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "21 [] True\n"
    process.wait(30)
    assert process.returncode == 0 and gone(pids)
    process.stdout.close()
