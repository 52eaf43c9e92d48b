"""The protocol, the wire format, the cache, the reporter and the client's books: no process, no clock but a planted one."""

import errno
import json
import math
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import Curve, Explanation, Layer, Patch, Point, Sequence, Step, Table
from MedXAILib.volume import Volume
from MedXAILib.worker import jobs, protocol, wire
from MedXAILib.worker.cache import Cache
from MedXAILib.worker.client import GRACE, Client
from MedXAILib.worker.folders import PrivateFolder, remove_abandoned
from MedXAILib.worker.jobs import RunRequest, State
from MedXAILib.worker.launch import launch
from MedXAILib.worker.protocol import Decoder, ProtocolError, encode
from MedXAILib.worker.reporting import Reporter

VOLUME = {"file": "/a.npy", "ijk_to_ras": np.eye(4).tolist(), "name": "a", "unit": "HU", "attributes": {}}
RUN = {
    "command": "run", "job": "dream-1", "panel": "dream", "method": "dream", "model": "/m", "trusted": ["ab"],
    "volumes": [VOLUME], "segments": [], "settings": {"steps": 3}, "folder": "/f",
}  # fmt: skip
HELLO = {"event": "hello", "pid": 77, "python": "3.12.1", "versions": {"torch": None}, "devices": [{"name": "cpu"}]}
EVENTS = [
    HELLO,
    {"event": "progress", "job": "dream-1", "fraction": 0.5, "stage": "Schritt ü 😀\n\u2028", "eta": None},
    {"event": "point", "job": "dream-1", "points": [{"curve": "c", "step": 1, "values": {"a": 1.5, "b": math.inf}}]},
    {"event": "log", "text": "\ud800 lone surrogate"},
]


def volume(shape=(2, 3, 4)):
    matrix = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 3, 1], [0, 0, 0, 1]])
    return Volume(
        np.arange(np.prod(shape), dtype=np.float32).reshape(shape), matrix, "a study", "HU", {"Modality": "CT"}
    )


# --- Bytes in, messages out ---


def test_byte_by_byte():
    decoder = Decoder("event")
    data = b"".join(map(encode, EVENTS))
    found = [message for byte in data for message in decoder.feed(bytes([byte]))]
    assert found == EVENTS
    assert decoder.close() == []


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text().filter(lambda k: k != "$float"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=8).filter(lambda k: k != "$float"), values, max_size=4), max_size=4),
    st.data(),
)
def test_any_settings_in_any_pieces(all_settings, data):
    messages = [{**RUN, "settings": one} for one in all_settings]
    stream = b"".join(map(encode, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder, found = Decoder("command"), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)]):
        found += decoder.feed(stream[start:stop])
    assert repr(found) == repr(messages)  # repr: NaN equals NaN, and -0.0 does not equal 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=5))
def test_garbage_spoils_nothing(lines):
    decoder, found = Decoder("event"), []
    for line in lines:
        found += decoder.feed(line + b"\n" + encode(HELLO))
    good = [m for m in found if isinstance(m, dict)]
    assert good == [HELLO] * len(lines)
    assert len(found) - len(good) == sum(1 for line in lines if line.strip())


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"{", b"[" * 5000, b'{"event": NaN}', b'"hello"', b"null", b'{"event":"point","job":"a","points":[{"curve":"c","step":1,"values":{"a":NaN}}]}'],
)  # fmt: skip
def test_bad_lines_are_told(line):
    (error,) = Decoder("event").feed(line + b"\n")
    assert isinstance(error, ProtocolError) and error.line == line[:200]


def test_lines_too_long_are_skipped_in_bounded_memory():
    decoder = Decoder("event", limit=2000)
    found = []
    for _ in range(1000):
        found += decoder.feed(b"x" * 700)
        assert len(decoder._buffer) <= 2700
    found += decoder.feed(b"\n" + encode(HELLO) + b"y" * 3000 + b"\n" + encode(HELLO))
    assert [isinstance(m, dict) for m in found] == [False, True, False, True]
    assert "longer than 2000" in found[0].reason


def test_stream_that_ends_within_a_line():
    decoder = Decoder("event")
    assert decoder.feed(encode(HELLO)[:-5]) == []
    (error,) = decoder.close()
    assert "ended within" in error.reason
    assert decoder.close() == []


