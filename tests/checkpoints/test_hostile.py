"""Weight files from strangers: read or refused in one line, in little time and memory.

No outcome is prescribed where both are fine: what counts is that nothing runs, hangs or fills the
memory. The files are read in a process of its own whose memory is limited.
"""

import fractions
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from odvae_jax.checkpoints.pickles import PickleError, read_pickle

SECONDS, MEGABYTES = 5, 300
READER = """
import json, pathlib, resource, sys, time
from odvae_jax.checkpoints.files import read_weight_file, tensors, others
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        content = read_weight_file(path).content
        others(content), [value.shape for value in dict(tensors(content)).values()]
        del content
        said = ""
    except ValueError as error:
        said = str(error)
    print(json.dumps([path.stem, time.process_time() - start, said]), flush=True)
status = pathlib.Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps(["peak", peak / 1024, ""]))
"""


def text(content):
    return b"X" + len(content).to_bytes(4, "little") + content


def doubled(begin, join, levels):
    """A container that holds the one before twice, many times over."""
    return b"\x80\x02" + begin + join * levels + b"."


INTEGER = b"K\x01"
ONES = b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20
LIST = b"(" + b"N" * 10**5 + b"l"
HOSTILE = {
    "lists in lists": doubled(b"]", b"0".join([b"q\x00]h\x00ah\x00a"] * 1), 30),
    "tuples in tuples": doubled(INTEGER, b"2\x86", 100),
    "tuples as keys": b"\x80\x02}" + INTEGER + b"2\x86" * 100 + b"K\x01s.",
    "tuples in a set": b"\x80\x04\x8f(" + INTEGER + b"2\x86" * 100 + b"\x90.",
    "tuples in a frozen set": b"\x80\x04(" + INTEGER + b"2\x86" * 100 + b"\x91.",
    "a set of a list": b"\x80\x02c__builtin__\nset\n((" + INTEGER + b"2\x86" * 100 + b"ltR.",
    "dictionaries in dictionaries": doubled(b"}", b"q\x00}K\x00h\x00sK\x01h\x00s", 30),
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a dictionary in itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "a tuple in itself": b"\x80\x02]q\x00h\x00\x85a.",
    "deep lists": b"\x80\x02]" + b"q\x00]h\x00a" * 100_000 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 300_000 + b".",
    "deep marks": b"\x80\x02" + b"(" * 3_000_000 + b".",
    "a memo far out": b"]r\xff\xff\xff\x7f.",
    "a memo far out, in text": b"]p4000000000\n.",
    "a long text of nothing": b"X\xff\xff\xff\xff.",
    "bytes of nothing": b"\x8e" + b"\xff" * 7 + b"\x7f.",
    "a byte array of nothing": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
    "a giant integer": ONES + b".",
    "a giant integer in text": b"I" + b"9" * 10**6 + b"\n.",
    "a giant long in text": b"L" + b"9" * 4000 + b"L\n.",
    "an integer of a giant text": b"c__builtin__\nint\n(" + text(b"f" * 10**6) + b"K\x10tR.",
    "a list copied often": b"\x80\x02c__builtin__\nlist\nq\x00" + LIST + b"q\x01("
    + b"h\x00h\x01\x85R" * 50_000 + b"l.",
    "a list copied often, as pairs": b"\x80\x02ccollections\nOrderedDict\nq\x00(("
    + b"(K\x01K\x01l" * 10**4 + b"lq\x010" + b"h\x00h\x01\x85R" * 50_000 + b"l.",
    "a text encoded often": b"\x80\x02c_codecs\nencode\nq\x00" + text(b"x" * 10**6) + b"q\x01("
    + b"h\x00h\x01\x85R" * 50_000 + b"l.",
    "a call with many arguments": b"\x80\x02(ctorch._utils\n_rebuild_parameter\nq\x00("
    + b"N" * 10**5 + b"tq\x01" + b"h\x00h\x01R" * 50_000 + b"l.",
    "many classes": b"(" + b"".join(b"cm\nc%d\n" % i for i in range(10**5)) + b"l.",
    "many sets": b"\x80\x04(" + b"\x8f" * 2_000_000 + b"l.",
    "many numbers": b"(" + b"K\x01" * 6_000_000 + b"l.",
    "integers of one hash": b"\x80\x02}("
    + b"".join(
        b"\x8a\x10" + ((2**61 - 1) * (i + 2**63)).to_bytes(16, "little", signed=True) + b"N"
        for i in range(60_000)
    )
    + b"u.",
    "a name as long as the file": b"c" + b"x" * 10**7 + b"\ny\n.",
    "no line break": b"c" + b"x" * 10**7,
    "an extension": b"\x80\x02\x82\x01.",
    "a buffer from outside": b"\x80\x05\x97.",
    "a protocol to come": b"\x80\x63.",
    "a pop too many": b"0" * 1000 + b".",
    "a shape of many axes": b"cnumpy._core.numeric\n_frombuffer\n(C\x00cnumpy\ndtype\n("
    + text(b"f4") + b"\x89\x88tR(" + INTEGER * 10**5 + b"tX\x01\x00\x00\x00CtR.",
}  # fmt: skip


