import argparse
import fractions
import os
import pickle
import zipfile

import numpy as np
import pytest

from odvae_jax.checkpoints.pickles import Inert, PickleError, read_pickle


def dump(path, content, protocol=2):
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=protocol)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_arrays_are_read_in_every_protocol(tmp_path, protocol):
    array = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    content = {"w": array, "s": np.float32(3), "n": [1, 2.5, "x", None, True]}
    found = read_pickle(dump(tmp_path / "a.pkl", content, protocol))
    np.testing.assert_array_equal(found.content["w"], array)
    assert found.content["s"] == 3 and found.content["n"] == content["n"]
    assert found.inert == []


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_are_read_as_pytorch_wrote_them(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    a = torch.randn(4, 6)
    tensors = {
        "contiguous": a,
        "transposed": a.T,
        "shared": a[1:, ::2],
        "bfloat16": torch.randn(5).bfloat16(),
        "half": torch.randn(4).half(),
        "whole": torch.arange(5),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.0),
    }
    content = {"state_dict": tensors, "epoch": 3, "rate": fractions.Fraction(1, 3)}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    found = read_pickle(tmp_path / "a.ckpt")
    assert found.content["epoch"] == 3
    assert found.inert == ["fractions.Fraction"]
    for name, tensor in tensors.items():
        array = found.content["state_dict"][name]
        assert str(tensor.dtype) == f"torch.{array.dtype}"
        np.testing.assert_array_equal(array.astype(np.float64), tensor.detach().double().numpy())


class Harmful:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_no_other_global_is_executed(tmp_path, protocol):
    content = {
        "w": np.ones(3),
        "callbacks": [Harmful(tmp_path / "made"), {Harmful(tmp_path / "made")}],
    }
    found = read_pickle(dump(tmp_path / "a.pkl", content, protocol))
    assert not (tmp_path / "made").exists()
    assert found.inert == [f"{os.mkdir.__module__}.mkdir"]
    np.testing.assert_array_equal(found.content["w"], np.ones(3))


def forged_zip(path, program, data=b"\0" * 16):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", data)
    return path


# Hand-written opcodes: (torch.FloatStorage, "0", cpu, 4 values) as a persistent id, a tensor of it.
STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)


def tensor(offset, size, stride):
    numbers = b"".join(b"J" + n.to_bytes(4, "little", signed=True) for n in (offset, size, stride))
    o, n, s = (numbers[5 * i : 5 * i + 5] for i in range(3))
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + STORAGE
        + o
        + b"("
        + n
        + b"t("
        + s
        + b"t\x89NtR."
    )


def test_tensors_cannot_reach_outside_their_storage(tmp_path):
    path = tmp_path / "a.ckpt"
    assert read_pickle(forged_zip(path, tensor(1, 3, 1))).content.shape == (3,)
    for reach in ((1, 4, 1), (0, 3, 2), (-1, 3, 1), (0, 4, -1), (0, -1, 1), (4, 1, 1)):
        with pytest.raises(PickleError, match="past the end|negative"):
            read_pickle(forged_zip(path, tensor(*reach)))


def test_what_a_pickle_may_name_it_may_not_change(tmp_path):
    change = b"\x80\x02" + STORAGE + b"}X\x06\x00\x00\x00valuesK\x01sb."
    with pytest.raises(PickleError, match="tries to change a Storage"):
        read_pickle(forged_zip(tmp_path / "a.ckpt", change))


def numpy_dtype(code, state):
    """Opcodes for a NumPy dtype of `code` that is then given `state`."""
    return (
        b"cnumpy\ndtype\n(X" + len(code).to_bytes(4, "little") + code + b"\x89\x88tR" + state + b"b"
    )


@pytest.mark.parametrize(
    "code, state",
    [
        (b"V1", b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"),
        (b"O8", b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"),
        (b"f4", b"(K\x03X\x01\x00\x00\x00<(X\x02\x00\x00\x00f4K\x02tNNK\x01K\x01K\x00t"),
    ],
    ids=["void", "object", "subarray"],
)
def test_dtypes_that_could_read_anywhere_are_refused(tmp_path, code, state):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + numpy_dtype(code, state) + b".")
    with pytest.raises(PickleError, match="dtype"):
        read_pickle(tmp_path / "a.pkl")


def test_arrays_must_be_filled_by_their_bytes(tmp_path):
    plain = numpy_dtype(
        b"f4", b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    )
    for size in (1, 3):
        call = b"cnumpy._core.numeric\n_frombuffer\n(C\x08" + b"\0" * 8 + plain
        program = b"\x80\x05" + call + b"K" + bytes([size]) + b"\x85X\x01\x00\x00\x00CtR."
        (tmp_path / "a.pkl").write_bytes(program)
        with pytest.raises(PickleError, match="do not fill"):
            read_pickle(tmp_path / "a.pkl")


def test_the_readers_own_functions_cannot_be_changed(tmp_path):
    change = b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__K\x01s\x86b."
    (tmp_path / "a.pkl").write_bytes(change)
    with pytest.raises(PickleError, match="tries to change a Function"):
        read_pickle(tmp_path / "a.pkl")


def test_tensors_of_other_dtypes_are_inert_and_reported(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2), "c": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "a.pt")
    found = read_pickle(tmp_path / "a.pt")
    assert found.inert == ["torch.ComplexFloatStorage"]
    assert found.content["w"].tolist() == [1, 1] and isinstance(found.content["c"], Inert)


@pytest.mark.parametrize("content", [b"", b"hello", b"<html></html>", b"\x80\x02"])
def test_files_that_are_no_pickles_are_refused(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(PickleError):
        read_pickle(tmp_path / "a.ckpt")


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    with pytest.raises(PickleError, match=r"without the data\.pkl"):
        read_pickle(tmp_path / "a.ckpt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_refused(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    torch.save(
        {"w": torch.randn(100, 100)}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped
    )
    whole = (tmp_path / "a.ckpt").read_bytes()
    for tenth in range(10):
        (tmp_path / "a.ckpt").write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(PickleError):
            read_pickle(tmp_path / "a.ckpt")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_namespace_is_read_as_its_fields_and_executes_nothing(tmp_path, protocol):
    fields = {"n": 3, "sizes": (4, 8, 8), "harm": Harmful(tmp_path / "made")}
    content = {"args": argparse.Namespace(**fields), "twice": [argparse.Namespace(a=1)] * 2}
    found = read_pickle(dump(tmp_path / "a.pkl", content, protocol))
    args = found.content["args"]
    assert {n: args[n] for n in ("n", "sizes")} == {"n": 3, "sizes": (4, 8, 8)}
    assert isinstance(args["harm"], Inert) and not (tmp_path / "made").exists()
    assert found.content["twice"] == [{"a": 1}, {"a": 1}]
    assert len(found.inert) == 1


def test_a_namespace_whose_state_is_no_dictionary_is_refused(tmp_path):
    program = b"\x80\x02cargparse\nNamespace\n)\x81K\x01b."
    (tmp_path / "a.pkl").write_bytes(program)
    with pytest.raises(PickleError, match="Namespace whose fields are no dictionary"):
        read_pickle(tmp_path / "a.pkl")
