"""Rows of one's own in the table of variants."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest

import odvae_jax
from odvae_jax import ODVAE, ODVAEConfig, Streaming, Structure, decode, encode
from odvae_jax.checkpoints import open_sora_plan, sd_vae
from odvae_jax.config import STRUCTURES
from odvae_jax.inflation import inflate
from odvae_jax.parameters import named_parameters
from tests.conftest import SMALL, full, random_video, small_model
from tests.two_levels import CAUSAL

V4 = STRUCTURES["v4"]
EIGHT = dataclasses.replace(V4, downsample=("3d", "3d", "3d"), time_strides=(2, 2, 2))
SIXTEEN = Structure(
    encoder_in="2d",
    encoder_levels=("2d", "2d", "3d", "3d", "3d"),
    downsample=("2d", "2d", "3d", "3d"),
    middle="3d",
    decoder_levels=("2d", "3d", "3d", "3d", "3d"),
    upsample=("2d", "2d", "3d", "3d"),
    ends="3d",
    time_strides=(1, 1, 2, 2),
    space_strides=(2, 2, 2, 2),
    width_multipliers=(1, 1, 2, 2, 2),
    encoder_blocks=1,
    decoder_blocks=2,
    decoder_width=12,
)
TIME_ONLY = dataclasses.replace(V4, space_strides=(2, 2, 1))
ROWS = {"8×8×8": (EIGHT, 8, 8), "4×16×16": (SIXTEEN, 4, 16), "4×4×4": (TIME_ONLY, 4, 4)}
ROWS |= {"2×2×2": (CAUSAL, 2, 2)}
CASES = ["2×2×2", *full("4×16×16", "8×8×8", "4×4×4")]


@pytest.mark.parametrize("name", CASES)
def test_a_row_of_one_s_own_compresses_streams_and_survives_saving(name, tmp_path):
    row, time, space = ROWS[name]
    vae = small_model(row, norm="frame", upsample="linear")
    video = random_video(2 * time + 1, 2 * space, 3 * space)
    posterior = vae.encode(video)
    assert posterior.mean.shape == (1, 3, 2, 3, 4)
    reconstruction = vae.decode(posterior.mean)
    assert reconstruction.shape == video.shape
    streaming = Streaming(time)
    streamed = encode(vae, video, tiling=streaming).mean
    np.testing.assert_allclose(streamed, posterior.mean, atol=2e-5)
    streamed = decode(vae, streamed, tiling=streaming)
    np.testing.assert_allclose(streamed, reconstruction, atol=2e-5)
    vae.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["structure"]["ends"] == "3d"
    loaded = odvae_jax.from_pretrained(tmp_path / "model")
    assert loaded.config == vae.config and loaded.config.parts == row
    np.testing.assert_array_equal(loaded.reconstruct(video), vae.reconstruct(video))


def test_a_decoder_can_have_a_width_of_its_own():
    vae = small_model(SIXTEEN, norm="frame", upsample="linear")
    shapes = {name: value.shape for name, value in named_parameters(vae).items()}
    assert shapes["encoder.down.0.block.0.conv1.kernel"][-1] == 8
    assert shapes["decoder.up.0.block.0.conv1.kernel"][-1] == 12
    assert shapes["decoder.conv_in.kernel"][-1] == 24


@pytest.mark.usefixtures("unchecked_types")
def test_a_row_of_the_table_is_known_by_its_name():
    config = ODVAEConfig(structure=dataclasses.replace(V4), **SMALL)
    assert config.structure == "v4" and config.to_dict()["structure"] == "v4"
    assert ODVAEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    numpy = dataclasses.replace(V4, encoder_blocks=np.int64(2), time_strides=(1, np.int8(2), 2))
    assert json.loads(json.dumps(ODVAEConfig(structure=numpy).to_dict()))["structure"] == "v4"
    own = ODVAEConfig(structure=SIXTEEN, **SMALL)
    assert ODVAEConfig.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    assert hash(own) == hash(ODVAEConfig.from_dict(own.to_dict()))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "change, words",
    [
        ({"time_strides": (1, 2, 3)}, r"structure\.time_strides=\(1, 2, 3\).*\[1, 2\]"),
        ({"encoder_levels": ["2d"] * 4}, r"structure\.encoder_levels.*a tuple"),
        ({"space_strides": (2, 2)}, r"structure\.space_strides.*3 values"),
        ({"encoder_levels": ("2d",) * 3}, r"structure\.encoder_levels.*4 values"),
        ({"upsample": ("2d", "mixed", "3d")}, r"structure\.upsample.*'2d', '3d'"),
        ({"downsample": ("2d", "2d", "3d")}, r"structure\.downsample.*time stride is 2"),
        ({"width_multipliers": (1, 2, 0, 4)}, r"structure\.width_multipliers.*positive"),
        ({"decoder_blocks": 0}, r"structure\.decoder_blocks=0.*positive"),
        ({"decoder_width": -8}, r"structure\.decoder_width=-8"),
        ({"quant": 0}, r"structure\.quant=0 cannot be; expected True or False"),
        ({"time_strides": (1.0, 2.0, 2.0)}, r"structure\.time_strides.*integers"),
        ({"space_strides": (True, 2, 2)}, r"structure\.space_strides.*integers"),
        ({"middle": "4d"}, r"structure\.middle='4d'"),
        ({"ends": "mixed"}, r"structure\.ends='mixed'"),
    ],
)
def test_impossible_rows_are_refused_by_field(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(V4, **change)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("structure", [["v4"], {"ends": "3d"}, None, 4])
def test_what_is_no_row_is_refused(structure):
    with pytest.raises(ValueError, match="may be one of .*a Structure of your own"):
        ODVAEConfig(structure=structure)


@pytest.mark.usefixtures("unchecked_types")
def test_impossible_rows_in_a_file_are_refused_by_field():
    fields = ODVAEConfig(structure=SIXTEEN, **SMALL).to_dict()
    row = fields["structure"]
    for changed, words in (
        ({**row, "time_stride": [1]}, "'time_stride'; did you mean 'time_strides'"),
        ({n: v for n, v in row.items() if n != "ends"}, "lacks the field 'ends'"),
    ):
        with pytest.raises(ValueError, match=words):
            ODVAEConfig.from_dict(fields | {"structure": changed})
    with pytest.raises(
        ValueError, match="structure.decoder_width=10 is not a multiple of groups=4"
    ):
        ODVAEConfig(structure=dataclasses.replace(SIXTEEN, decoder_width=10), **SMALL)


def test_what_cannot_hold_a_row_refuses_it_by_field(tmp_path):
    image, own = small_model("image"), ODVAEConfig(structure=SIXTEEN, **SMALL)
    with pytest.raises(ValueError, match="structure.width_multipliers is.*needs the same levels"):
        inflate(image, own)
    blocks = dataclasses.replace(V4, encoder_blocks=3)
    with pytest.raises(ValueError, match="structure.encoder_blocks is 2 in the 2D model and 3"):
        inflate(image, ODVAEConfig(structure=blocks, **SMALL))
    bare = dataclasses.replace(V4, quant=False)
    with pytest.raises(ValueError, match="structure.quant is True in the 2D model and False"):
        inflate(image, ODVAEConfig(structure=bare, **SMALL))
    with pytest.raises(ValueError, match="structure.width_multipliers is"):
        open_sora_plan.save(ODVAE(own, rngs=None), tmp_path / "released")
    with pytest.raises(ValueError, match=r"structure\.encoder_levels is.*AutoencoderKL has"):
        sd_vae.save(ODVAE(own, rngs=None), tmp_path / "diffusers")


def test_a_2d_model_inflates_to_rows_with_its_levels():
    image, frame = small_model("image"), random_video(1, 16, 16)
    vae = inflate(image, ODVAEConfig(structure=EIGHT, **SMALL))
    np.testing.assert_allclose(vae.encode(frame).mean, image.encode(frame).mean, atol=1e-4)


@pytest.mark.full
def test_a_2d_model_without_quant_convolutions_inflates_to_one_without():
    row = dataclasses.replace(STRUCTURES["image"], quant=False)
    image, frame = small_model(row), random_video(1, 16, 16)
    video = ODVAEConfig(structure=dataclasses.replace(V4, quant=False), **SMALL)
    vae = inflate(image, video)
    assert ODVAEConfig.from_dict(video.to_dict()) == video
    np.testing.assert_allclose(vae.reconstruct(frame), image.reconstruct(frame), atol=1e-4)


OTHER_FOURS = ("self.tile // 4", "arguments.tile // (4", "rotation / 90) % 4")
OTHER_FOURS += ("self.width % 4", "and width % 8 == 0", "data/shapes.py")
"""Quarters of a tile and quarter turns; a denoiser's widths; drawings, which know no model."""


def test_only_config_derives_the_factors_of_compression():
    package = pathlib.Path(odvae_jax.__file__).parent
    factor = re.compile(r"(//|%) ?\(?[48]\b|\* ?8\b|\b[48] ?\*[^*]|_COMPRESSION\b")
    found = [
        f"{path.relative_to(package)}:{number}: {line.strip()}"
        for path in package.rglob("*.py")
        if path != package / "config.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if factor.search(line.split("#")[0])
    ]
    found = [line for line in found if not any(four in line for four in OTHER_FOURS)]
    assert not found, found
