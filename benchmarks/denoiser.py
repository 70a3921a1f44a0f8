"""Latte's training step and its sampling, against the released PyTorch implementation, in one run.

git --git-dir=LATTE_GIT archive HEAD models diffusion | tar -x -C LATTE   # of Vchitect/Latte
python benchmarks/denoiser.py --released=LATTE
python benchmarks/denoiser.py --released=LATTE --work=train:4x21 --remat=none,products
python benchmarks/denoiser.py --work=train:4x21 --profile   # where the time of ours goes
python benchmarks/denoiser.py --released=LATTE --size=S/2 --frames=4 --latent=8   # on a CPU

A training step is the loss on latents that are there (mean of squares and the bound), its gradient,
AdamW and the EMA. Sampling is one clip by DDPM with guidance. Each line of the table is measured in
a process of its own, with random weights, and is one of

- eager: the released code as it ships. It trains in float32 with TF32 products, its attention
  written out, AdamW and EMA one parameter after another; it samples in float16.
- compiled: the released code, repaired: bfloat16 by autocast, PyTorch's fused attention with the
  heads put back (the release forgets to), a fused AdamW, the EMA in one call, `torch.compile`. It
  samples with weights in bfloat16.
- ours, with each --remat: float32 weights, bfloat16 computation; it samples with weights in
  bfloat16.

Columns: median and 10th to 90th percentile of the milliseconds of a step, or of a whole clip;
memory: PyTorch's peak after the first steps, and for ours what the compiled program needs, then the
runtime's own peak; the seconds until the first steps were done; how many times as fast as compiled;
what its operations would take at the rate of a large matrix product, measured in the same run, and
their share. PyTorch's timm is not needed: the two small modules that the release takes from it are
written here.
"""

import importlib.util
import os
import re
import sys
import time
import types

if "--profile" in sys.argv:  # kernels of CUDA graphs have no names
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="

from absl import app, flags
from profiled import REST, bodies_of, device_seconds, print_kinds
from side_by_side import Table, hand_over, measured, time_torch, timed

_RELEASED = flags.DEFINE_string("released", None, "the folder with `models` and `diffusion`")
_SIZE = flags.DEFINE_string("size", "XL/2", "S, B, L or XL, a slash, and the side of a patch")
_WORK = flags.DEFINE_list(
    "work",
    ["train:1x21", "train:4x21", "train:1x81", "sample:1x21"],
    "train or sample, a colon, clips and latent frames",
)
_FRAMES = flags.DEFINE_integer("frames", None, "latent frames: one clip is trained on and sampled")
_LATENT = flags.DEFINE_integer("latent", 32, "rows and columns of the latents")
_CLASSES = flags.DEFINE_integer("classes", 101, "classes")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "of our computation")
_REMAT = flags.DEFINE_list("remat", ["none"], "what ours computes again: none, products, blocks")
_STEPS = flags.DEFINE_integer("steps", 250, "steps of sampling")
_GUIDANCE = flags.DEFINE_float("guidance", 7.0, "guidance of sampling")
_REPEATS = flags.DEFINE_integer("repeats", 12, "timings, each of a few steps, or of a clip")
_ONLY = flags.DEFINE_multi_enum(
    "only", ["compiled", "ours", "eager"], ["compiled", "ours", "eager"], "what to time"
)
_PROFILE = flags.DEFINE_bool("profile", False, "profile ours, by kinds of work, and time nothing")
_CHILD = flags.DEFINE_string("child", None, "used by the benchmark itself")
_IN_FLIGHT = 4  # steps that are started before waiting
_WARM = 4


def parsed(text):
    """Of "train:1x21": what is done, clips and latent frames."""
    work, shape = text.split(":")
    return work, *map(int, shape.split("x"))


def how_often(calls):
    """How many calls are timed at once, how often, and how many come before."""
    whole = calls > 1  # else a call is the sampling of a clip
    repeats = _REPEATS.value if whole else max(1, min(_REPEATS.value, 3))
    return {"calls": calls, "repeats": repeats, "warm": _WARM if whole else 1}


