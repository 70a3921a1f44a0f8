"""C3D against TGANv2's code with the same weights, and the files that weights come from."""

import json
import pathlib

import numpy as np
import pytest

from odvae_jax.metrics.c3d import TorchC3D, load_c3d, load_classifier
from tests.conftest import full
from tests.fixtures.weights_recipe import video, weight

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
ARRAYS = np.load(FIXTURES / "latte.npz")
FACTS = json.loads((FIXTURES / "latte.json").read_text())
PARAMETERS = FACTS["c3d_parameters"]
UINT8 = np.zeros((2, 16, 20, 24, 3), np.uint8)


def clip(case):
    """The clip of a case in [-1, 1], channels last."""
    seed, height, width = FACTS["c3d_cases"][case]
    return video(seed, (1, 3, 16, height, width)).transpose(0, 2, 3, 4, 1)


def mean_clip():
    t, i, j = np.ogrid[:16, :128, :171]
    return np.stack([b + 0.2 * t + 0.1 * i - 0.05 * j for b in (90, 98, 101)]).astype(np.float32)


def in_the_file(name):
    """A parameter's name in TGANv2's file."""
    return name.replace(".weight", "/W").replace(".bias", "/b")


@pytest.fixture(scope="module")
def c3d(tmp_path_factory):
    """The network with weights by the recipe, read from files as TGANv2's release has them."""
    path = tmp_path_factory.mktemp("c3d") / "conv3d_deepnetA_ucf.npz"
    np.savez(path, **{in_the_file(n): weight(n, tuple(s)) for n, s in PARAMETERS.items()})
    np.savez(path.with_name("mean2.npz"), mean=mean_clip())
    read = load_classifier(path)
    path.unlink()
    return read


@pytest.mark.parametrize("case", ["64", *full("128x96")])
def test_c3d_is_that_of_tganv2(c3d, case):
    corner = np.asarray(c3d.network_input(clip(case)))[0].transpose(3, 0, 1, 2)
    near = {"rtol": 0, "atol": 5e-5}
    expected = ARRAYS[f"c3d_pre_corner_{case}"]
    assert np.abs(corner[:, ::15, ::37, ::37] - expected).max() < 5e-5 * np.abs(expected).max()
    logits = np.asarray(c3d(clip(case)))[0]
    np.testing.assert_allclose(logits, ARRAYS[f"c3d_fc8_{case}"], **near)
    shifted = np.exp(logits - logits.max())
    np.testing.assert_allclose(shifted / shifted.sum(), ARRAYS[f"c3d_prob_{case}"], **near)


@pytest.mark.full
def test_probabilities_of_uint8_clips_are_those_of_clips_in_the_unit_range(c3d):
    levels = np.round((clip("64") + 1) * 127.5).astype(np.uint8)
    logits = np.asarray(c3d(levels / np.float32(127.5) - 1))[0]
    p = c3d.probabilities(levels)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.log(p[0]), logits - np.log(np.exp(logits).sum()), atol=1e-4)


def test_c3d_has_its_number_of_parameters_and_takes_16_frames(c3d, unchecked_types):
    assert sum(np.size(v) for unit in c3d.units.values() for v in unit) == 78_409_573
    with pytest.raises(ValueError, match="clips of 9 frames: C3D takes 16"):
        c3d.probabilities(UINT8[:, :9])


def test_missing_weights_say_what_to_get(tmp_path):
    what = "conv3d_deepnetA_ucf.npz and mean2.npz from TGANv2's.*c3d_ucf101.pt from StyleGAN-V's"
    with pytest.raises(FileNotFoundError, match=f"no package carries C3D's weights: take {what}"):
        load_classifier(None)
    with pytest.raises(FileNotFoundError, match=f"nowhere.npz does not exist: take {what}"):
        load_classifier(tmp_path / "nowhere.npz")
    np.savez(tmp_path / "weights.npz", a=np.zeros(3))
    with pytest.raises(FileNotFoundError, match="mean2.npz does not exist"):
        load_c3d(tmp_path / "weights.npz")


def test_files_that_hold_something_else_are_refused(tmp_path):
    path, mean = tmp_path / "weights.npz", tmp_path / "mean2.npz"
    np.savez(mean, mean=mean_clip())
    np.savez(path, **{"conv1a/W": np.zeros((64, 3, 3, 3), np.float32)})
    with pytest.raises(ValueError, match="weights.npz does not hold C3D's weights: .* missing"):
        load_c3d(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="weights.npz does not hold C3D's weights"):
        load_c3d(path)
    np.savez(path, **{"conv1a/W": np.array([print], object)})
    with pytest.raises(ValueError, match="weights.npz does not hold C3D's weights: .*pickle"):
        load_c3d(path)


def test_a_mean_clip_that_is_none_is_refused(tmp_path):
    path, mean = tmp_path / "weights.npz", tmp_path / "mean2.npz"
    np.savez(path, a=np.zeros(3))
    np.savez(mean, mean=mean_clip()[:, :, :119])
    with pytest.raises(ValueError, match="mean2.npz does not hold C3D's mean clip.*at least 120"):
        load_c3d(path)
    np.savez(mean, mean=np.full_like(mean_clip(), np.nan))
    with pytest.raises(ValueError, match="mean2.npz holds values that are not finite"):
        load_c3d(path)


def test_a_torchscript_file_does_not_run_unless_it_is_trusted(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")

    def load(*_, **__):
        raise AssertionError("the file was run")

    monkeypatch.setattr(torch.jit, "load", load)
    (tmp_path / "c3d.pt").write_bytes(b"a program")
    with pytest.raises(ValueError, match="c3d.pt is TorchScript: a program.*--trust-torchscript"):
        load_classifier(tmp_path / "c3d.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_trusted_torchscript_file_runs_as_it_is(tmp_path):
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):
        """Called as StyleGAN-V's file is, with uint8 [B, 3, 16, H, W]."""

        def forward(self, x):
            assert x.dtype == torch.uint8
            assert x.shape[1] == 3
            return torch.softmax(x.float().mean((2, 3, 4)), dim=1)

    class Logits(torch.nn.Module):
        def forward(self, x):
            return x.float().mean((2, 3, 4))

    torch.jit.script(Network()).save(str(tmp_path / "c3d.pt"))
    torch.jit.script(Logits()).save(str(tmp_path / "logits.pt"))
    clips = np.random.default_rng(0).integers(0, 4, UINT8.shape, np.uint8)
    network = load_classifier(tmp_path / "c3d.pt", trust_torchscript=True)
    means = np.exp(clips.mean((1, 2, 3), dtype=np.float64))
    expected = means / means.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(network.probabilities(clips), expected, rtol=1e-5)
    other = TorchC3D(tmp_path / "logits.pt", trust_torchscript=True)
    assert other.digest != network.digest
    with pytest.raises(ValueError, match="logits.pt returned no probabilities"):
        other.probabilities(clips)
    with pytest.raises(FileNotFoundError, match="nowhere.pt does not exist; expected c3d_ucf101"):
        TorchC3D(tmp_path / "nowhere.pt", trust_torchscript=True)
