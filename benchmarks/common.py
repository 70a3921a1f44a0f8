"""What the benchmarks of speed share: the model that they time, and what it is made to do."""

from absl import flags

VARIANT = flags.DEFINE_integer("variant", 4, "1 to 4")
WIDTH = flags.DEFINE_integer("width", 128, "base width")
UPSAMPLE = flags.DEFINE_enum(
    "upsample", "linear", ["linear", "nearest"], "of the decoder, in space"
)
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "of the computation and the parameters")


def config(**fields):
    """What the flags say, but for `fields`."""
    from odvae_jax import ODVAEConfig

    said = {
        "width": WIDTH.value, "groups": min(WIDTH.value, 32), "upsample": UPSAMPLE.value,
        "dtype": DTYPE.value, "param_dtype": DTYPE.value,
    }  # fmt: skip
    return ODVAEConfig.variant(VARIANT.value, **{**said, **fields})


def model(**fields):
    """The one that the flags name, with random weights."""
    from odvae_jax import ODVAE

    return ODVAE(config(**fields), rngs=0)


def work_and_shape(text):
    """Of "encode:1x81x256x256": what is done, and the videos' shape without channels."""
    work, shape = text.split(":")
    return work, tuple(map(int, shape.split("x")))


def function_and_input(vae, work, clips):
    """What is timed, of the model and an input, and a random input for it.

    `work` is encode, decode or train (forward and backward of L1); `clips` the videos' shape
    without channels.
    """
    import jax
    import jax.numpy as jnp

    from odvae_jax import decode, encode

    def loss(vae, x):
        latents = encode(vae, x).sample(jax.random.key(1))
        return jnp.mean(jnp.abs(decode(vae, latents) - x))

    shape = (*clips, 3)
    if work == "decode":
        shape = vae.config.latent_shape(shape)
    x = jax.random.uniform(jax.random.key(0), shape, jnp.float32, -1, 1)
    run = {"encode": lambda v, x: encode(v, x).mean, "decode": decode, "train": jax.grad(loss)}
    return run[work], x


def device():
    """What the numbers are of."""
    import jax

    return f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {DTYPE.value}"
