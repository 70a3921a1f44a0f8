"""Against the released PyTorch implementation, in one run.

python benchmarks/peers.py --released=OPEN_SORA_PLAN   # a checkout of version 1.2 (July 2024)
python benchmarks/peers.py --released=OPEN_SORA_PLAN --variant=1 --work=encode:1x81x256x256

Times variant 1, 3 or 4 in the released implementation's classes (only 4's weights were released;
2's blocks they do not have), as it is and channels-last under `torch.compile`, and ours, with
random weights, linear upsampling and everything in bfloat16; each line of the table is measured
in a process of its own. cuDNN's algorithms are chosen by trying for both: XLA does so
unasked, PyTorch with `cudnn.benchmark`, which is not its default. In training ours has
remat="convolutions"; what PyTorch keeps is its own choice: all that autograd asks for, or under
`torch.compile` what its partitioner does. Memory is PyTorch's peak after the first calls, the whole
model included, and what our compiled program needs, which has the half of the model that it uses.
Beside ours stands what its operations would take at the rate of a large matrix product, measured
in the same run.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

from absl import app, flags
from common import DTYPE, VARIANT, WIDTH, config, device, function_and_input, model, work_and_shape
from side_by_side import Table, hand_over, measured, time_jax, time_torch

_RELEASED = flags.DEFINE_string("released", None, "the folder that holds `opensora`")
_WORK = flags.DEFINE_list(
    "work",
    [
        "encode:1x81x256x256",
        "decode:1x81x256x256",
        "train:2x25x256x256",
        "encode:1x33x512x512",
        "decode:1x33x512x512",
    ],
    "encode, decode or train (forward and backward of L1), a colon, clips, frames, height, width",
)
_REPEATS = flags.DEFINE_integer("repeats", 10, "timings, each of a few calls in flight")
_ONLY = flags.DEFINE_multi_enum(
    "only", ["compiled", "ours", "eager"], ["compiled", "ours", "eager"], "what to time"
)
_CHILD = flags.DEFINE_string("child", None, "used by the benchmark itself")


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """For what the released model's files import for other purposes than the model."""

    _NAMES = ("decord", "diffusers", "pytorch_lightning", "pytorchvideo", "torchvision")
    _NAMES += tuple(f"opensora.models.causalvideovae.{name}" for name in ("utils", "eval"))

    def find_spec(self, name, path=None, target=None):
        if not any(f"{name}.".startswith(f"{stood_in}.") for stood_in in self._NAMES):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        import torch

        known = {"ModelMixin": torch.nn.Module, "register_to_config": lambda init: init}

        def attribute(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return known.get(name, type(name, (), {}))

        module = types.ModuleType(spec.name)
        module.__getattr__ = attribute
        return module

    def exec_module(self, module):
        pass


def released_model():
    import torch

    from odvae_jax.checkpoints.open_sora_plan import released_config

    fields = released_config(config())
    del fields["_class_name"]
    finder = _StandIns()
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, _RELEASED.value)
    # Only the autoencoder: the packages above it import the diffusion models too.
    for name in ("opensora", "opensora.models", "opensora.models.causalvideovae"):
        package = types.ModuleType(name)
        package.__path__ = [f"{_RELEASED.value}/{name.replace('.', '/')}"]
        sys.modules[name] = package
    from opensora.models.causalvideovae.model.causal_vae.modeling_causalvae import CausalVAEModel

    sys.meta_path.remove(finder)
    for name, module in list(sys.modules.items()):
        if isinstance(module, types.ModuleType) and vars(module).get("__loader__") is finder:
            del sys.modules[name]

    torch.manual_seed(0)
    model = CausalVAEModel(**fields)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device, getattr(torch, DTYPE.value)), device


def time_released(work, shape, compiled):
    """What is measured of the release."""
    import torch

    from odvae_jax.evaluation.speed import IN_FLIGHT

    torch.backends.cudnn.benchmark = True
    model, device = released_model()
    last = {4: torch.channels_last, 5: torch.channels_last_3d}  # channels, by the number of axes
    if compiled:
        for p in model.parameters():
            p.data = p.data.to(memory_format=last.get(p.dim(), torch.contiguous_format))
    b, t, h, w = shape
    sizes = (b, 4, (t - 1) // 4 + 1, h // 8, w // 8) if work == "decode" else (b, 3, t, h, w)
    x = torch.rand(sizes, device=device, dtype=getattr(torch, DTYPE.value)) * 2 - 1
    if compiled:
        x = x.to(memory_format=last[5])

    def train(x):
        latents = model.encode(x).sample().to(x.dtype)  # its noise is float32
        loss = (model.decode(latents) - x).abs().mean()
        loss.backward()
        model.zero_grad()
        return loss

    run = {"encode": lambda x: model.encode(x).mean, "decode": model.decode, "train": train}[work]
    if compiled and work == "train":
        model.encoder, model.decoder = map(torch.compile, (model.encoder, model.decoder))
    elif compiled:
        run = torch.compile(run)

    with torch.set_grad_enabled(work == "train"):
        return time_torch(
            lambda: run(x), device, calls=IN_FLIGHT, repeats=_REPEATS.value, warm=0, trials=3
        )


def time_ours(work, shape):
    """What is measured of ours, and its operations."""
    from odvae_jax.flops import count_flops

    vae = model(remat="convolutions" if work == "train" else "none")
    function, x = function_and_input(vae, work, shape)
    result = time_jax(function, vae, x, repeats=_REPEATS.value)
    return {**result, "flops": count_flops(function, vae, x)}


def child(name):
    kind, text = name.split(":", 1)
    work, shape = work_and_shape(text)
    ours = kind == "ours"
    hand_over(time_ours(work, shape) if ours else time_released(work, shape, kind == "compiled"))


def products():
    """Name of the device, and operations per second of a large matrix product."""
    from odvae_jax.evaluation.speed import matrix_rate

    hand_over([device(), matrix_rate(DTYPE.value, 5)])


def main(_):
    if _CHILD.value:
        return products() if _CHILD.value == "products" else child(_CHILD.value)
    if not _RELEASED.value and set(_ONLY.value) != {"ours"}:
        raise SystemExit("peers.py: --released=FOLDER is needed, or --only=ours.")
    name, rate = measured("products")
    rate_text = f"matrix product {rate / 1e12:.1f} TFLOP/s"
    print(f"{name}, variant {VARIANT.value}, width {WIDTH.value}; {rate_text}")
    table = Table(rate)
    for work in _WORK.value:
        table.measure(work, _ONLY.value)
    return None


if __name__ == "__main__":
    app.run(main)