@pytest.mark.parametrize(
    "change, words",
    [
        ({"command": "rum"}, "'rum' is not a known command (run, describe"),
        ({"command": None}, "None is not a known command"),
        ({"job": ""}, "'run.job' must be a text of 1 to 200 characters"),
        ({"job": 3}, "'run.job' must be"),
        ({"colour": 1}, "'run' has no field 'colour'"),
        ({"volumes": {}}, "'run.volumes' must be a list"),
        ({"volumes": [VOLUME, {**VOLUME, "ijk_to_ras": [[1]]}]}, "'run.volumes[1].ijk_to_ras' must be a 4×4 matrix"),
        ({"volumes": [{**VOLUME, "ijk_to_ras": [[math.nan] * 4] * 4}]}, "'run.volumes[0].ijk_to_ras' must be"),
        ({"segments": [VOLUME, {"file": "a"}]}, "'run.segments[1]' needs the field 'ijk_to_ras'"),
        ({"segments": None}, "'run.segments' must be a list"),
        ({"segment": None}, "'run' has no field 'segment'"),
        ({"settings": []}, "'run.settings' must be an object"),
        ({"trusted": [1]}, "'run.trusted[0]' must be text"),
    ],
)
def test_schema_errors_name_the_field(change, words):
    message = {**RUN, **change}
    with pytest.raises(ProtocolError) as caught:
        encode(message)
    assert words in str(caught.value)
    (error,) = Decoder("command").feed(json.dumps(protocol.plain(message)).encode() + b"\n")
    assert words in error.reason
    assert error.job == (message["job"] if isinstance(message["job"], str) else None)


def test_missing_field_and_wrong_direction():
    (error,) = Decoder("command").feed(json.dumps({k: v for k, v in RUN.items() if k != "model"}).encode() + b"\n")
    assert error.reason == "'run' needs the field 'model'"
    assert isinstance(Decoder("event").feed(encode(RUN))[0], ProtocolError)
    assert isinstance(Decoder("command").feed(encode(HELLO))[0], ProtocolError)


def test_json_is_strict_and_numbers_come_back():
    values = {"nan": np.float32("nan"), "inf": math.inf, "minus": -np.inf, "one": np.float64(1.5), "two": np.int16(2)}
    line = encode({"event": "point", "job": "a", "points": [{"curve": "c", "step": np.int64(3), "values": values}]})
    json.loads(line, parse_constant=pytest.fail)
    (message,) = Decoder("event").feed(line)
    assert message["points"][0]["step"] == 3
    got = message["points"][0]["values"]
    assert math.isnan(got["nan"]) and got["inf"] == math.inf and got["minus"] == -math.inf
    assert (got["one"], got["two"]) == (1.5, 2)
    with pytest.raises(ProtocolError, match="object cannot travel"):
        encode({**RUN, "settings": {"a": object()}})
    with pytest.raises(ProtocolError, match="longer than"):
        encode({"event": "log", "text": "x" * (protocol.MAX_LINE + 1)})


# --- Explanations and volumes as files ---


def same(a, b):
    """Equal in type, value and place, arrays to the bit."""
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    elif hasattr(a, "__dataclass_fields__"):
        assert type(a) is type(b)
        for name in a.__dataclass_fields__:
            same(getattr(a, name), getattr(b, name))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert type(a) is type(b) and len(a) == len(b)
        for one, other in zip(a, b):
            same(one, other)
    else:
        assert a == b or (a != a and b != b)


def test_explanation_there_and_back(tmp_path):
    one = volume()
    flipped = Volume(one.array[::-1, :, ::2], one.ijk_to_ras, "flipped")
    said = Explanation(
        "m", "T",
        maps={"a": Layer(one, "signed", "t [HU]", None, 2.0), "again": Layer(one), "b": Layer(flipped)},
        masks={"mask": one.with_array(np.ones(one.shape, np.uint8))},
        curves={"c": Curve("C", "step", {"step": np.arange(4), "x": np.array([np.nan, 1, np.inf, 2]), "no": np.zeros(0)}, bands={"r": (-1.0, math.nan)}, shown=("x",))},
        tables={"t": Table("T", {"name": ["ä", "b"], "z": [math.nan, 1.0], "array": np.array(["x", "yy"])})},
        sequences={"s": Sequence("S", [(0, one), (7, one.crop((0, 1, 1), (1, 2, 3)))], "mask", thinned=2)},
        scores={"nan": math.nan, "big-endian": 1.0}, notes=["n"],
        self_checks={"c": {"value": 1, "passed": None, "meaning": "m"}}, provenance={"settings": {"steps": [1, 2]}, "none": None},
    )  # fmt: skip
    rest = wire.dump(said, tmp_path)
    text = json.dumps(rest, allow_nan=False)
    got = wire.load(json.loads(text), tmp_path)
    same(said, got)
    assert isinstance(got.maps["a"].volume.array, np.memmap) and not got.maps["a"].volume.array.flags.writeable
    assert got.maps["a"].volume.array is got.maps["again"].volume.array  # shared arrays are written once
    assert all(name.suffix == ".npy" for name in tmp_path.iterdir())