def our_program(work, clips, frames, remat):
    """A program of ours, what it is called with, and what its operations are counted of."""
    import jax
    import jax.numpy as jnp

    from odvae_jax.diffusion import Latte, LatteConfig
    from odvae_jax.parameters import named_parameters, with_parameters

    sampling = work == "sample"
    config = LatteConfig.of(
        _SIZE.value,
        frames=frames,
        rows=_LATENT.value,
        columns=_LATENT.value,
        classes=_CLASSES.value,
        dtype=_DTYPE.value,
        param_dtype=_DTYPE.value if sampling else "float32",
        remat=remat,
    )
    model = Latte(config, rngs=0)
    # Zeros would be multiplied at less power, and so faster.
    noise = jax.jit(lambda key, p: p + 0.02 * jax.random.normal(key, p.shape, p.dtype))
    keys = iter(jax.random.split(jax.random.key(0), 10_000))
    model = with_parameters(
        model, {n: noise(next(keys), p) for n, p in named_parameters(model).items()}
    )
    make = our_sampling if sampling else our_training
    return make(model, jnp.zeros(clips, jnp.int32))


def compiled_program(program, arguments, work):
    import jax

    donated = () if work == "sample" else (0,)
    return jax.jit(program, donate_argnums=donated).lower(*arguments).compile()


def time_ours(work, clips, frames, remat):
    """What is measured of ours."""
    import jax

    from odvae_jax.compilation import bytes_needed
    from odvae_jax.flops import count_flops

    sampling = work == "sample"
    program, arguments, flops_of = our_program(work, clips, frames, remat)
    start = time.perf_counter()
    compiled = compiled_program(program, arguments, work)
    compiling = time.perf_counter() - start
    flops = count_flops(*flops_of) * (_STEPS.value if sampling else 1)
    del flops_of
    state = list(arguments)
    del arguments

    def run():
        state[0], state[1] = compiled(*state)

    seconds, ready = timed(
        run, lambda: jax.block_until_ready(state[1]), **how_often(1 if sampling else _IN_FLIGHT)
    )
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    memory = bytes_needed(compiled)
    return {
        "seconds": seconds, "memory": memory, "peak": peak, "ready": compiling + ready,
        "flops": flops,
    }  # fmt: skip


# By the names of scopes, functions and instructions, in this order.
_KINDS = (
    ("attention in space", r"attention_in_space"),
    ("attention in time", r"attention_in_time"),
    ("matrix products, and what is fused with them", r"gemm|__cublas|\sdot\("),
    ("norms and modulations", r"/norm[/)]|\(norm[/)]"),
    ("GELU", r"[/(]gelu[/)]"),
    ("optimiser and average", r"optimiser"),
)


def kind_of_work(line, body):
    for name, pattern in _KINDS:
        if re.search(pattern, line) or re.search(pattern, body):
            return name
    return REST


def profile(work, clips, frames, remat):
    """Prints where the device's time goes in ours."""
    import jax

    program, arguments, _ = our_program(work, clips, frames, remat)
    compiled = compiled_program(program, arguments, work)
    kinds = {name: kind_of_work(*of) for name, *of in bodies_of(compiled.as_text())}
    state = list(arguments)
    del arguments

    def run():
        state[0], state[1] = compiled(*state)
        return state[1]

    jax.block_until_ready(run())
    seconds = device_seconds(run, 1 if work == "sample" else _IN_FLIGHT)
    print_kinds(f"{work}:{clips}x{frames}, ours, remat {remat}", seconds, kinds)
    for name, value in seconds.most_common(12):
        print(f"    {value * 1e3:8.3f} ms  {kinds.get(name, REST):50}{name}", flush=True)


