"""Safetensors files against the library's own reader, and every way in which they go bad."""

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from universal_model_hub import tensors as tensors_module
from universal_model_hub.errors import IntegrityError, UniversalModelError, WeightsError
from universal_model_hub.tensors import (
    inspect_tensors,
    read_metadata,
    read_tensors,
    write_tensors,
)

STATE = {
    "conv.weight": torch.arange(24.0).reshape(2, 3, 4),
    "conv.bias": torch.tensor([0.5, -1.5]),
    "norm.count": torch.tensor(7),
    "nothing": torch.zeros(0, 3),
}


@pytest.fixture
def good(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    write_tensors(path, STATE, {"provenance": "{}"})
    return path


def raw(header: object, data: bytes = b"") -> bytes:
    """A safetensors file from any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_what_is_written_is_read_back_and_the_library_agrees(good):
    ours = read_tensors(good)
    theirs = safetensors.torch.load_file(good)
    assert ours.keys() == theirs.keys() == STATE.keys()
    for name, value in STATE.items():
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name], value)
        assert torch.equal(theirs[name], value)
    with safe_open(good, "pt") as file:
        assert file.metadata() == read_metadata(good) == {"format": "pt", "provenance": "{}"}
    infos = inspect_tensors(good)
    assert {n: i.shape for n, i in infos.items()} == {n: tuple(v.shape) for n, v in STATE.items()}
    assert infos["norm.count"].dtype == "I64"


def test_the_library_writes_what_we_read(tmp_path):
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(STATE, path, metadata={"a": "b"})
    assert all(torch.equal(value, STATE[name]) for name, value in read_tensors(path).items())
    assert read_metadata(path) == {"a": "b"}


def test_equal_content_gives_equal_bytes_in_every_process(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path;"
        "from universal_model_hub.tensors import write_tensors;"
        "write_tensors(Path(sys.argv[1]), {'b': torch.ones(2), 'a': torch.zeros(3)},"
        " {k: k for k in 'fedcba'})"
    )
    theirs = tmp_path / "theirs"
    subprocess.run([sys.executable, "-c", code, str(theirs)], check=True)
    for k, metadata in enumerate(({k: k for k in "abcdef"}, {k: k for k in "cafebd"})):
        ours = tmp_path / f"ours-{k}"
        write_tensors(ours, {"a": torch.zeros(3), "b": torch.ones(2)}, metadata)
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_mode_of_a_written_file_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a", STATE, {})
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_views_and_tied_tensors_are_written_whole(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {"base": base, "tied": base, "transposed": base.T, "row": base[1]}
    write_tensors(tmp_path / "a", state, {})
    back = read_tensors(tmp_path / "a")
    assert all(torch.equal(back[name], value) for name, value in state.items())
    base.zero_()
    assert back["row"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w": torch.tensor([1.0, float("nan")])}, "w has 1 of 2"),
        ({"w": torch.ones(2, dtype=torch.float64)}, "float64"),
        ({"__metadata__": torch.ones(2)}, "__metadata__"),
    ],
)
def test_what_could_not_be_loaded_is_not_written(tmp_path, state, message):
    with pytest.raises(WeightsError, match=message):
        write_tensors(tmp_path / "a", state, {})
    assert list(tmp_path.iterdir()) == []


def test_only_the_bytes_of_the_named_tensors_are_read(tmp_path):
    path = tmp_path / "model.safetensors"
    size = 4 * 2**20
    write_tensors(path, {"big": torch.zeros(size // 4), "small": torch.ones(10)}, {})
    counter = Path("/proc/self/io")
    if not counter.exists():
        pytest.skip("counts bytes through /proc")
    before = int(counter.read_text().split()[1])
    assert read_tensors(path, ["small"])["small"].sum() == 10
    assert int(counter.read_text().split()[1]) - before < 100_000


def test_a_missing_name_is_an_error_that_names_it(good):
    with pytest.raises(WeightsError, match=r"conv\.scale"):
        read_tensors(good, ["conv.bias", "conv.scale"])


def test_w01_truncated(good):
    data = good.read_bytes()
    for length in (len(data) - 1, len(data) - 60, 100, 9):
        good.write_bytes(data[:length])
        with pytest.raises(IntegrityError):
            read_tensors(good)
    good.write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match="truncated"):
        inspect_tensors(good)


def test_w02_trailing_bytes(good):
    good.write_bytes(good.read_bytes() + b"x")
    with pytest.raises(IntegrityError, match="trailing bytes"):
        inspect_tensors(good)


@pytest.mark.parametrize("length", [0, 1, 7])
def test_w03_empty_or_under_eight_bytes(good, length):
    good.write_bytes(good.read_bytes()[:length])
    with pytest.raises(IntegrityError, match=f"only {length} bytes"):
        inspect_tensors(good)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100 * 2**20, 5 * 2**20])
def test_w04_an_enormous_header_is_refused_unread(tmp_path, length):
    path = tmp_path / "a"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with path.open("rb+") as stream:
        stream.truncate(2**30)  # sparse, so that the claim would fit
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntegrityError, match=f"header of {length} bytes"):
        inspect_tensors(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"\n  <?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00" + b"\0" * 20, "gzip"),
    ],
)
def test_w05_something_else_under_the_name_is_called_what_it_is(tmp_path, data, message):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(IntegrityError, match=message):
        inspect_tensors(tmp_path / "a")


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_w06_a_pickle_is_refused_and_its_code_not_run(tmp_path):
    trap = tmp_path / "trap"
    (tmp_path / "plain").write_bytes(pickle.dumps(Payload(trap)))
    torch.save({"w": Payload(trap)}, tmp_path / "zip")
    for name in ("plain", "zip"):
        with pytest.raises(IntegrityError, match=r"pickle.*save_pretrained"):
            read_tensors(tmp_path / name)
    assert not trap.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_w07_a_value_that_is_not_finite_names_the_tensor(tmp_path, value):
    path = tmp_path / "a"
    state = {**STATE, "decoder.bad": torch.tensor([0.0, value, 1.0])}
    safetensors.torch.save_file(state, path)
    with pytest.raises(WeightsError, match=r"decoder\.bad of .*a has 1 of 3"):
        read_tensors(path)
    assert read_tensors(path, ["conv.bias"]).keys() == {"conv.bias"}


def test_large_finite_values_whose_sum_is_not_are_fine(tmp_path):
    huge = torch.full((10,), 3e38)
    write_tensors(tmp_path / "a", {"w": huge, "canceling": torch.cat([huge, -huge])}, {})
    assert torch.equal(read_tensors(tmp_path / "a")["w"], huge)
    with pytest.raises(WeightsError, match="2 of 2"):
        write_tensors(tmp_path / "b", {"w": torch.tensor([1.0, -1.0]) * float("inf")}, {})


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool, torch.complex64])
def test_w09_other_dtypes_are_refused_by_name(tmp_path, dtype):
    path = tmp_path / "a"
    safetensors.torch.save_file({"w": torch.ones(2, dtype=dtype)}, path)
    inspect_tensors(path)
    with pytest.raises(WeightsError, match="expected w to have dtype"):
        read_tensors(path)


HEADERS = {
    "a name twice": b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
    "a field twice": b'{"w":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
    "metadata twice": b'{"__metadata__":{},"__metadata__":{"a":"b"}}',
}


@pytest.mark.parametrize("case", HEADERS)
def test_w10_a_duplicate_key_in_the_header(tmp_path, case):
    path = tmp_path / "a"
    path.write_bytes(raw(HEADERS[case], b"\0" * 4))
    with pytest.raises(IntegrityError, match="twice"):
        inspect_tensors(path)


BROKEN = {
    "hole": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, 12),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, 8),
    "not from the start": ({"a": entry([1], 4, 8)}, 8),
    "shape against offsets": ({"a": entry([3], 0, 8)}, 8),
    "reversed offsets": ({"a": entry([1], 4, 0)}, 4),
    "negative shape": ({"a": entry([-1, -1], 0, 4)}, 4),
    "overflow": ({"a": entry([2**62, 4], 0, 0)}, 0),
    "float shape": ({"a": {**entry([1], 0, 4), "shape": [1.0]}}, 4),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, 4),
    "three offsets": ({"a": {**entry([1], 0, 4), "data_offsets": [0, 4, 4]}}, 4),
    "entry a list": ({"a": [1]}, 0),
    "metadata not strings": ({"__metadata__": {"a": 1}}, 0),
    "metadata a list": ({"__metadata__": ["a"]}, 0),
    "header a list": ([], 0),
    "header a number": (b"1", 0),
    "not UTF-8": (b'{"\xff": 1}', 0),
    "deep": (b"[" * 50_000, 0),
    "empty": (b"", 0),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, case):
    header, size = BROKEN[case]
    path = tmp_path / "a"
    path.write_bytes(raw(header, b"\0" * size))
    with pytest.raises(IntegrityError):
        inspect_tensors(path)


def test_w18_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(good, monkeypatch):
    check = tensors_module._check_dtypes

    def shrink(*args):
        with good.open("rb+") as stream:
            stream.truncate(good.stat().st_size - 40)
        check(*args)

    monkeypatch.setattr(tensors_module, "_check_dtypes", shrink)  # after the header, before data
    with pytest.raises(IntegrityError, match="changed while"):
        read_tensors(good)


def test_w18_a_file_replaced_between_inspection_and_reading_is_noticed(good):
    infos = inspect_tensors(good)
    write_tensors(good, {"conv.bias": torch.zeros(9)}, {})
    with pytest.raises(IntegrityError, match="changed while"):
        read_tensors(good, ["conv.bias"], expected=infos)


def test_w18_tensors_do_not_follow_the_file(good):
    weight = read_tensors(good)["conv.weight"]
    good.write_bytes(b"")
    assert torch.equal(weight, STATE["conv.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_w19_half_precision_becomes_float32_with_equal_values(tmp_path, dtype):
    path = tmp_path / "a"
    half = torch.linspace(-3, 3, 11).to(dtype)
    safetensors.torch.save_file({"w": half}, path)
    back = read_tensors(path)["w"]
    assert back.dtype == torch.float32
    assert torch.equal(back, half.float())
    assert inspect_tensors(path)["w"].is_float


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(IntegrityError, match=r"gone\.safetensors"):
        inspect_tensors(tmp_path / "gone.safetensors")


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_property_mutated_files_raise_our_errors_or_agree_with_the_library(good, data):
    original = good.read_bytes()
    mutated = bytearray(original)
    header_end = 8 + struct.unpack("<Q", original[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, header_end))
        if data.draw(st.booleans()):
            mutated[place] = data.draw(st.integers(0, 255))
        else:
            digits = data.draw(st.sampled_from([b"9", b"-1", b"null", b'"F64"', b"[", b"{}", b""]))
            mutated[place : place + data.draw(st.integers(0, 3))] = digits
    path = good.with_name("mutated")
    path.write_bytes(mutated)
    try:
        infos = inspect_tensors(path)
        ours = read_tensors(path)
    except UniversalModelError:
        return
    finally:
        path.unlink(missing_ok=True)
    try:
        theirs = safetensors.torch.load(bytes(mutated))
    except SafetensorError as error:
        pytest.fail(f"We accept what the library refuses ({error}): {bytes(mutated[:header_end])}")
    assert {name: info.shape for name, info in infos.items()} == {
        name: tuple(value.shape) for name, value in theirs.items()
    }
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
