"""SD-VAE against diffusers' AutoencoderKL, in every layout that it comes in."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from odvae_jax import ODVAE
from odvae_jax.checkpoints import sd_vae
from odvae_jax.checkpoints.pretrained import load_pretrained
from odvae_jax.config import STRUCTURES
from odvae_jax.parameters import named_parameters
from tests.conftest import random_video, small_model

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


@functools.lru_cache(maxsize=3)
def autoencoder(width=32, latent_channels=4, **fields):
    """SD2.1's architecture with random weights, or another of the same plan."""
    torch.manual_seed(0)
    levels = 4
    model = diffusers.AutoencoderKL(
        block_out_channels=[width, 2 * width, 4 * width, 4 * width],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=2,
        latent_channels=latent_channels,
        norm_num_groups=32,
        **fields,
    )
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    return model.eval()


def reference(model, video):
    """Moments, and the reconstruction of the mean, of each frame."""
    frames = torch.tensor(video.reshape(-1, *video.shape[2:])).permute(0, 3, 1, 2)
    with torch.no_grad():
        posterior = model.encode(frames).latent_dist
        decoded = model.decode(posterior.mean).sample
    back = lambda x: x.permute(0, 2, 3, 1).numpy().reshape(*video.shape[:2], *x.shape[2:], -1)  # noqa: E731
    return back(posterior.mean), back(posterior.logvar), back(decoded)


def assert_same_function(vae, model):
    video = random_video(2, 16, 24)
    mean, logvar, decoded = reference(model, video)
    np.testing.assert_allclose(vae.encode(video).mean, mean, atol=1e-4)
    np.testing.assert_allclose(vae.encode(video).logvar, logvar, atol=1e-4)
    np.testing.assert_allclose(vae.decode(mean), decoded, atol=1e-4)


@pytest.fixture
def folder(tmp_path):
    autoencoder().save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def rewrite(folder, change):
    """Replaces the folder's tensors by `change` of them."""
    weights = folder / "diffusion_pytorch_model.safetensors"
    save_file({n: np.ascontiguousarray(v) for n, v in change(load_file(weights)).items()}, weights)


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def with_old_names(state):
    renamed = {}
    for name, value in state.items():
        for new, old in OLD_NAMES.items():
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = value
    return renamed


def with_four_axes(state):
    return {
        n: v[..., None, None] if ".attentions." in n and v.ndim == 2 else v
        for n, v in state.items()
    }


@pytest.mark.parametrize(
    "change",
    [dict, with_old_names, with_four_axes, lambda s: with_old_names(with_four_axes(s))],
    ids=["new names", "old names", "four axes", "old names, four axes"],
)
def test_diffusers_folder_is_the_same_function(folder, change):
    rewrite(folder, change)
    vae = ODVAE.from_pretrained(folder, precision="highest")
    assert vae.config.structure == "image" and vae.config.width == 32
    assert_same_function(vae, autoencoder())


@pytest.mark.full
def test_full_width_is_the_same_function(tmp_path):
    autoencoder(128).save_pretrained(tmp_path / "vae")
    assert_same_function(
        ODVAE.from_pretrained(tmp_path / "vae", precision="highest"), autoencoder(128)
    )


SD3 = {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
}


def test_stable_diffusion_3s_is_the_same_function_and_goes_back_bit_for_bit(tmp_path):
    autoencoder(**SD3).save_pretrained(tmp_path / "vae")
    vae = ODVAE.from_pretrained(tmp_path / "vae", precision="highest")
    assert vae.config.latent_channels == 16 and not vae.config.parts.quant
    assert_same_function(vae, autoencoder(**SD3))
    latents = np.linspace(-2, 2, 32, dtype=np.float32).reshape(2, 16)
    np.testing.assert_allclose(vae.normalise(latents), (latents - 0.0609) * 1.5305, rtol=1e-5)
    sd_vae.save(vae, tmp_path / "again")
    name = "diffusion_pytorch_model.safetensors"
    before, after = (load_file(tmp_path / folder / name) for folder in ("vae", "again"))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {name: config[name] for name in SD3} == SD3
    vae.save_pretrained(tmp_path / "ours")
    ours = ODVAE.from_pretrained(tmp_path / "ours")
    assert ours.config == vae.config
    np.testing.assert_array_equal(ours.decoder.conv_in.kernel[...], vae.decoder.conv_in.kernel[...])


