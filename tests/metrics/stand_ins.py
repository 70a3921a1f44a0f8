"""Networks that stand for I3D and C3D where their trained weights do not matter."""

import numpy as np

from odvae_jax.metrics.clip_sets import Networks


class Brightness:
    """Features that are simple to compute again: mean and deviation of each colour."""

    def __init__(self, digest="brightness", scale=1.0):
        self.digest, self.scale, self.calls = digest, scale, []

    def features(self, video):
        self.calls.append(tuple(video.shape))
        video = np.asarray(video, np.float64)
        parts = [video.mean((1, 2, 3)), video.std((1, 2, 3))]
        return (self.scale * np.concatenate(parts, axis=1)).astype(np.float32)


class Corner:
    """Classes by the last digit of the first pixel; of frames that are all white, none."""

    digest = "corner"

    def probabilities(self, video):
        video = np.asarray(video)
        p = np.eye(10, dtype=np.float32)[video[:, 0, 0, 0, 0] % 10]
        p[video.min((1, 2, 3, 4)) == 255] = np.nan
        return p


def networks(**missing):
    return Networks(Brightness(), Corner(), missing)
