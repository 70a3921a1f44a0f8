"""The share of a training step that encoding takes, if a diffusion model is trained on clips.

python benchmarks/inside.py --clips=1x81x256x256 --layers=28 --hidden=1152 --heads=16

A transformer stands for the diffusion model: flow matching on patches of 1×2×2 latents, blocks of
attention over all of them and an MLP, Adam, the computation in --dtype, parameters and Adam's state
in float32. Each line is the median of a step and its spread (10th to 90th percentile): from
uint8 clips, which the frozen encoder turns into sampled, normalised latents inside the step; from
latents that lie on the device; and of encoding alone. Both steps are one compiled program each. The
last line is the share: the difference of the two steps, divided by the step from clips.
"""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from common import DTYPE, VARIANT, WIDTH, device, model

from odvae_jax import encode_uint8
from odvae_jax.compilation import use_compilation_cache
from odvae_jax.evaluation.speed import time_calls

_CLIPS = flags.DEFINE_string("clips", "1x81x256x256", "clips × frames × rows × columns")
_LAYERS = flags.DEFINE_integer("layers", 28, "blocks of the transformer")
_HIDDEN = flags.DEFINE_integer("hidden", 1152, "its width")
_HEADS = flags.DEFINE_integer("heads", 16, "its heads of attention")
_REPEATS = flags.DEFINE_integer("repeats", 10, "timings, each of four steps in flight")
_PATCH = 2
_OPTIMIZER = optax.adam(1e-4)


def transformer(channels, tokens):
    """The parameters of the model that stands for a diffusion model, in float32."""
    width, layers = _HIDDEN.value, _LAYERS.value
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def matrix(*shape):
        return jax.random.normal(next(keys), shape) * shape[-2] ** -0.5

    patch = channels * _PATCH**2
    return {
        "places": matrix(tokens, width),
        "inward": matrix(patch, width),
        "outward": matrix(width, patch),
        "blocks": {
            "qkv": matrix(layers, width, 3 * width),
            "joined": matrix(layers, width, width),
            "up": matrix(layers, width, 4 * width),
            "down": matrix(layers, 4 * width, width),
        },
    }


def predicted(parameters, z, t):
    """What the transformer makes of noisy latents [B, t, h, w, C]."""
    b, frames, rows, columns, c = z.shape
    p, dtype = _PATCH, DTYPE.value
    parameters = jax.tree.map(lambda x: x.astype(dtype), parameters)
    patches = z.reshape(b, frames, rows // p, p, columns // p, p, c).transpose(0, 1, 2, 4, 3, 5, 6)
    split = patches.shape
    patches = patches.reshape(b, -1, p * p * c).astype(dtype)
    x = patches @ parameters["inward"] + parameters["places"] + t.reshape(b, 1, 1).astype(dtype)

    def block(x, of):
        y = _normed(x) @ of["qkv"]
        q, k, v = jnp.moveaxis(y.reshape(b, -1, 3, _HEADS.value, x.shape[-1] // _HEADS.value), 2, 0)
        implementation = "cudnn" if jax.default_backend() == "gpu" else None
        y = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
        x += y.reshape(x.shape) @ of["joined"]
        return x + jax.nn.gelu(_normed(x) @ of["up"]) @ of["down"], None

    x, _ = jax.lax.scan(jax.checkpoint(block), x, parameters["blocks"])
    y = (_normed(x) @ parameters["outward"]).astype(jnp.float32)
    return y.reshape(split).transpose(0, 1, 2, 4, 3, 5, 6).reshape(z.shape)


def _normed(x):
    wide = x.astype(jnp.float32)
    wide -= wide.mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)).astype(x.dtype)


def loss_of(parameters, z, key):
    """Flow matching: the velocity from noise to latents."""
    for_time, for_noise = jax.random.split(key)
    t = jax.random.uniform(for_time, (len(z), 1, 1, 1, 1))
    noise = jax.random.normal(for_noise, z.shape)
    return jnp.mean((predicted(parameters, t * z + (1 - t) * noise, t) - (z - noise)) ** 2)


def to_latents(vae, clips, key):
    """uint8 clips to what the transformer is given."""
    return jax.lax.stop_gradient(vae.normalise(encode_uint8(vae, clips).sample(key)))


def from_latents(parameters, state, z, key):
    """A step; its results are not fed back, so that calls can be timed alike."""
    loss, gradient = jax.value_and_grad(loss_of)(parameters, z, key)
    updates, state = _OPTIMIZER.update(gradient, state)
    return optax.apply_updates(parameters, updates), state, loss


def from_clips(parameters, state, vae, clips, key):
    """The same from clips."""
    for_latents, for_loss = jax.random.split(key)
    return from_latents(parameters, state, to_latents(vae, clips, for_latents), for_loss)


def milliseconds(name, function, *arguments):
    """The median time of a call, after a line about it was printed."""
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time_calls(compiled, *arguments, repeats=_REPEATS.value)
    low, high = np.percentile(seconds, [10, 90])
    median = statistics.median(seconds)
    gigabytes = compiled.memory_analysis().temp_size_in_bytes / 2**30
    spread = f"{low * 1e3:.1f}-{high * 1e3:.1f}"
    print(f"{name:24}{median * 1e3:10.1f}{spread:>18}{gigabytes:8.2f}", flush=True)
    return median * 1e3


def main(_):
    use_compilation_cache()
    vae, key = model(), jax.random.key(1)
    shape = (*map(int, _CLIPS.value.split("x")), 3)
    clips = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    latents = vae.config.latent_shape(shape)
    tokens = latents[1] * (latents[2] // _PATCH) * (latents[3] // _PATCH)
    parameters = transformer(latents[-1], tokens)
    state = _OPTIMIZER.init(parameters)
    count = sum(x.size for x in jax.tree.leaves(parameters))
    print(
        f"{device()}; encoder of variant {VARIANT.value}, width {WIDTH.value}; clips "
        f"{_CLIPS.value}; transformer of {count / 1e6:.0f}M parameters, {tokens} tokens a clip"
    )
    print(f"{'':24}{'ms':>10}{'spread':>18}{'GiB':>8}")
    z = jax.random.normal(key, latents)
    whole = milliseconds("step from clips", from_clips, parameters, state, vae, clips, key)
    rest = milliseconds("step from latents", from_latents, parameters, state, z, key)
    milliseconds("encoding alone", to_latents, vae, clips, key)
    print(f"share of the step that encoding takes: {1 - rest / whole:.1%}")


if __name__ == "__main__":
    app.run(main)
