"""SVD-VAE against the reference's numbers, and its published files."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import odvae_jax
from odvae_jax.baselines import SVDVAE, SVDVAEConfig
from odvae_jax.checkpoints import svd_vae
from odvae_jax.checkpoints.files import read_weight_file
from odvae_jax.checkpoints.pretrained import load_pretrained
from odvae_jax.parameters import named_parameters, with_config
from odvae_jax.scale import Scale
from tests.baselines import published
from tests.baselines.test_common import same
from tests.checkpoints.test_pretrained import cached_repository
from tests.conftest import full, random_video


def write(folder, change=None, fields=None, name="diffusion_pytorch_model.safetensors"):
    """The files as diffusers has them, at small width."""
    folder.mkdir(parents=True)
    config, _ = published.description("svd_vae")
    state = published.state("svd_vae")
    if change:
        change(state)
    (folder / "config.json").write_text(json.dumps({**config, **(fields or {})}))
    save_file(state, folder / name)
    return folder


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("svd") / "vae")
    return SVDVAE.from_pretrained(folder, precision="highest")


@pytest.mark.parametrize("case", ["clip", *full("image")])
def test_it_is_the_reference_s_function(released, case):
    names = ("video", "moments", "reconstruction_of_mean")
    video, moments, reconstruction = published.golden("svd_vae", case, *names)
    posterior = released.encode(video)
    np.testing.assert_allclose(posterior.mode(), moments[..., :4], atol=1e-5)
    np.testing.assert_allclose(posterior.logvar, np.clip(moments[..., 4:], -30, 20), atol=1e-5)
    np.testing.assert_allclose(released.reconstruct(video), reconstruction, atol=5e-5)


@pytest.mark.full
def test_a_chunk_length_cuts_a_clip_and_shares_nothing(released, tmp_path):
    (moments,) = published.golden("svd_vae", "clip", "moments")
    (apart,) = published.golden("svd_vae", "clip", "reconstruction_of_mean_chunks_of_2")
    released.save_pretrained(tmp_path / "vae")
    chunked = SVDVAE.from_pretrained(tmp_path / "vae", precision="highest", decode_chunk=2)
    np.testing.assert_allclose(chunked.decode(moments[..., :4]), apart, atol=5e-5)


TEMPORAL = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0"} | {
    "conv2": "out_layers.3"
}


def original(name):
    """The name in svd.safetensors, by the page's words and not by the package's code."""
    part, *rest = name.split(".")
    if part == "quant_conv":
        return name
    where, leaf = ".".join(rest[:-1]), rest[-1]
    if where.startswith("conv_norm_out"):
        return f"{part}.norm_out.{leaf}"
    if where == "time_conv_out":
        return f"{part}.conv_out.time_mix_conv.{leaf}"
    if where.startswith("mid_block.attentions.0"):
        names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
        return f"{part}.mid.attn_1.{names[rest[3]]}.{leaf}"
    if where.startswith("mid_block"):
        place, inner = f"mid.block_{int(rest[2]) + 1}", rest[3:]
    elif rest[0] in ("down_blocks", "up_blocks"):
        level = int(rest[1]) if part == "encoder" else 3 - int(rest[1])
        kind = {"down_blocks": "down", "up_blocks": "up"}[rest[0]]
        if rest[2] in ("downsamplers", "upsamplers"):
            return f"{part}.{kind}.{level}.{rest[2][:-3]}e.conv.{leaf}"
        place, inner = f"{kind}.{level}.block.{rest[3]}", rest[4:]
    else:
        return name
    if inner[0] == "time_mixer":
        return f"{part}.{place}.mix_factor"
    if inner[0] == "temporal_res_block":
        return f"{part}.{place}.time_stack.{TEMPORAL[inner[1]]}.{leaf}"
    layer = inner[1] if inner[0] == "spatial_res_block" else inner[0]
    return f"{part}.{place}.{layer.replace('conv_shortcut', 'nin_shortcut')}.{leaf}"


def whole(change=None):
    """Stable Video Diffusion's file with everything, in the original names."""
    state = {}
    for name, value in published.state("svd_vae").items():
        square = ".mid_block.attentions.0.to_" in name and value.ndim == 2
        state[f"first_stage_model.{original(name)}"] = value[:, :, None, None] if square else value
    state["model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight"] = np.ones(
        4, np.float32
    )
    state["conditioner.embedders.0.open_clip.model.logit_scale"] = np.ones(1, np.float32)
    if change:
        change(state)
    return state


def test_the_original_file_is_the_same_model(released, tmp_path):
    save_file(whole(), tmp_path / "svd.safetensors")
    loaded = load_pretrained(tmp_path / "svd.safetensors", precision="highest")
    assert loaded.layout == "svd-vae" and len(loaded.ignored) == 2
    assert loaded.vae.config == released.config
    same(loaded.vae, released)


def no_quant(state):
    for name in [n for n in state if ".quant_conv." in n]:
        del state[name]


