"""Memory that does not suffice: what is said, when, and whether what is advised helps."""

import copy
import re

import jax
import pytest

from odvae_jax import ODVAEConfig, compilation
from odvae_jax.cli import main
from odvae_jax.compilation import DeviceMemoryError
from odvae_jax.sharding import make_mesh
from odvae_jax.training import loop
from odvae_jax.training.config import check, flat
from odvae_jax.training.tasks.autoencoder import Autoencoder
from tests.training.counting import get_config
from tests.training.test_loop import WITH_ALL, lines, tiny, videos  # noqa: F401

NUMBER = 4  # bytes


def train(config, workdir, devices=1, **options):
    return loop.train(config, workdir, devices=jax.devices()[:devices], **options)


def counting(**fields):
    config = get_config()
    config.update(size=100_000, **fields)
    return config


def needed_by(config, workdir):
    """The bytes that a step needs: the least with which it is begun."""
    with pytest.raises(DeviceMemoryError) as error:
        train(config, workdir, memory=1)
    return float(re.search(r"a step needs (\S+) GiB", str(error.value))[1]) * 2**30


def test_a_step_is_begun_only_with_the_memory_that_its_program_needs(tmp_path):
    needs = needed_by(counting(), tmp_path / "run")
    assert needs == pytest.approx(2 * 100_000 * NUMBER, rel=0.01)  # before and after the step
    with pytest.raises(DeviceMemoryError) as error:
        train(counting(), tmp_path / "run", memory=int(0.8 * needs))
    said = str(error.value)
    assert "\n" not in said and "a step needs 0.000745 GiB on a device, which has 0.000596" in said
    assert not lines(tmp_path / "run") and not list((tmp_path / "run" / "checkpoints").iterdir())
    advised = int(re.search(r"--config.size=(\d+)", said)[1])
    assert 70_000 < advised <= 80_000
    assert int(train(counting(), tmp_path / "run", memory=int(1.01 * needs)).step) == 6
    with pytest.raises(ValueError, match="memory=0"):
        train(counting(), tmp_path / "run", memory=0)


def test_on_several_gpus_the_advice_names_what_xla_keeps_there(tmp_path, monkeypatch):
    flag = "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=false"
    for several in (False, True):
        monkeypatch.setattr(loop, "_are_several_gpus", lambda mesh, several=several: several)
        with pytest.raises(DeviceMemoryError) as error:
            train(counting(), tmp_path / "run", memory=1)
        assert (flag in str(error.value)) is several and "\n" not in str(error.value)


def test_devices_that_are_no_gpus_are_not_taken_for_them():
    assert not loop._are_several_gpus(make_mesh(2, devices=jax.devices()[:2]))


@pytest.mark.parametrize("others, fits", [(0, True), (200_000, False)])
def test_what_other_arrays_take_on_a_device_is_not_there(others, fits, tmp_path, monkeypatch):
    """The state itself lies there already, and counts once."""
    stats = 900_000, 100_000 * NUMBER + others
    monkeypatch.setattr(compilation, "memory_of", lambda device: stats)
    if fits:
        assert int(train(counting(), tmp_path / "run").step) == 6
    else:
        with pytest.raises(DeviceMemoryError, match="which has 0.000652 GiB for it"):
            train(counting(), tmp_path / "run")


@pytest.mark.usefixtures("own_log")
def test_memory_that_runs_out_later_is_answered_in_one_line(tmp_path, capsys):
    command = ["train", "--config=tests/training/counting.py", f"--workdir={tmp_path / 'run'}"]
    assert main([*command, "--config.task=tests.training.counting:Greedy"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("odvae train: the memory of a device does not suffice (RESOURCE_EXH")
    assert "what needs less is --config.size=2500" in said and "Traceback" not in said
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"):  # as it was
        raise_in_a_step("INTERNAL: another", tmp_path)


def raise_in_a_step(message, tmp_path):
    class Failing(loop._Steps):
        def __call__(self, *_):
            raise jax.errors.JaxRuntimeError(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_Steps", Failing)
        train(counting(), tmp_path / "other")


def options(error):
    return dict(re.findall(r"--config\.([\w.]+)=(\w+)", str(error.value)))


@pytest.mark.parametrize("share", [0.9, 0.5, 0.01])
@pytest.mark.parametrize(
    "fields",
    [
        {"data.frames": 17, "data.size": 64, "data.short_side": 64, "accumulate": 2},
        {"data.frames": 1, "batch_size": 2, "mesh.data": 1, "mesh.height": 2, "data.size": 256},
        {"data.frames": 9, "data.image_rate": 0.5, "data.image_path": "sample-clips"},
        {"data.frames": 1, "batch_size": 2, "data.size": 8, "model.remat": "blocks"},
    ],
)
def test_each_change_that_is_advised_makes_a_config_that_can_be_run(fields, share, videos):  # noqa: F811
    config = tiny(videos, validate_every=0, **{"discriminator.weight": 0.0})
    config.model = ODVAEConfig.variant(4, width=8, groups=4, remat="convolutions").to_dict()
    config.data.short_side = 256
    config.update_from_flattened_dict(fields)
    mesh = check(config, jax.devices()[:2])
    advised = Autoencoder(config, mesh).less_memory(share)
    assert ("model.remat" in advised) == (config.model.remat != "blocks")
    assert advised or fields["data.size"] == 8
    for name, value in advised.items():
        changed = copy.deepcopy(config)
        changed.update_from_flattened_dict({name: value})
        assert flat(changed.to_dict()) != flat(config.to_dict())
        check(changed, jax.devices()[:2])


@pytest.mark.full
def test_what_is_advised_is_what_the_run_can_be_begun_or_continued_with(videos, tmp_path):  # noqa: F811
    config = tiny(videos, validate_every=0, **WITH_ALL)
    with pytest.raises(DeviceMemoryError) as error:
        train(config, tmp_path / "run", devices=2, memory=1_000_000)
    advised = options(error)
    assert advised.keys() == {"accumulate", "model.remat", "batch_size"}  # LPIPS needs 16 rows
    assert advised["model.remat"] == "blocks"
    assert int(advised["accumulate"]) > 1 and int(advised["batch_size"]) < 8
    config.steps = config.checkpoint_every = config.scale_clips = 1
    train(config, tmp_path / "run", devices=2)
    config.steps = 2
    with pytest.raises(DeviceMemoryError) as error:
        train(config, tmp_path / "run", devices=2, memory=1_000_000)
    assert options(error).keys() == {"accumulate", "model.remat"}
    assert "--config.continue_with_changes" in str(error.value)


@pytest.mark.full
def test_each_change_that_is_advised_needs_less(videos, tmp_path):  # noqa: F811
    fields = {"discriminator.weight": 0.0, "data.frames": 3, "validate_every": 0}
    config = tiny(videos, **fields)
    needs = needed_by(config, tmp_path / "run")
    with pytest.raises(DeviceMemoryError) as error:
        train(config, tmp_path / "run", memory=int(0.9 * needs))
    advised = options(error)
    assert advised["accumulate"] == "2" and advised["data.frames"] == "2"
    for name, value in advised.items():
        changed = copy.deepcopy(config)
        changed.update_from_flattened_dict({name: value if name == "model.remat" else int(value)})
        less = needed_by(changed, tmp_path / name)
        # For CPUs XLA takes out again what a gradient would compute twice.
        assert less <= needs if name == "model.remat" else less < needs, name