def stored(program, data=b"\0" * 16, compression=zipfile.ZIP_STORED, of_data=zipfile.ZIP_STORED):
    """A zip file as torch.save writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", program, compression)
        archive.writestr("a/data/0", data, of_data)
    return file.getvalue()


def tensor(size=(4,), stride=(1,), key=b"0", zipped=True, storage_size=4):
    """A dictionary of one tensor, whose storage is number `key`."""
    numbers = [b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in axes) + b"t"
               for axes in (size, stride)]  # fmt: skip
    end = b"" if zipped else b"N"
    identity = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(key) + text(b"cpu")
    identity += b"\x8a\x08" + struct.pack("<q", storage_size) + end + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + b"K\x00" + b"".join(numbers)
    return b"\x80\x02}" + text(b"w") + call + b"\x89NtRs."


def legacy(program, key=b"0"):
    """A file as torch.save wrote it before 1.6."""
    keys = b"\x80\x02]" + text(key) + b"a."
    data = struct.pack("<q4f", 4, 0, 0, 0, 0)
    begins = [pickle.dumps(n, 2) for n in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*begins, program, keys, data])


def moved(archive, by):
    """A zip file whose directory says that its second file is elsewhere."""
    at = archive.rindex(b"PK\1\2") + 42
    offset = struct.unpack("<I", archive[at : at + 4])[0] + by
    return archive[:at] + struct.pack("<I", offset) + archive[at + 4 :]


def entry_of(archive, size):
    """A zip file whose directory says that its second file has another size."""
    at = archive.rindex(b"PK\1\2") + 20
    return archive[:at] + struct.pack("<2I", size, size) + archive[at + 8 :]


DEFLATED = zipfile.ZIP_DEFLATED
GOOD_ZIP, GOOD_LEGACY = stored(tensor()), legacy(tensor(zipped=False))
REFUSED = {
    "deflated tensor": (stored(tensor(), of_data=DEFLATED), "compressed data"),
    "deflated bomb": (stored(tensor(), bytes(10**8), of_data=DEFLATED), "compressed data"),
    "deflated program": (stored(tensor() + bytes(10**8), compression=DEFLATED), "compressed"),
    "entry elsewhere": (moved(GOOD_ZIP, 7), "ends before its tensors"),
    "entry far away": (moved(GOOD_ZIP, 2**31), "ends before its tensors"),
    "entry too large": (entry_of(GOOD_ZIP, 2**31), "ends before its tensors"),
    "storage of a long name": (stored(tensor(key=b"0" * 10**6)), "storage without a name"),
    "storage that is not there": (stored(tensor(key=b"1")), "storage is missing"),
    "tensor too large": (stored(tensor((2**40,))), "past the end of its storage"),
    "sizes that overflow": (stored(tensor((2**62, 2**62), (1, 1))), "past the end"),
    "empty but huge": (stored(tensor((0, 2**62, 2**62), (1, 1, 1))), "huge sizes"),
    "legacy storage too large": (legacy(tensor(zipped=False, storage_size=2**40)), "ends before"),
    "legacy storage negative": (legacy(tensor(zipped=False, storage_size=-1)), "negative"),
    "legacy storage not filled": (GOOD_LEGACY[:-1], "ends before its tensors"),
    "legacy storage of another": (
        legacy(tensor(zipped=False), b"1"),
        "list of storages",
    ),
    "cut in a name": (b"ctorch", "ends before its pickle"),
}


def header(content, data=b"\0" * 16, length=None):
    """A safetensors file with a header of one's own."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def of(dtype="F32", shape=(4,), at=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(at)}


