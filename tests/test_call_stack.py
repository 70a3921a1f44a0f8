"""The way of a clip through the package can be followed."""

import itertools
import pathlib
import traceback

import jax

import odvae_jax
from tests.conftest import random_video, small_model

PACKAGE = pathlib.Path(odvae_jax.__file__).parent


def test_few_functions_in_few_files_lie_between_encode_and_its_first_convolution(monkeypatch):
    stacks, convolve = [], jax.lax.conv_general_dilated

    def recorded(*arguments, **options):
        stacks.append(traceback.extract_stack())
        return convolve(*arguments, **options)

    monkeypatch.setattr(jax.lax, "conv_general_dilated", recorded)
    odvae_jax.encode(small_model("v1", seed=5), random_video(1, 8, 8))  # not yet compiled
    frames = [
        (str(pathlib.Path(frame.filename).relative_to(PACKAGE)), frame.name)
        for frame in stacks[0]
        if PACKAGE in pathlib.Path(frame.filename).parents
    ]
    print("\n".join(f"{file}: {name}" for file, name in frames))
    files = [file for file, _ in itertools.groupby(file for file, _ in frames)]
    assert len(frames) <= 10
    assert len(files) == len(set(files)) <= 6, files