def our_training(model, labels):
    """A function of a state and a key to the next ones, what it is called with, what is counted."""
    import jax
    import jax.numpy as jnp
    import optax

    from odvae_jax.diffusion import drop_labels, process_of

    process, config = process_of(model.config), model.config
    optimizer = optax.adamw(1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0)
    x = jax.random.normal(jax.random.key(1), (labels.shape[0], *config.latent_shape))

    def loss(model, x, key):
        of_labels, of_process = jax.random.split(key)
        dropped = drop_labels(labels, of_labels, rate=0.1, classes=config.classes)
        terms = process.loss(lambda z, t: model(z, t, dropped), x, of_process)
        return jnp.mean(terms["loss"])

    def step(state, key):
        model, moments, average, x = state
        key, own = jax.random.split(key)
        gradient = jax.grad(loss)(model, x, own)
        with jax.named_scope("optimiser"):
            updates, moments = optimizer.update(gradient, moments, model)
            model = optax.apply_updates(model, updates)
            average = jax.tree.map(lambda a, p: a + (1 - 0.9999) * (p - a), average, model)
        return (model, moments, average, x), key

    state = model, jax.jit(optimizer.init)(model), jax.tree.map(jnp.copy, model), x
    key = jax.random.key(2)
    return step, (state, key), (jax.grad(loss), model, x, key)


def our_sampling(model, labels):
    """A function of a model and a key to the same, what it is called with, what is counted."""
    import jax
    import jax.numpy as jnp

    from odvae_jax.diffusion import process_of, sample
    from odvae_jax.diffusion.sampling import guided

    sampler = process_of(model.config).sampler("ddpm", _STEPS.value)
    numbers = jnp.arange(labels.shape[0])

    def run(model, key):
        z = sample(model, sampler, numbers, key=key, labels=labels, guidance=_GUIDANCE.value)
        return model, jax.random.fold_in(key, jnp.sum(jnp.isfinite(z)))

    def one(model, z):
        return guided(model, sampler, labels, _GUIDANCE.value)(z, jnp.int32(5))

    z = jnp.zeros((labels.shape[0], *model.config.latent_shape))
    return run, (model, jax.random.key(0)), (one, model, z)


