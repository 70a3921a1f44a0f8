"""Fine-tuning at the first try: the shipped config, from any model, on one clip."""

import re
import shutil

import jax
import numpy as np
import pytest

from odvae_jax import ODVAE, ODVAEConfig
from odvae_jax.cli import main
from odvae_jax.cli.configs import read_config
from odvae_jax.data.sources import Sampling, open_source
from odvae_jax.data.video import centre_crop
from odvae_jax.training.loop import train
from odvae_jax.training.raw_weights import load_raw
from odvae_jax.transcoding import encoder_digest
from tests.conftest import write_clip
from tests.two_levels import TWO_LEVELS

HELD_OUT = 6
MEAN, STD = (0.5, 0.0, -1.0, 2.0), (1.0, 2.0, 3.0, 4.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, frames=24, height=16, width=32)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model whose latents were measured, in bfloat16 as shipped ones are."""
    config = ODVAEConfig(
        structure=TWO_LEVELS, width=8, groups=4, norm="frame", param_dtype="bfloat16",
        latents_mean=MEAN, latents_std=STD,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("start")
    ODVAE(config, rngs=0).save_pretrained(folder / "model")
    return folder / "model"


def tuned(which, start, clip, workdir, **fields):
    """Does what the command does, on one device, and returns the state."""
    fields = {
        "init.from_pretrained": start, "data.path": clip, "data.holdout": HELD_OUT, "steps": 40,
        "data.frames": 1, "data.size": 16, "data.short_side": 16, "data.short_side_max": 0,
        "batch_size": 8, "loss.perceptual_weight": 0.0, "optimizer.learning_rate": 3e-3,
        "model.dtype": "float32", "scale_clips": 4, "log_every": 20, "validate_every": 0, **fields,
    }  # fmt: skip
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    config, rest = read_config([f"--config=finetune:{which}", *words], pytest.fail)
    assert not rest or rest == [f"--config=finetune:{which}"]
    return train(config, workdir, devices=jax.devices()[:1])


def held_out_psnr(folder, clip):
    """On the clip's last frames."""
    frames = open_source(clip).read(0, Sampling(HELD_OUT, 16), 1, lambda n: n - 1)
    video = centre_crop(frames, 16, 16).astype(np.float32)[None] / 127.5 - 1
    vae = ODVAE.from_pretrained(folder, param_dtype="float32", dtype="float32")
    error = np.clip(np.asarray(vae.decode(vae.encode(video).mode())), -1, 1) - video
    return 10 * np.log10(4 / (error**2).mean())


@pytest.fixture(scope="module")
def decoder_run(start, clip, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("decoder") / "run"
    moved = shutil.copytree(start, workdir.parent / "start")
    tuned("decoder", moved, clip, workdir)
    return workdir


def test_forty_steps_on_a_clip_raise_the_exported_average_on_frames_that_are_not_tuned_on(
    decoder_run, start, clip
):
    before, after = (held_out_psnr(folder, clip) for folder in (start, decoder_run))
    load_raw(decoder_run).save_pretrained(decoder_run.parent / "raw")
    raw = held_out_psnr(decoder_run.parent / "raw", clip)
    assert after > before + 2
    assert after - before > 0.7 * (raw - before)


def test_latents_stay_valid_where_the_decoder_alone_is_tuned(decoder_run, start):
    before, after = ODVAE.from_pretrained(start), ODVAE.from_pretrained(decoder_run)
    assert encoder_digest(after) == encoder_digest(before)
    assert (after.config.latents_mean, after.config.latents_std) == (MEAN, STD)
    assert after.config.norm == "frame" and after.config.parts == TWO_LEVELS
    assert (after.decoder.conv_in.kernel[...] != before.decoder.conv_in.kernel[...]).any()


def test_a_tuned_model_goes_on_without_the_model_that_it_came_from(
    decoder_run, clip, tmp_path, capsys
):
    shutil.copytree(decoder_run, tmp_path / "run")
    nowhere = tmp_path / "moved"
    assert int(tuned("decoder", nowhere, clip, tmp_path / "run", steps=41).step) == 41
    shown, mean = re.search(r"loss (\S+) \((\S+) per value\)", capsys.readouterr().err).groups()
    assert float(shown) == pytest.approx(float(mean) * 16 * 16 * 3, rel=2e-3)  # four digits
    assert ODVAE.from_pretrained(tmp_path / "run").config.parts == TWO_LEVELS
    with pytest.raises(FileNotFoundError, match="moved"):
        tuned("decoder", nowhere, clip, tmp_path / "new")


@pytest.mark.full
def test_the_whole_model_is_tuned_and_its_latents_are_measured_anew(start, clip, tmp_path):
    tuned("all", start, clip, tmp_path / "run")
    before, after = ODVAE.from_pretrained(start), ODVAE.from_pretrained(tmp_path / "run")
    assert encoder_digest(after) != encoder_digest(before)
    assert held_out_psnr(tmp_path / "run", clip) > held_out_psnr(start, clip) + 2
    assert after.config.scale.measured and after.config.latents_mean != MEAN


@pytest.mark.usefixtures("own_log")
def test_what_is_missing_for_tuning_is_said(clip, tmp_path, capsys):
    command = ["train", "--config=finetune", f"--config.data.path={clip}", "--config.data.size=64"]
    assert main([*command, f"--workdir={tmp_path / 'run'}"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "config.init.from_pretrained" in said[0] and "small" in said[0]
    assert main([*command, "--config=finetune:encoder", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "there are :decoder and :all" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