def test_wire_refuses_what_it_cannot_carry(tmp_path):
    with pytest.raises(ValueError, match="pickling"):
        wire.save_array(tmp_path / "a.npy", np.array([object()]))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"m\.scores\.x is a object"):
        wire.dump(Explanation("m", "t", scores={"x": object()}), tmp_path)
    with pytest.raises(ValueError, match="key 3"):
        wire.dump(Explanation("m", "t", scores={3: 1}), tmp_path)
    with pytest.raises(ValueError, match="bare file name"):
        wire.load({"$array": "../secret.npy"}, tmp_path)
    with pytest.raises(ValueError, match="not a part"):
        wire.load({"$type": "Popen", "fields": {}}, tmp_path)
    with pytest.raises(ValueError, match="not an explanation"):
        wire.load({"a": 1}, tmp_path)
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError):
        wire.load_array(tmp_path / "p.npy")


@pytest.mark.parametrize(
    "array",
    [np.zeros((0, 3)), np.float64(3), np.arange(24).reshape(2, 3, 4)[:, ::-1, 1:], np.array(["a", "ü"]), np.ones(3, ">f4"), np.zeros((2, 2), bool)],
    ids=["empty", "scalar", "strided", "text", "big-endian", "bool"],
)  # fmt: skip
def test_arrays_of_every_kind(tmp_path, array):
    wire.save_array(tmp_path / "a.npy", array)
    got = wire.load_array(tmp_path / "a.npy")
    assert got.dtype == np.asarray(array).dtype and np.array_equal(got, array) and got.shape == np.shape(array)
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_told_by_its_number():
    with pytest.raises(OSError) as caught:
        wire.save_array("/dev/full", np.zeros(1000000))
    assert caught.value.errno == errno.ENOSPC


def test_volume_message(tmp_path):
    one = Volume(volume().array, volume().ijk_to_ras, "n", "HU", {"a": 1, "b": (1, 2)})
    wire.save_array(tmp_path / "v.npy", one.array)
    message = wire.describe_volume(one, tmp_path / "v.npy")
    (decoded,) = Decoder("command").feed(encode({**RUN, "volumes": [message]}))
    got = wire.read_volume(decoded["volumes"][0])
    assert np.array_equal(got.array, one.array) and np.array_equal(got.ijk_to_ras, one.ijk_to_ras)
    assert (got.name, got.unit, got.attributes) == ("n", "HU", {"a": 1, "b": "(1, 2)"})
    (tmp_path / "v.npy").write_bytes(b"not numpy")
    for file in ("v.npy", "gone.npy"):
        with pytest.raises(MedXAIError, match="voxels of 'n' could not be read"):
            wire.read_volume({**message, "file": str(tmp_path / file)})


# --- Cache, folders, launch ---


def test_cache_forgets_the_least_recently_used():
    cache = Cache(100)
    for key in "abc":
        cache.put(key, key.upper(), 40)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (None, "B", "C")
    cache.get("b")
    cache.put("d", "D", 40)
    assert cache.get("c") is None and cache.get("b") == "B"
    cache.put("e", "E", 500)
    assert len(cache) == 1 and cache.get("e") == "E"
    cache.put("e", "E2", 20)
    assert cache.bytes == 20
    cache.drop(lambda key: key == "e")
    assert cache.clear() == 0 == len(cache)


def test_folders_are_private_and_abandoned_ones_go(tmp_path):
    mine = PrivateFolder(tmp_path)
    assert os.name == "nt" or mine.path.stat().st_mode & 0o077 == 0
    old = tmp_path / "medxai-dead"
    old.mkdir()
    (old / "lock").touch()
    (old / "volume.npy").touch()
    assert remove_abandoned(tmp_path) == []  # it may be just being made
    long_ago = time.time() - 3600
    os.utime(old / "lock", (long_ago, long_ago))
    os.utime(mine.path / "lock", (long_ago, long_ago))
    other = PrivateFolder(tmp_path)
    assert not old.exists() and mine.path.exists()
    mine.remove()
    mine.remove()
    assert list(tmp_path.iterdir()) == [other.path]
    other.remove()