def test_without_a_quant_convolution_it_is_the_identity(tmp_path):
    save_file(whole(no_quant), tmp_path / "svd.safetensors")
    loaded = odvae_jax.from_pretrained(tmp_path / "svd.safetensors", precision="highest")
    kernel = np.asarray(loaded.quant_conv.kernel[...])[0, 0, 0]
    np.testing.assert_array_equal(kernel, np.eye(8, dtype=np.float32))
    assert not np.asarray(loaded.quant_conv.bias[...]).any()


def image_decoder(state):
    for name in [n for n in state if ".time_mix" in n or ".mix_factor" in n]:
        del state[name]
    for name in [n for n in state if n.startswith("first") and ".time_stack." in n]:
        del state[name]


def test_the_file_with_the_image_decoder_is_refused(tmp_path):
    save_file(whole(image_decoder), tmp_path / "svd_image_decoder.safetensors")
    with pytest.raises(ValueError, match="no temporal decoder: .*image_decoder have a plain 2D"):
        odvae_jax.from_pretrained(tmp_path / "svd_image_decoder.safetensors")


def test_what_is_written_back_is_the_published_folder(released, tmp_path):
    svd_vae.save(released, tmp_path / "vae")
    with_reader = load_pretrained(tmp_path / "vae", precision="highest")
    same(with_reader.vae, released)
    content = read_weight_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors").content
    expected = published.state("svd_vae")
    assert content.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(content[name], value, err_msg=name)
    written = json.loads((tmp_path / "vae" / "config.json").read_text())
    config, _ = published.description("svd_vae")
    assert {n: written[n] for n in config} == config


def test_the_published_layout_has_no_place_for_a_chunk_length_which_is_said(
    released, tmp_path, caplog
):
    svd_vae.save(released, tmp_path / "whole")
    assert not caplog.records
    svd_vae.save(with_config(released, decode_chunk=14), tmp_path / "vae")
    assert "decode_chunk=14 is not written" in caplog.text
    assert load_pretrained(tmp_path / "vae").vae.config.decode_chunk is None


def test_a_measured_scale_goes_with_the_model(released, tmp_path):
    fields = {"latents_mean": (0.5, 0.0, -1.0, 0.25), "latents_std": (1.0, 2.0, 0.5, 4.0)}
    model = with_config(released, **fields, scaling_factor=0.5)
    svd_vae.save(model, tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    for folder in ("theirs", "ours"):
        loaded = odvae_jax.from_pretrained(tmp_path / folder)
        assert loaded.config.scale == Scale(*fields.values(), 0.5)


@pytest.mark.usefixtures("offline_hub")
def test_a_hub_id_with_its_subfolder_is_loaded(released, offline_hub):
    cached_repository(offline_hub, "someone/svd", lambda path: write(path / "vae"))
    loaded = load_pretrained("someone/svd", subfolder="vae", revision="v2", precision="highest")
    assert loaded.layout == "svd-vae"
    same(loaded.vae, released)


def test_the_file_of_rounded_weights_is_taken_if_it_is_the_only_one(tmp_path):
    folder = write(tmp_path / "vae", name="diffusion_pytorch_model.fp16.safetensors")
    assert load_pretrained(folder).source.name == "diffusion_pytorch_model.fp16.safetensors"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"layers_per_block": 3}, "layers_per_block is 3; an SVD-VAE has 2"),
        ({"block_out_channels": [32, 64]}, "block_out_channels is"),
        ({"_class_name": "AutoencoderKLOther"}, "config of 'AutoencoderKLOther'; known are"),
    ],
)
def test_a_config_of_another_model_is_refused_with_its_field(fields, words, tmp_path):
    with pytest.raises(ValueError, match=rf"config\.json.*{words}"):
        odvae_jax.from_pretrained(write(tmp_path / "vae", fields=fields))


def cut(state):
    del state["decoder.time_conv_out.bias"]


def other_width(state):
    state["decoder.conv_out.weight"] = state["decoder.conv_out.weight"][:, :16]


@pytest.mark.parametrize(
    "change, words",
    [
        (cut, "1 missing: decoder.time_conv_out.bias"),
        (other_width, "wrong shape: decoder.conv_out.weight is"),
    ],
)
def test_a_broken_file_is_refused_with_its_names(change, words, tmp_path):
    with pytest.raises(ValueError, match=rf"model\.safetensors does not hold .*{words}"):
        odvae_jax.from_pretrained(write(tmp_path / "vae", change))


@pytest.mark.full
def test_at_full_width_it_is_diffusers_function(tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
    ).eval()
    theirs.save_pretrained(tmp_path / "vae")
    ours = SVDVAE.from_pretrained(tmp_path / "vae", precision="highest")
    assert ours.config == SVDVAEConfig(precision="highest")
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(np.size(p) for p in named_parameters(ours).values()) == count == 97_742_847
    video = random_video(3, 24, 32)
    frames = torch.tensor(video[0]).permute(0, 3, 1, 2)
    with torch.no_grad():
        mean = theirs.encode(frames).latent_dist.mode()
        decoded = theirs.decode(mean, num_frames=3).sample
    found = ours.encode(video).mode()
    np.testing.assert_allclose(found[0], mean.permute(0, 2, 3, 1), atol=1e-4)
    expected = decoded.permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours.decode(found)[0], expected, atol=1e-4)
    assert isinstance(found, jax.Array)
