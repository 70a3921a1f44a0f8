"""TMem and TSpeed of Tables 2 and 3: training a denoiser with the autoencoder in every step.

python benchmarks/table2_speed.py --results=speed.json                # on one GPU
python benchmarks/table2_speed.py --results=speed.json --rows=OD-VAE,SD-VAE --dtypes=bfloat16
python benchmarks/table2_speed.py --size=S/2 --frames=5 --side=16 --width=8 --steps=3 \
    --dtypes=float32 --rows=OD-VAE,SD-VAE,latents:OD-VAE                # on a CPU

A step takes one clip of 81×256×256, uint8 in the host's memory: transfer, encoding (sampled),
Latte-XL/2 forward and backward, AdamW, EMA. It is the step of `odvae train`, with its guard against
values that are not finite. Each row is measured in a process of its own, with random weights, and
kept in --results; the table at the end has all rows that stand there, so that rows can be measured
in several calls. Rows are autoencoders of Table 2, variant-1 to variant-4 of Table 3 (OD-VAE is
variant-4), and latents:NAME: the same training on latents that were encoded beforehand. With
bfloat16, the autoencoder's parameters have it too, the denoiser's stay in float32. With float32,
products are TF32 on a GPU that has it, as in the paper.

Columns: latent frames; TSpeed, the median over steps that are waited for, and the 10th to 90th
percentile; its ratio to SD-VAE on the same device; TMem, what the compiled program needs, then the
runtime's own peak with whatever came before the first step, in units of 1e6 bytes, as the paper's
are; multiply-adds of a step; its share of the rate of a large matrix product, measured in the same
call; the seconds until the program was compiled; the paper's TSpeed, ratio and TMem, on UCF101 and
an A100. Its step has a batch of one clip as here; that is not said there, but follows from Table 3.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import time

import numpy as np
from absl import app, flags
from side_by_side import measured

_ROWS = flags.DEFINE_list(
    "rows",
    ["OD-VAE", "SD-VAE", "variant-1", "variant-2", "variant-3", "CV-VAE", "SVD-VAE", "OPS-VAE",
     "latents:OD-VAE", "latents:SD-VAE"],
    "what is measured, in this order",
)  # fmt: skip
_DTYPES = flags.DEFINE_list("dtypes", ["bfloat16", "float32"], "what is computed in")
_SIZE = flags.DEFINE_string("size", "XL/2", "S, B, L or XL, a slash, and the side of a patch")
_REMAT = flags.DEFINE_string("remat", "none", "what is computed again: none, products or blocks")
_FRAMES = flags.DEFINE_integer("frames", 81, "frames of a clip")
_SIDE = flags.DEFINE_integer("side", 256, "rows and columns of a clip")
_WIDTH = flags.DEFINE_integer("width", 128, "base width of the OD-VAEs and of SD-VAE")
_CLASSES = flags.DEFINE_integer("classes", 101, "classes")
_STEPS = flags.DEFINE_integer("steps", 50, "steps that are timed")
_RESULTS = flags.DEFINE_string("results", None, "a file that keeps rows from call to call")
_CHILD = flags.DEFINE_string("child", None, "used by the benchmark itself")
_WARM = 5  # steps before the first that is timed
_CLIPS = 4  # different ones in the host's memory
_LATENTS = "latents:"


def autoencoder_config(name, dtype):
    """The config of an autoencoder by its name in Table 2 or Table 3."""
    from odvae_jax import ODVAEConfig
    from odvae_jax.evaluation.paper import TABLE_1

    same = {"dtype": dtype, "param_dtype": dtype}
    small = {"width": _WIDTH.value, "groups": min(_WIDTH.value, 32)}
    if name.startswith("variant-"):
        return ODVAEConfig.variant(int(name.removeprefix("variant-")), **same, **small)
    row = next((row for row in TABLE_1 if row.name == name), None)
    if row is None:
        raise SystemExit(f"table2_speed.py: the row {name} is not known; --help lists them.")
    config = row.config(**same, **(small if row.config_class is ODVAEConfig else {}))
    if name == "OPS-VAE":  # clips whole, which the paper's TMem fits
        config = dataclasses.replace(config, micro_frames=None)
    return config


def denoiser(latent_shape, dtype):
    """The config of a run, and a model in which no parameter is zero."""
    import jax

    from odvae_jax.diffusion import Latte, LatteConfig
    from odvae_jax.parameters import named_parameters, with_parameters
    from odvae_jax.training.denoising import denoiser_config

    frames, rows, columns, channels = latent_shape
    model = LatteConfig.of(
        _SIZE.value, frames=frames, rows=rows, columns=columns, channels=channels,
        classes=_CLASSES.value, dtype=dtype, remat=_REMAT.value,
    )  # fmt: skip
    config = denoiser_config()
    config.model = model.to_dict()
    config.batch_size = 1
    made = Latte(model, rngs=0)
    # Zeros would be multiplied at less power, and so faster.
    noisy = jax.jit(lambda key, p: p + 0.02 * jax.random.normal(key, p.shape, p.dtype))
    keys = iter(jax.random.split(jax.random.key(0), 10_000))
    parameters = {n: noisy(next(keys), p) for n, p in named_parameters(made).items()}
    return config, with_parameters(made, parameters)


def measure(row, dtype):
    """What is measured of a row."""
    import jax

    from odvae_jax import ODVAE, ODVAEConfig
    from odvae_jax.baselines import model_class
    from odvae_jax.compilation import bytes_needed
    from odvae_jax.scale import Scale
    from odvae_jax.sharding import make_mesh, replicated
    from odvae_jax.training.denoiser_data import on_devices
    from odvae_jax.training.denoising import denoiser_step, initial_state
    from odvae_jax.training.guard import guarded

    name = row.removeprefix(_LATENTS)
    of_vae = autoencoder_config(name, dtype)
    clip = (1, _FRAMES.value, _SIDE.value, _SIDE.value, 3)
    latent_shape = of_vae.latent_shape(clip)[1:]
    vae = None
    if name == row:
        cls = ODVAE if isinstance(of_vae, ODVAEConfig) else model_class(of_vae.model)
        vae = cls(of_vae, rngs=0)
    config, model = denoiser(latent_shape, dtype)
    mesh = make_mesh(devices=jax.devices()[:1])
    state = jax.device_put(initial_state(model, config), replicated(mesh))
    operations = count(model, vae, clip)
    key = np.asarray(jax.random.key_data(jax.random.key(0)))
    constants = jax.device_put((key, vae), replicated(mesh))
    rng = np.random.default_rng(0)
    if vae is None:
        data = [
            {"latents": rng.standard_normal((1, *latent_shape), np.float32)} for _ in range(_CLIPS)
        ]
    else:
        data = [{"clips": rng.integers(0, 256, clip, np.uint8)} for _ in range(_CLIPS)]
    data = [one | {"labels": np.array([i], np.int32)} for i, one in enumerate(data)]

    def to_device(i):
        return on_devices(data[i % _CLIPS], mesh)

    step = guarded(denoiser_step(config, model, Scale(None, None, 0.18215), mesh), mesh)
    del model, vae
    start = time.perf_counter()
    given = (state, to_device(0), constants)
    compiled = jax.jit(step, donate_argnums=0).lower(*given).compile()
    compiling = time.perf_counter() - start
    del given
    seconds = []
    for i in range(_WARM + _STEPS.value):
        start = time.perf_counter()
        state, metrics = compiled(state, to_device(i), constants)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    device = jax.local_devices()[0]
    return {
        "device": device.device_kind,
        "jax": jax.__version__,
        "latent_frames": latent_shape[0],
        "seconds": seconds[_WARM:],
        "needed": bytes_needed(compiled),
        "peak": (device.memory_stats() or {}).get("peak_bytes_in_use", 0),
        "flops": operations,
        "compiling": compiling,
        "finite": bool(np.isfinite(metrics["loss"])),
    }


def count(model, vae, clip):
    """Operations of a step: encoding, and three times the denoiser forward."""
    import jax
    import jax.numpy as jnp

    from odvae_jax.flops import count_flops
    from odvae_jax.pixels import to_unit_range

    z = jax.ShapeDtypeStruct((1, *model.config.latent_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    found = 3 * count_flops(lambda m, z, t, y: m(z, t, y), model, z, t, labels)
    if vae is not None:
        clips = jax.ShapeDtypeStruct(clip, jnp.uint8)
        encode = lambda v, x: v.encode(to_unit_range(x)).sample(jax.random.key(0))  # noqa: E731
        found += count_flops(encode, vae, clips)
    return found


def child(text):
    work, dtype = text.rsplit(" ", 1)
    if work == "products":
        from odvae_jax.evaluation.speed import matrix_rate

        result = matrix_rate(dtype, 5)
    else:
        result = measure(work, dtype)
    print("\n" + json.dumps(result))


def in_a_process(work, dtype):
    """What a process of its own prints last; None if it fails, which is said."""
    preallocate = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return measured(f"{work} {dtype}", cached=True, XLA_PYTHON_CLIENT_PREALLOCATE=preallocate)


def settings():
    """What decides the numbers, beside row, dtype and device."""
    chosen = (_SIZE, _REMAT, _FRAMES, _SIDE, _WIDTH, _CLASSES)
    return {flag.name: flag.value for flag in chosen}


def known():
    """The rows that --results holds."""
    path = _RESULTS.value and pathlib.Path(_RESULTS.value)
    if not path or not path.exists():
        return {"settings": settings(), "rows": {}, "rates": {}}
    try:
        found = json.loads(path.read_text())
        there = found["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(
            f"table2_speed.py: {path} holds no rows of this benchmark, or is cut short "
            f"({type(error).__name__}): choose another file, or delete it."
        ) from error
    if there != settings():
        raise SystemExit(
            f"table2_speed.py: {path} holds rows of {there}, not of {settings()}: "
            "choose another file."
        )
    return found


def keep(found):
    if _RESULTS.value:
        # In one piece: whoever ends this while it writes loses no row that was measured.
        part = pathlib.Path(f"{_RESULTS.value}.part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        part.replace(_RESULTS.value)


def of_paper(row):
    """The paper's TSpeed, its ratio to SD-VAE's, and TMem, as cells."""
    from odvae_jax.evaluation.paper import TABLE_2, TABLE_3

    rows = {one.name: one for one in TABLE_2}
    speed, memory = None, None
    if row in rows:
        speed = rows[row].steps_per_second["UCF101"]
        memory = rows[row].megabytes["UCF101"]
    elif row.startswith("variant-"):
        speed = TABLE_3[int(row.removeprefix("variant-"))][1]
    if speed is None:
        return ["–"] * 3
    ratio = speed / rows["SD-VAE"].steps_per_second["UCF101"]
    return [f"{speed:.2f}", f"{ratio:.2f}", "–" if memory is None else str(memory)]


def speed_of(result):
    return 1 / statistics.median(result["seconds"])


def line(row, dtype, found):
    """The cells of a row of the table."""
    result = found["rows"].get(f"{row} {dtype}")
    if result is None:
        return [row, dtype, *["failed"] * 9, *of_paper(row)]
    low, high = np.percentile([1 / s for s in result["seconds"]], [10, 90])
    first = found["rows"].get(f"SD-VAE {dtype}")
    ratio = "–"
    if first is not None and first["device"] == result["device"]:
        ratio = f"{speed_of(result) / speed_of(first):.2f}"
    rate = found["rates"].get(f"{result['device']} {dtype}")
    share = f"{result['flops'] * speed_of(result) / rate:.2f}" if rate else "–"
    return [
        row, dtype, str(result["latent_frames"]), f"{speed_of(result):.2f}",
        f"{low:.2f}–{high:.2f}", ratio, f"{result['needed'] / 1e6:.0f}",
        f"{result['peak'] / 1e6:.0f}" if result["peak"] else "–", f"{result['flops'] / 2:.3g}",
        share, f"{result['compiling']:.1f}", *of_paper(row),
    ]  # fmt: skip


def print_table(found, asked):
    from odvae_jax.evaluation.results import as_text

    titles = [
        "row", "dtype", "frames", "TSpeed", "spread", "ratio", "TMem", "peak", "multiply-adds",
        "share", "compile s", "paper: TSpeed", "ratio", "TMem",
    ]  # fmt: skip
    there = [tuple(name.rsplit(" ", 1)) for name in found["rows"]]
    names = list(dict.fromkeys([*there, *asked]))
    for device in dict.fromkeys(result["device"] for result in found["rows"].values()):
        version = next(r["jax"] for r in found["rows"].values() if r["device"] == device)
        rates = [
            f"{dtype} {rate / 1e12:.1f} TFLOP/s"
            for name, rate in found["rates"].items()
            for of, dtype in [name.rsplit(" ", 1)]
            if of == device and rate
        ]
        print(f"{device}, jax {version}; matrix products: {', '.join(rates) or 'not measured'}")
    shown = ", ".join(f"{name} {value}" for name, value in found["settings"].items())
    counts = sorted({len(result["seconds"]) for result in found["rows"].values()})
    print(f"{shown}; steps that are timed: {', '.join(map(str, counts)) or 'none'}")
    print(as_text(titles, [line(row, dtype, found) for row, dtype in names]))
    wrong = [name for name, result in found["rows"].items() if not result["finite"]]
    if wrong:
        print(f"the loss was not finite in: {', '.join(wrong)}")


def main(_):
    if _CHILD.value:
        return child(_CHILD.value)
    found = known()
    asked = [(row, dtype) for dtype in _DTYPES.value for row in _ROWS.value]
    for row, dtype in asked:
        autoencoder_config(row.removeprefix(_LATENTS), dtype)  # whether there is such a row
    for row, dtype in asked:
        result = in_a_process(row, dtype)
        if result is None:
            continue
        found["rows"][f"{row} {dtype}"] = result
        device = f"{result['device']} {dtype}"
        if not found["rates"].get(device):
            found["rates"][device] = in_a_process("products", dtype)
        keep(found)
        print(f"{row} {dtype}: {speed_of(result):.3f} steps per second", flush=True)
    print_table(found, asked)
    return int(any(f"{row} {dtype}" not in found["rows"] for row, dtype in asked))


if __name__ == "__main__":
    app.run(main)