def test_choice_of_the_interpreter(tmp_path):
    home = tmp_path / "Slicer"
    (home / "bin").mkdir(parents=True)
    slicers = home / "bin" / ("PythonSlicer.exe" if os.name == "nt" else "PythonSlicer")
    slicers.touch(mode=0o755)
    there = {str(slicers), "/usr/bin/python3"}

    def which(name):
        return name if name in there else None

    inside = {"PYTHONHOME": "/slicer", "PATH": "x"}
    found = launch(slicer_home=str(home), environment=inside, which=which, arguments=("--x",))
    assert found.program == str(slicers) and found.environment["PYTHONHOME"] == "/slicer"
    assert found.arguments[0].endswith(os.path.join("worker", "__main__.py")) and found.arguments[1] == "--x"
    assert found.environment["PYTHONUTF8"] == "1" and "PYTHONUTF8" not in inside
    on_path = launch(
        slicer_home=str(home), environment=inside, which=lambda n: "/path/" + n if n == "PythonSlicer" else None
    )
    assert on_path.program == "/path/PythonSlicer" and "PYTHONHOME" in on_path.environment
    chosen = launch("/usr/bin/python3", str(home), lambda: {"PATH": "clean"}, inside, which=which)
    assert chosen.program == "/usr/bin/python3" and "PYTHONHOME" not in chosen.environment
    assert chosen.environment["PATH"] == "clean"
    assert "PYTHONHOME" not in launch("/usr/bin/python3", str(home), None, inside, which=which).environment
    for arguments in (("/no/python", str(home)), ("", "")):
        with pytest.raises(MedXAIError) as caught:
            launch(*arguments, environment=inside, which=which)
        assert caught.value.kind == "missing" and "MedXAI Models" in caught.value.message


# --- What a job reports ---


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def reporter(tmp_path):
    sent, clock = [], Clock()
    return Reporter("j", tmp_path, lambda event, **fields: sent.append((event, fields)), clock), sent, clock


def test_progress_is_at_most_ten_times_a_second_and_knows_the_rest(tmp_path):
    report, sent, clock = reporter(tmp_path)
    times = []
    for n in range(1, 2001):
        clock.now = 100 + n * 0.001
        before = len(sent)
        report.progress(n / 2000, f"step {n}" if n < 1000 else "another")
        times += [clock.now] * (len(sent) - before)
    assert all(sum(t <= u < t + 0.9999 for u in times) <= 10 for t in times)
    assert len(times) >= 15
    _, last = sent[-1]
    assert last["eta"] == pytest.approx(102 - times[-1], abs=0.01)
    assert sent[0][1]["eta"] is None


def test_points_are_collected_and_none_is_lost(tmp_path):
    report, sent, clock = reporter(tmp_path)
    for n in range(1000):
        clock.now += 0.001
        report.step(Step(n / 1000, "s", (Point("c", n, {"a": n}), Point("c", n - 3, {"b": math.nan}))))
    report.flush()
    batches = [f["points"] for e, f in sent if e == "point"]
    assert 5 <= len(batches) <= 13
    assert [p["step"] for batch in batches for p in batch][::2] == list(range(1000))


def test_previews_wait_for_the_acknowledgement_and_take_little_time(tmp_path):
    report, sent, clock = reporter(tmp_path)
    computed = []

    def step(n, cost=0.001):
        def previews():
            computed.append(n)
            clock.now += cost
            return {"dream": volume(), "change": Patch(np.ones((1, 1, 1)), (0, 1, 2))}

        report.step(Step(0.1, "s", previews=previews))
        return [f["file"] for e, f in sent if e == "preview"]

    first, second = step(0)
    clock.now += 60
    assert step(1) == [first, second]
    report.acknowledge(first)
    assert step(2) == [first, second] and computed == [0]
    report.acknowledge(second)
    files = step(3, cost=0.5)
    assert len(set(files)) == 4 and computed == [0, 3]  # a new file each time
    for file in files:
        report.acknowledge(file)
    clock.now += 3
    step(4)
    assert computed == [0, 3]  # it took half a second: the next one only after 4.5 more
    clock.now += 2
    step(5)
    assert computed == [0, 3, 5]
    events = [f for e, f in sent if e == "preview"]
    assert events[1]["start"] == [0, 1, 2] and "start" not in events[0]
    for fields in events:
        encode({"event": "preview", **fields})