def test_a_bare_file_without_quant_convolutions_is_the_same_function(tmp_path):
    structure = dataclasses.replace(STRUCTURES["image"], quant=False)
    vae = small_model(structure, width=32, groups=32, latent_channels=16)
    state = {}
    for ours, value in named_parameters(vae).items():
        (name,) = sd_vae.original_names(ours)
        state[name] = np.asarray(value)
        if value.ndim == 5:
            state[name] = np.ascontiguousarray(state[name][0].transpose(3, 2, 0, 1))
    save_file(state, tmp_path / "ae.safetensors")
    again = ODVAE.from_pretrained(tmp_path / "ae.safetensors", precision="highest")
    assert again.config == vae.config
    for name, value in named_parameters(again).items():
        np.testing.assert_array_equal(value, named_parameters(vae)[name])


def original_file(path, prefix="", wrap=None, extra=()):
    """Writes random weights in the original layout; returns them by diffusers' own conversion."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    generator = torch.Generator().manual_seed(0)
    state = {}
    for ours, value in named_parameters(small_model("image", width=32, groups=32)).items():
        (name,) = sd_vae.original_names(ours)
        shape = value.shape
        if len(shape) == 5:
            shape = (shape[4], shape[3], shape[1], shape[2])
            state[name] = torch.randn(shape, generator=generator) / np.sqrt(np.prod(shape[1:]))
        else:
            state[name] = 0.5 + 0.2 * torch.randn(shape, generator=generator)
    model = diffusers.AutoencoderKL.from_config(autoencoder().config)
    model.load_state_dict(
        convert_ldm_vae_checkpoint(dict(state), autoencoder().config), strict=True
    )
    content = {prefix + name: value for name, value in state.items()} | dict(extra)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file as save_torch

        save_torch(content, path)
    else:
        torch.save({wrap: content, "epoch": 1} if wrap else content, path)
    return model.eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".bin"])
def test_original_layout_is_the_same_function(tmp_path, suffix):
    model = original_file(tmp_path / f"vae{suffix}")
    loaded = load_pretrained(tmp_path / f"vae{suffix}", precision="highest")
    assert loaded.layout == "sd-vae" and loaded.ignored == ()
    assert_same_function(loaded.vae, model)


def test_inside_a_whole_stable_diffusion_checkpoint(tmp_path):
    others = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4),
        "cond_stage_model.transformer.x": torch.zeros(2),
        "alphas_cumprod": torch.zeros(1000),
    }
    model = original_file(tmp_path / "sd.ckpt", "first_stage_model.", "state_dict", others.items())
    loaded = load_pretrained(tmp_path / "sd.ckpt", precision="highest")
    assert set(loaded.ignored) == {*others, "epoch"}
    assert_same_function(loaded.vae, model)


def test_an_autoencoders_training_file_has_its_loss_ignored(tmp_path):
    loss = {"loss.logvar": torch.zeros(())}
    model = original_file(tmp_path / "kl-f8.ckpt", wrap="state_dict", extra=loss.items())
    loaded = load_pretrained(tmp_path / "kl-f8.ckpt", precision="highest")
    assert set(loaded.ignored) == {"loss.logvar", "epoch"}
    assert_same_function(loaded.vae, model)


def test_an_exported_image_model_is_loaded_by_diffusers_as_the_same_function(tmp_path):
    vae = small_model("image", width=16, groups=8)
    sd_vae.save(vae, tmp_path / "vae")
    model, report = diffusers.AutoencoderKL.from_pretrained(
        tmp_path / "vae", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_same_function(vae, model.eval())
    again = ODVAE.from_pretrained(tmp_path / "vae", precision="highest")
    assert again.config == vae.config
    for name, value in named_parameters(again).items():
        np.testing.assert_array_equal(value, named_parameters(vae)[name])


def test_a_video_model_is_no_autoencoder_kl(tmp_path):
    with pytest.raises(ValueError, match="structure is 'v4': only an image model"):
        sd_vae.save(small_model("v4"), tmp_path / "vae")


def without(name):
    return lambda state: {n: v for n, v in state.items() if n != name}


@pytest.mark.parametrize(
    "change, words",
    [
        (without("encoder.conv_in.bias"), ["1 missing: encoder.conv_in.bias (32,)"]),
        (
            lambda s: s | {"extra.weight": s["encoder.conv_in.bias"]},
            ["1 unexpected: extra.weight (32,)"],
        ),
        (
            lambda s: s | {"encoder.conv_in.bias": np.zeros(3, np.float32)},
            ["1 wrong shape: encoder.conv_in.bias is (3,), expected (32,)", "another width"],
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_loading_is_strict(folder, change, words):
    rewrite(folder, change)
    with pytest.raises(ValueError) as error:
        ODVAE.from_pretrained(folder)
    assert all(w in str(error.value) for w in [*words, "model.safetensors"]), str(error.value)


def test_another_width_than_the_configs_is_named_as_the_likely_cause(folder):
    config = json.loads((folder / "config.json").read_text())
    config["block_out_channels"] = [64, 128, 256, 256]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"is \(128,\), expected \(256,\).*another width"):
        ODVAE.from_pretrained(folder)


@pytest.mark.parametrize(
    "field, value",
    [
        ("layers_per_block", 3),
        ("use_quant_conv", False),
        ("block_out_channels", [32, 32, 32, 32]),
        ("down_block_types", ["DownEncoderBlock2D"] * 3),
        ("act_fn", "gelu"),
    ],
)
def test_other_architectures_are_refused_by_field(folder, field, value):
    config = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config.json: {field} is "):
        ODVAE.from_pretrained(folder)


@pytest.mark.parametrize(
    "field, value", [("layers_per_block", 1), ("block_out_channels", [8, 8, 8, 8])]
)
def test_the_refusal_of_another_autoencoder_says_how_it_can_be_measured(folder, field, value):
    config = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="`odvae eval --callable` measures any other autoencoder"):
        ODVAE.from_pretrained(folder)


def test_a_file_beside_its_config_takes_its_groups_and_a_lone_one_asks(tmp_path):
    vae = small_model("image")
    sd_vae.save(vae, tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    assert ODVAE.from_pretrained(file).config.groups == 4
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match="width 8, which 32 groups do not divide.*pass groups="):
        ODVAE.from_pretrained(file)
    alone = ODVAE.from_pretrained(tmp_path / "vae", groups=4, precision="highest")
    video = random_video(1, 16, 24)
    np.testing.assert_allclose(alone.encode(video).mean, vae.encode(video).mean, atol=1e-5)


def test_a_loaded_model_does_not_change_with_its_file(tmp_path):
    original_file(tmp_path / "vae.ckpt")
    vae = ODVAE.from_pretrained(tmp_path / "vae.ckpt")
    before = {n: np.array(v) for n, v in named_parameters(vae).items()}
    with open(tmp_path / "vae.ckpt", "r+b") as file:
        file.write(b"\xff" * (tmp_path / "vae.ckpt").stat().st_size)
    for name, value in named_parameters(vae).items():
        np.testing.assert_array_equal(value, before[name])


def test_an_incomplete_file_is_told_what_is_missing(tmp_path):
    torch.save({"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "part.ckpt")
    with pytest.raises(ValueError, match=r"part.ckpt is not a whole SD-VAE: .*post_quant_conv"):
        ODVAE.from_pretrained(tmp_path / "part.ckpt")
    small_model().save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"odvae_jax's own layout: pass its folder"):
        ODVAE.from_pretrained(tmp_path / "ours" / "model.safetensors")


def test_a_stable_diffusion_file_without_its_vae_is_told_so(tmp_path):
    torch.save({"state_dict": {"model.diffusion_model.x": torch.zeros(2)}}, tmp_path / "unet.ckpt")
    with pytest.raises(ValueError, match=r"unet.ckpt holds no autoencoder.*without its VAE"):
        ODVAE.from_pretrained(tmp_path / "unet.ckpt")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt holds no autoencoder.*'fc'.*Another kind"):
        ODVAE.from_pretrained(tmp_path / "other.ckpt")
