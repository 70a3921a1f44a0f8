"""What every source must agree on with itself."""

import numpy as np

from odvae_jax.data.sources import Sampling
from odvae_jax.data.video import centre_crop


def agrees(source, index):
    """Compares what a source says of a video, and its blocks, with the frames that it reads."""
    header = source.header(index)
    whole = source.read(index, Sampling(header.frames), 1, lambda n: 0)
    assert whole.shape == (header.frames, header.height, header.width, 3)
    assert source.rate(index) == header.fps
    assert source.places(index, Sampling(1), 1) == header.frames
    for short_side, threads in ((None, 2), (header.height // 2, 1)):
        scaled = source.read(index, Sampling(header.frames, short_side), 1, lambda n: 0)
        blocks = source.blocks(index, 4, short_side=short_side, threads=threads)
        read = list(blocks)
        assert len(read[0]) == min(5, header.frames) and {len(b) for b in read[1:-1]} <= {4}
        np.testing.assert_array_equal(np.concatenate(read), scaled)
        assert (blocks.fps, blocks.frames, blocks.problem) == (header.fps, header.frames, "")
        assert (blocks.height, blocks.width) == scaled.shape[1:3]
    small = np.concatenate(list(source.blocks(index, 4, size=16)))
    np.testing.assert_array_equal(small, centre_crop(whole, 16, 16))
    half = source.read(index, Sampling(1, header.height // 2), 1, lambda n: 0)
    halves = header.height // 2, header.width // 2
    for cover in ((halves[0], halves[1] // 2), (halves[0] // 2, halves[1])):
        covered = source.read(index, Sampling(1, cover=cover), 1, lambda n: 0)
        np.testing.assert_array_equal(covered, centre_crop(half, *cover))
    if header.frames == 1:
        return
    for sampling, stride in ((Sampling(3), 2), (Sampling(2, fps=header.fps / 3), 1)):
        places = source.places(index, sampling, stride)
        for place in range(places):
            clip = source.read(index, sampling, stride, lambda n, last=places - place: n - last)
            expected = whole[place :: stride if sampling.fps is None else 3][: sampling.frames]
            np.testing.assert_array_equal(clip, expected)