# --- The client's books, with a planted worker and a planted clock ---


class FakeTransport:
    def __init__(self):
        self.sent, self.signals, self.decoder = [], [], Decoder("command")

    def start(self, receiver):
        self.receiver = receiver

    def write(self, data):
        self.sent += self.decoder.feed(data)

    def terminate(self, pid):
        self.signals.append(("terminate", pid))

    def kill(self, pid):
        self.signals.append(("kill", pid))

    def wait(self, seconds):
        pass

    def say(self, event, **fields):
        self.receiver.received(encode({"event": event, **fields}))


class World:
    """A client whose workers are `FakeTransport`s and whose time stands still until it is told."""

    def __init__(self, tmp_path):
        self.now, self.timers, self.workers, self.events = 0.0, [], [], []
        self.client = Client(self.make, lambda s, f: self.timers.append((self.now + s, f)), tmp_path)
        self.model = tmp_path / "model"

    def make(self):
        self.workers.append(FakeTransport())
        return self.workers[-1]

    def run(self, panel="dream", **more):
        return self.client.run(RunRequest("dream", self.model, [volume()], panel=panel, **more), self.events.append)

    def pass_time(self, seconds):
        end = self.now + seconds
        while due := sorted((t for t in self.timers if t[0] <= end), key=lambda t: t[0]):
            self.timers.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = end

    @property
    def worker(self):
        return self.workers[-1]

    def hello(self):
        self.worker.say("hello", pid=77, python="3", versions={"MedXAI": "1", "torch": None}, devices=[{"name": "cpu"}])


@pytest.fixture
def world(tmp_path):
    one = World(tmp_path / "private")
    yield one
    one.client.shutdown()
    assert not list((tmp_path / "private").glob("medxai-*"))


def begin(world, job):
    world.worker.say("progress", job=job.id, fraction=0.0, stage="Loading")


def test_lazy_start_and_phases(world):
    seen = []
    stop = world.client.observe(lambda what, value: seen.append(what if what != "phase" else value))
    assert world.workers == [] and world.client.phase == "stopped" and world.client.release() is None
    job = world.run()
    assert world.client.phase == "starting" and job.state is State.QUEUED
    world.hello()
    world.worker.say(
        "environment", versions={"torch": "2.9"}, devices=[{"name": "cpu"}, {"name": "cuda:0", "title": "H"}]
    )
    assert world.client.environment["versions"] == {"MedXAI": "1", "torch": "2.9"}
    assert world.client.environment["pid"] == 77 and len(world.client.environment["devices"]) == 2
    assert seen == ["starting", "ready", "environment", "environment"]
    stop()
    world.worker.say("queued", job=job.id, position=2)
    assert job.position == 2 and len(seen) == 4
    begin(world, job)
    assert job.state is State.RUNNING and len(world.workers) == 1
    assert world.worker.sent[0]["volumes"][0]["attributes"] == {"Modality": "CT"}


def test_preview_is_acknowledged_after_the_panel_copied_it_and_deleted(world):
    job = world.run()
    world.hello()
    begin(world, job)
    folder = world.worker.sent[0]["folder"]
    file = os.path.join(folder, "preview-1.npy")
    wire.save_array(file, np.full((1, 2, 2), 7, np.float32))
    held = []

    def look(event):
        held.append(
            (event.title, np.array(event.image.array), event.image.start, [m["command"] for m in world.worker.sent])
        )

    job.on_event = look
    world.worker.say("preview", job=job.id, name="dream", file=file, start=[1, 0, 2])
    ((title, array, start, sent),) = held
    assert (title, start) == ("dream", (1, 0, 2)) and (array == 7).all() and "ack" not in sent
    assert world.worker.sent[-1] == {"command": "ack", "job": job.id, "file": file}
    assert not os.path.exists(file)
    world.worker.say(
        "preview", job=job.id, name="dream", file=file, start=[1, 0, 2]
    )  # gone: told, acknowledged, survived
    assert len(held) == 1 and world.worker.sent[-1]["command"] == "ack" and job.state is State.RUNNING


