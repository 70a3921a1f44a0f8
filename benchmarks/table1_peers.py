"""Table 1's other autoencoders beside their PyTorch references, as far as those can be installed.

python benchmarks/table1_peers.py                      # on a GPU; needs torch and diffusers
python benchmarks/table1_peers.py --work=decode:1x81x256x256 --only=compiled --only=ours

Times SVD-VAE and diffusers' AutoencoderKLTemporalDecoder, as it is and under `torch.compile`, with
random weights and everything in bfloat16; each line is measured in a process of its own. diffusers
decodes clips whole, as ours does. cuDNN's algorithms are chosen by trying for both. Memory is
PyTorch's peak after the first calls, the whole model included, and what our compiled program needs.
The references of the others come in no package, and are marked "not run". All of ours are timed by
`odvae table1 --speed`.
"""

from absl import app, flags
from common import DTYPE, WIDTH, device, work_and_shape
from side_by_side import Table, hand_over, measured, time_jax, time_torch

_WORK = flags.DEFINE_list(
    "work",
    ["encode:1x81x256x256", "decode:1x81x256x256"],
    "encode or decode, a colon, clips, frames, height, width",
)
_REPEATS = flags.DEFINE_integer("repeats", 10, "timings, each of a few calls in flight")
_ONLY = flags.DEFINE_multi_enum(
    "only", ["compiled", "ours", "eager"], ["compiled", "ours", "eager"], "what to time"
)
_CHILD = flags.DEFINE_string("child", None, "used by the benchmark itself")
_NOT_RUN = {
    "VQGAN": "taming-transformers",
    "TATS": "TATS",
    "CV-VAE": "CV-VAE",
    "OPS-VAE": "Open-Sora 1.2",
}


def time_reference(work, shape, compiled):
    """What is measured of diffusers' class."""
    import torch
    from diffusers import AutoencoderKLTemporalDecoder

    from odvae_jax.evaluation.speed import IN_FLIGHT

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    on, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, DTYPE.value)
    width = WIDTH.value
    widths = tuple(width * m for m in (1, 2, 4, 4))
    down = ("DownEncoderBlock2D",) * 4
    model = AutoencoderKLTemporalDecoder(
        down_block_types=down, block_out_channels=widths, layers_per_block=2
    ).to(on, dtype)
    b, t, h, w = shape
    sizes = (b * t, 4, h // 8, w // 8) if work == "decode" else (b * t, 3, h, w)
    x = torch.rand(sizes, device=on, dtype=dtype) * 2 - 1
    if compiled:
        x = x.to(memory_format=torch.channels_last)

    def run(x):
        if work == "encode":
            return model.encode(x).latent_dist.mode()
        return model.decode(x, num_frames=t).sample

    run = torch.compile(run) if compiled else run

    with torch.no_grad():
        return time_torch(
            lambda: run(x), on, calls=IN_FLIGHT, repeats=_REPEATS.value, warm=0, trials=3
        )


def time_ours(work, shape):
    """What is measured of ours."""
    from odvae_jax.baselines import SVDVAE, SVDVAEConfig
    from odvae_jax.evaluation.speed import function_and_input

    config = SVDVAEConfig(width=WIDTH.value, dtype=DTYPE.value, param_dtype=DTYPE.value)
    model = SVDVAE(config, rngs=0)
    function, x = function_and_input(model, work, (*shape, 3))
    return time_jax(function, model, x, repeats=_REPEATS.value)


def child(name):
    """Prints what one process measures."""
    if name == "device":
        return hand_over(device())
    kind, text = name.split(":", 1)
    work, shape = work_and_shape(text)
    ours = kind == "ours"
    found = time_ours(work, shape) if ours else time_reference(work, shape, kind == "compiled")
    return hand_over(found)


def main(_):
    """Prints the table."""
    if _CHILD.value:
        return child(_CHILD.value)
    print(f"{measured('device')}, SVD-VAE, width {WIDTH.value}")
    table = Table()
    for work in _WORK.value:
        table.measure(work, _ONLY.value)
    for name, where in _NOT_RUN.items():
        print(f"{name}: not run; its reference ({where}) comes in no package")
    return None


if __name__ == "__main__":
    app.run(main)