def released_modules():
    """The release's modules of the network and of the process."""
    import torch

    class PatchEmbed(torch.nn.Module):
        def __init__(self, img_size, patch_size, in_chans, embed_dim, bias=True):
            super().__init__()
            self.patch_size = (patch_size, patch_size)
            self.num_patches = (img_size // patch_size) ** 2
            self.proj = torch.nn.Conv2d(in_chans, embed_dim, patch_size, patch_size, bias=bias)

        def forward(self, x):
            return self.proj(x).flatten(2).transpose(1, 2)

    class Mlp(torch.nn.Module):
        def __init__(self, in_features, hidden_features, act_layer, drop=0.0):
            super().__init__()
            self.fc1 = torch.nn.Linear(in_features, hidden_features)
            self.act = act_layer()
            self.fc2 = torch.nn.Linear(hidden_features, in_features)

        def forward(self, x):
            return self.fc2(self.act(self.fc1(x)))

    stand_in = types.ModuleType("timm.models.vision_transformer")
    stand_in.PatchEmbed, stand_in.Mlp = PatchEmbed, Mlp
    names = ("timm", "timm.models", "timm.models.vision_transformer")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules |= {"timm": stand_in, "timm.models": stand_in, names[-1]: stand_in}
    # By path: the package above it imports the models for text.
    spec = importlib.util.spec_from_file_location(
        "released_latte", f"{_RELEASED.value}/models/latte.py"
    )
    latte = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(latte)
    for name, module in before.items():
        sys.modules.pop(name)
        if module is not None:
            sys.modules[name] = module
    sys.path.insert(0, _RELEASED.value)
    import diffusion

    return latte, diffusion


def repair(latte):
    """Makes the release's attention PyTorch's fused one."""
    from torch.nn.functional import scaled_dot_product_attention

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.proj(x)

    latte.Attention.forward = forward


def time_released(work, clips, frames, compiled):
    """What is measured of the release."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    latte, diffusion = released_modules()
    if compiled:
        repair(latte)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    make = latte.Latte_models[f"Latte-{_SIZE.value}"]
    model = make(
        input_size=_LATENT.value, num_frames=frames, num_classes=_CLASSES.value, extras=2
    ).to(device)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.02 * torch.randn_like(p))
    make = released_sampling if work == "sample" else released_training
    run, calls = make(model, diffusion, clips, frames, compiled, device)

    return time_torch(run, device, trials=2, **how_often(calls))


def released_training(model, diffusion, clips, frames, compiled, device):
    """One training step of the release, and how many are timed at once."""
    import copy

    import torch

    average = copy.deepcopy(model)
    for p in average.parameters():
        p.requires_grad_(False)
    model.train()
    fused = {"fused": True} if compiled and device == "cuda" else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0, **fused)
    process = diffusion.create_diffusion(timestep_respacing="")
    x = torch.randn(clips, frames, 4, _LATENT.value, _LATENT.value, device=device)
    y = torch.zeros(clips, dtype=torch.long, device=device)
    network = torch.compile(model) if compiled else model
    averages, trained = list(average.parameters()), list(model.parameters())

    def run():
        t = torch.randint(0, process.num_timesteps, (clips,), device=device)
        with torch.autocast(device, torch.bfloat16, enabled=compiled):
            loss = process.training_losses(network, x, t, {"y": y})["loss"].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            if compiled:
                torch._foreach_lerp_(averages, trained, 1 - 0.9999)
            else:
                for a, p in zip(averages, trained, strict=True):
                    a.mul_(0.9999).add_(p.data, alpha=1 - 0.9999)

    return run, _IN_FLIGHT


def released_sampling(model, diffusion, clips, frames, compiled, device):
    """The sampling of clips by the release, each with its unlabelled twin."""
    import torch

    half = device == "cuda"
    dtype = torch.bfloat16 if compiled else torch.float16
    if half or compiled:
        model = model.to(dtype)
    model = model.eval()
    if compiled:
        model.forward = torch.compile(model.forward)
    process = diffusion.create_diffusion(str(_STEPS.value))
    shape = (2 * clips, frames, 4, _LATENT.value, _LATENT.value)
    y = torch.tensor([0] * clips + [_CLASSES.value] * clips, device=device)
    arguments = {"y": y, "cfg_scale": _GUIDANCE.value, "use_fp16": half and not compiled}

    @torch.no_grad()
    def run():
        z = torch.randn(shape[0] // 2, *shape[1:], device=device)
        with torch.autocast(device, torch.bfloat16, enabled=compiled):
            process.p_sample_loop(
                model.forward_with_cfg, shape, torch.cat([z, z]), clip_denoised=False,
                model_kwargs=arguments, device=device,
            )  # fmt: skip

    return run, 1


def child(name):
    kind, text = name.split(":", 1)
    work = parsed(text)
    if kind.startswith("ours"):
        result = time_ours(*work, kind.partition(" ")[2])
    else:
        result = time_released(*work, kind == "compiled")
    hand_over(result)


def products():
    """Name of the device, and operations per second of a large matrix product."""
    import jax

    from odvae_jax.evaluation.speed import matrix_rate

    name = f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {_DTYPE.value}"
    hand_over([name, matrix_rate(_DTYPE.value, 5)])


def main(_):
    if _PROFILE.value:
        for text in _WORK.value:
            for remat in _REMAT.value if text.startswith("train") else ["none"]:
                profile(*parsed(text), remat)
        return None
    if _CHILD.value:
        return products() if _CHILD.value == "products" else child(_CHILD.value)
    if not _RELEASED.value and set(_ONLY.value) != {"ours"}:
        raise SystemExit("denoiser.py: --released=FOLDER is needed, or --only=ours.")
    works = _WORK.value
    if _FRAMES.value:
        works = [f"train:1x{_FRAMES.value}", f"sample:1x{_FRAMES.value}"]
    memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    name, rate = measured("products", **memory)
    print(
        f"{name}, Latte-{_SIZE.value}, latents {_LATENT.value}×{_LATENT.value}; "
        f"matrix product {rate / 1e12:.1f} TFLOP/s"
    )
    table = Table(rate, peak=True, **memory)
    for text in works:
        kinds = [k for k in _ONLY.value if k != "ours"]
        if "ours" in _ONLY.value:
            policies = _REMAT.value if text.startswith("train") else ["none"]
            kinds[1:1] = [f"ours {remat}" for remat in policies]
        table.measure(text, kinds)
    return None


if __name__ == "__main__":
    app.run(main)