SAFETENSORS = {
    "no header": b"",
    "header longer than the file": header({}, length=2**40),
    "header of all bytes": header({}, length=2**64 - 1),
    "deep header": header(b"[" * 10**5),
    "deep field": header(b'{"a":' * 10**5),
    "header of text": header(b'"x"'),
    "no text": header(b"\xff" * 8),
    "offsets beyond the file": header({"w": of(at=(0, 32), shape=(8,))}),
    "offsets that overlap": header({"w": of(), "v": of()}),
    "offsets backwards": header({"w": of(at=(16, 0))}),
    "gap": header({"w": of(at=(8, 16), shape=(2,))}),
    "bytes left": header({"w": of(at=(0, 8), shape=(2,))}),
    "shape that overflows": header({"w": of(shape=(2**62, 2**62))}),
    "negative shape": header({"w": of(shape=(-1, -4))}),
    "unknown dtype": header({"w": of("F5")}),
    "name given twice": header(
        b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        b'"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    ),
    "float8": header({"w": of("F8_E4M3", (16,))}),
    "float4": header({"w": of("F4", (32,))}),
    "float6": header({"w": of("F6_E2M3", (32,), (0, 24))}, bytes(24)),
    "float8 scale": header({"w": of("F8_E8M0", (16,))}),
    "complex": header({"w": of("C64", (2,))}),
    "metadata of numbers": header({"__metadata__": {"a": 1}, "w": of()}),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """By case: the seconds of CPU time that reading took, and what was said."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, content in HOSTILE.items():
        (folder / f"{name}.ckpt").write_bytes(content)
    for name, (content, _) in REFUSED.items():
        (folder / f"{name}.ckpt").write_bytes(content)
    for name, content in SAFETENSORS.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    result = subprocess.run(
        [sys.executable, "-c", READER, folder, str(2**30 * 3 // 2)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return {name: rest for name, *rest in map(json.loads, result.stdout.splitlines())}


def test_no_file_takes_much_memory(outcomes):
    assert outcomes["peak"][0] < MEGABYTES


@pytest.mark.parametrize("case", [*HOSTILE, *SAFETENSORS])
def test_a_hostile_file_takes_little_time_and_is_read_or_refused_in_one_line(outcomes, case):
    seconds, said = outcomes[case]
    assert seconds < SECONDS
    assert said.isprintable() and len(said) < 700, said


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_lies_about_its_tensors_is_refused(outcomes, case):
    seconds, said = outcomes[case]
    assert seconds < SECONDS and REFUSED[case][1] in said and said.isprintable(), said


def test_the_files_that_the_lies_are_made_of_can_be_read(tmp_path):
    for content in (GOOD_ZIP, GOOD_LEGACY):
        (tmp_path / "a.ckpt").write_bytes(content)
        np.testing.assert_array_equal(read_pickle(tmp_path / "a.ckpt").content["w"], np.zeros(4))


def test_a_tensor_that_repeats_its_storage_is_inert_and_reported(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(stored(tensor((2**20, 4), (0, 1))))
    found = read_pickle(tmp_path / "a.ckpt")
    assert found.inert == ["torch.Tensor.expand"]
    assert not isinstance(found.content["w"], np.ndarray)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_read_as_python_reads_it(tmp_path, protocol):
    rng = np.random.default_rng(protocol)
    leaves = [None, True, False, 0, 255, 256, 65536, -1, 2**31, -(2**31), 2**70, -(2**100), 1.5]
    leaves += ["", "é\n", "x" * 300, "\ud800", b"", b"\xff" * 300, (), (1,), (1, 2), (1, 2, 3)]

    def some(depth):
        if depth == 0:
            return leaves[rng.integers(len(leaves))]
        items = [some(depth - 1) for _ in range(rng.integers(5))]
        make = [
            list,
            tuple,
            lambda i: dict(enumerate(i)),
            lambda i: {f"k{j}": x for j, x in enumerate(i)},
        ]
        return make[rng.integers(len(make))](items)

    content = [some(4) for _ in range(30)]
    content.append(content[0])
    dumped = pickle.dumps(content, protocol)
    (tmp_path / "a.pkl").write_bytes(dumped)
    found = read_pickle(tmp_path / "a.pkl").content
    assert found == pickle.loads(dumped) and found[-1] is found[0]


@pytest.mark.parametrize("value", [fractions.Fraction(1, 3), {1, 2}, frozenset({1}), 1j, slice(1)])
@pytest.mark.parametrize("protocol", range(6))
def test_other_objects_do_not_keep_a_file_from_being_read(tmp_path, protocol, value):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": np.ones(3), "other": [value]}, protocol))
    np.testing.assert_array_equal(read_pickle(tmp_path / "a.pkl").content["w"], np.ones(3))


def test_any_bytes_are_refused_in_one_line(tmp_path):
    good = [GOOD_ZIP, GOOD_LEGACY, pickle.dumps({"w": np.ones((3, 2), np.float32)}, 4)]
    rng = np.random.default_rng(0)
    for i in range(300):
        content = bytearray(good[i % 3])
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            content[at] = rng.integers(256)
        (tmp_path / "a.ckpt").write_bytes(
            content[: rng.integers(len(content)) or None] if i % 5 == 0 else content
        )
        try:
            read_pickle(tmp_path / "a.ckpt")
        except PickleError as error:
            assert str(error).isprintable() and len(str(error)) < 600