def test_cancel_in_time(world):
    job = world.run()
    world.hello()
    begin(world, job)
    job.cancel()
    job.cancel()
    assert [m["command"] for m in world.worker.sent] == ["run", "cancel"] and job.state is State.CANCELLING
    world.worker.say("progress", job=job.id, fraction=0.5, stage="late")
    world.worker.say("cancelled", job=job.id, reason="asked")
    assert job.state is State.CANCELLED and [e.name for e in world.events] == ["progress", "cancelled"]
    world.pass_time(60)
    assert world.worker.signals == []


def test_result_after_cancel_is_cancelled(world):
    job = world.run()
    world.hello()
    begin(world, job)
    job.cancel()
    folder = os.path.join(world.worker.sent[0]["folder"], "result")
    os.mkdir(folder)
    world.worker.say("result", job=job.id, folder=folder, explanation=wire.dump(Explanation("m", "t"), folder))
    assert job.state is State.CANCELLED and not os.path.exists(folder) and job.explanation is None


def test_cancel_escalates_to_terminate_then_kill_then_gives_up(world):
    job, other = world.run(), world.run("ability")
    world.hello()
    begin(world, job)
    job.cancel()
    world.pass_time(GRACE[0] - 0.01)
    assert world.worker.signals == []
    world.pass_time(0.02)
    assert world.worker.signals == [("terminate", 77)]
    world.pass_time(GRACE[1])
    assert world.worker.signals == [("terminate", 77), ("kill", 77)] and not job.finished
    world.pass_time(GRACE[2])
    assert job.state is State.CANCELLED and world.now < 3
    assert len(world.workers) == 2 and [m["job"] for m in world.worker.sent] == [other.id]  # it was not to blame
    assert other.state is State.QUEUED
    world.workers[0].receiver.ended(9, True)  # too late: another worker lives
    assert world.client.phase == "starting"


def test_cancel_of_a_waiting_job_never_kills_the_one_that_computes(world):
    first, second = world.run(), world.run("ability")
    world.hello()
    begin(world, first)
    second.cancel()
    world.pass_time(10)
    assert second.state is State.CANCELLED and first.state is State.RUNNING and world.worker.signals == []


def test_newer_job_of_the_panel_replaces_the_older(world):
    first = world.run()
    world.hello()
    begin(world, first)
    second, elsewhere = world.run(), world.run("ability")
    assert first.state is State.CANCELLING and first.reason == "replaced" and elsewhere.state is State.QUEUED
    world.worker.say("cancelled", job=first.id, reason="replaced")
    assert world.events[-1].name == "cancelled" and world.events[-1].reason == "replaced"
    begin(world, second)
    assert second.state is State.RUNNING and set(world.client.jobs) == {second, elsewhere}


@pytest.mark.parametrize(
    "code, crashed, words", [(0, False, "exit code 0"), (3, False, "exit code 3"), (6, True, "SIGABRT")]
)
def test_exit_without_result_is_an_error_with_the_last_lines(world, code, crashed, words):
    job = world.run()
    world.hello()
    begin(world, job)
    world.worker.receiver.logged(b"".join(b"line %d\n" % n for n in range(80)) + b"the \xff last")
    world.worker.receiver.ended(code, crashed)
    assert job.state is State.FAILED and job.failure.kind == "crashed"
    assert words in job.failure.message and "the \ufffd last" in job.failure.hint
    assert len(job.failure.log) == 50 and job.failure.log[-2] == "line 79"
    assert world.events[-1] is job.failure and world.client.phase == "stopped"
    again = world.run()
    assert len(world.workers) == 2 and again.state is State.QUEUED


def test_worker_that_dies_before_hello_fails_its_jobs_at_once(world):
    job = world.run()
    world.worker.receiver.logged(b"ImportError: nothing works\n")
    world.worker.receiver.ended(1, False)
    assert job.state is State.FAILED and "ImportError" in job.failure.hint and len(world.workers) == 1


def test_job_that_was_not_begun_is_sent_again_but_once(world):
    job = world.run()
    for n in range(2):
        world.hello()
        assert job.state is State.QUEUED and len(world.workers) == n + 1
        world.worker.receiver.ended(11, True)
    assert job.state is State.FAILED and len(world.workers) == 2


def test_interpreter_that_cannot_be_started(world):
    job = world.run()
    world.worker.receiver.failed("no such file")
    assert job.failure.kind == "missing" and "no such file" in job.failure.message
    assert "MedXAI Models" in job.failure.hint


