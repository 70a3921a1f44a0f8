"""Encoding and decoding while a clip is still coming in."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from odvae_jax.autoencoder import ODVAE
from odvae_jax.checks import check_array, check_latents, check_streams
from odvae_jax.layers.carry import START, State
from odvae_jax.pixels import frames_between
from odvae_jax.posterior import DiagonalGaussian
from odvae_jax.types import AnyArray


class LiveEncoder:
    """An encoder that takes frames as they come, and returns latents as soon as they are certain.

    The first frame gives a latent frame, and so do every four frames after it; other frames wait.
    Whatever is pushed, only two programs are compiled. It is for models with `norm="frame"`, and
    gives exactly the result of the whole clip.

    Args:
      vae: the model.

    Raises:
      ValueError: if the model's norms take their statistics over time.
    """

    def __init__(self, vae: ODVAE):
        check_streams(vae.config)
        self._vae = vae
        self._state: State = START
        self._waiting: Array | None = None

    def push(self, frames: Float[AnyArray, "b t h w 3"]) -> DiagonalGaussian | None:
        """Takes frames in [-1, 1] and returns the posterior of the latents that are now certain.

        It returns None if there are none yet.

        Raises:
          ValueError: if the shape of the frames cannot be encoded.
        """
        check_array("frames", frames)
        frames = jnp.asarray(frames)
        if self._waiting is not None:
            frames = jnp.concatenate([self._waiting, frames], axis=1)
        settled = []
        count = 1 if self._state == START else self._vae.config.time_compression
        while frames.shape[1] >= count:
            posterior, self._state = self._vae.encode_chunk(
                frames_between(frames, 0, count), self._state
            )
            settled.append(posterior)
            frames = frames_between(frames, count)
            count = self._vae.config.time_compression
        self._waiting = frames
        return _joined(settled)

    def flush(self) -> DiagonalGaussian | None:
        """Ends the clip and returns the posterior of the frames that still wait.

        The last of them is repeated to make four. It returns None if no frame waits. The next frame
        that is pushed begins another clip.
        """
        waiting, posterior = self._waiting, None
        if waiting is not None and waiting.shape[1]:
            missing = self._vae.config.time_compression - waiting.shape[1]
            posterior = self.push(jnp.concatenate([frames_between(waiting, -1)] * missing, axis=1))
        self._state, self._waiting = START, None
        return posterior


class LiveDecoder:
    """A decoder that takes latents as they come, and returns frames as soon as they are certain.

    A latent frame waits for the next one, or for `flush`, before it is decoded. With linear
    upsampling in time three of its frames wait for the next one too. It is for models with
    `norm="frame"`, and gives exactly the result of the whole clip.

    Args:
      vae: the model.

    Raises:
      ValueError: if the model's norms take their statistics over time.
    """

    def __init__(self, vae: ODVAE):
        check_streams(vae.config)
        self._vae = vae
        self._state: State = START
        self._next: Array | None = None

    def push(self, latents: Float[AnyArray, "b t h w c"]) -> Float[Array, "b u v x 3"] | None:
        """Takes unscaled latents and returns the frames that are now certain, about [-1, 1].

        It returns None if there are none yet.

        Raises:
          ValueError: if the latents cannot be decoded.
        """
        check_latents(latents, self._vae.config)
        latents = jnp.asarray(latents)
        frames = []
        for i in range(latents.shape[1]):
            if self._next is not None:
                frames.append(self._decode(final=False))
            self._next = frames_between(latents, i, i + 1)
        return jnp.concatenate(frames, axis=1) if frames else None

    def flush(self) -> Float[Array, "b u v x 3"] | None:
        """Ends the clip and returns the frames that still wait, about [-1, 1].

        It returns None if there are none. The next latents that are pushed begin another clip.
        """
        frames = None if self._next is None else self._decode(final=True)
        self._state, self._next = START, None
        return frames

    def _decode(self, final):
        # The latest latents wait for the next ones or for the end, which must be told with some.
        frames, self._state = self._vae.decode_chunk(self._next, self._state, final=final)
        return frames


def _joined(posteriors):
    if not posteriors:
        return None
    return DiagonalGaussian(
        jnp.concatenate([p.mean for p in posteriors], axis=1),
        jnp.concatenate([p.logvar for p in posteriors], axis=1),
    )