def test_transport_that_cannot_be_made_leaves_no_job(world):
    def refuse():
        raise MedXAIError("PythonSlicer was not found.", kind="missing")

    world.client._make_transport = refuse
    with pytest.raises(MedXAIError, match="not found"):
        world.run()
    assert world.client.jobs == () and not list(world.client._private().glob("run-*"))
    assert world.client.phase == "stopped"


def test_panel_that_fails_harms_nobody(world, caplog):
    job = world.run()
    job.on_event = lambda event: 1 / 0
    world.hello()
    begin(world, job)
    world.worker.say("error", job=job.id, kind="refused", message="No such label.", hint="")
    assert job.state is State.FAILED and "ZeroDivisionError" in caplog.text


def test_events_that_come_while_one_is_delivered_keep_their_order(world):
    job = world.run()
    world.hello()
    seen = []

    def turn_the_loop(event):
        if not seen:
            for n in range(3):
                world.worker.say("log", job=job.id, text=f"nested {n}")
            world.worker.receiver.ended(0, False)
        seen.append(event.name)

    job.on_event = turn_the_loop
    begin(world, job)
    assert seen == ["progress", "log", "log", "log", "error"]


def test_garbage_and_strangers_from_the_worker(world):
    job = world.run()
    world.hello()
    begin(world, job)
    world.worker.receiver.received(
        b"Segmentation fault\n\x00\xff\n" + encode({"event": "cancelled", "job": "nobody", "reason": "x"})
    )
    world.worker.receiver.received(
        b'{"event":"result","job":"%s","folder":"/","explanation":{"$type":"os"}}\n' % job.id.encode()
    )
    assert job.state is State.FAILED and "could not be read" in job.failure.message
    assert any("Segmentation fault" in line for line in job.failure.log)


def test_result_is_there_during_the_callback_and_gone_after(world):
    for keep in (False, True):
        job = world.run(trusted=["b", "a"])
        if not world.client.environment:
            world.hello()
        begin(world, job)
        command = world.worker.sent[-1]
        assert command["trusted"] == ["a", "b"]
        folder = os.path.join(command["folder"], "result")
        os.mkdir(folder)
        seen = []

        def look(event, seen=seen, keep=keep):
            seen.append(event.explanation.maps["a"].volume.array.sum())
            if keep:
                event.job.keep()

        job.on_event = look
        said = Explanation("m", "t", maps={"a": Layer(volume())})
        world.worker.say("result", job=job.id, folder=folder, explanation=wire.dump(said, folder))
        assert seen == [volume().array.sum()] and job.state is State.DONE
        assert os.path.exists(command["folder"]) is keep


def test_stored_volumes_are_written_once_and_bounded(world):
    world.client._store_bytes = 500
    first = world.client.store(volume(), ("node", 1))
    assert world.client.store(volume(), ("node", 1)) is first
    job = world.client.run(RunRequest("dream", world.model, [first], segments=[first]))
    assert job.command["volumes"][0]["file"] == job.command["segments"][0]["file"] == first.message["file"]
    for n in range(2, 6):
        world.client.store(volume(), ("node", n))
    assert os.path.exists(first.message["file"])  # in use
    assert len(list(world.client._private().glob("volume-*"))) == 2


def test_shutdown_ends_everything_and_the_client_can_go_on(world):
    jobs_ = [world.run(), world.run("ability")]
    world.hello()
    folder = world.client._private()
    world.client.shutdown()
    assert [j.state for j in jobs_] == [State.CANCELLED] * 2 and {e.reason for e in world.events} == {"ended"}
    assert world.workers[0].signals == [("kill", 77)] and not folder.exists()
    world.run()
    assert len(world.workers) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_disk_full_when_the_volume_is_written(world, monkeypatch):
    save = wire.save_array
    monkeypatch.setattr(wire, "save_array", lambda file, array: save("/dev/full", array))
    with pytest.raises(MedXAIError) as caught:
        world.run()
    assert caught.value.kind == "disk" and "free some space" in caught.value.message
    assert world.workers == [] and not list(world.client._private().glob("run-*"))


def test_every_event_has_the_protocols_name():
    names = {cls.name for cls in jobs.Event.__subclasses__()}
    assert names == set(protocol.SCHEMAS["event"]) - {"hello", "environment"}
