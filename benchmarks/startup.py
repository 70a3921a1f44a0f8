"""How soon a new process encodes: cold, and with the persistent compilation cache warm.

python benchmarks/startup.py                     # 81×256×256, a model of full width from a file

Each line is a process of its own: seconds to import, to load the model, to the first latents, all
of it from the process's start, and to the second clip's; and how many programs were compiled for
a second clip of the same shape, which should be none.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags
from common import model

_FRAMES = flags.DEFINE_integer("frames", 81, "of the clip")
_SIZE = flags.DEFINE_integer("size", 256, "side of the clip")
_WORK = flags.DEFINE_multi_enum("work", ["encode", "decode"], ["encode", "decode"], "what to do")
_CHILD = flags.DEFINE_string("child", None, "used by the benchmark itself")
_MODEL = flags.DEFINE_string("model", None, "used by the benchmark itself")
_STARTED = flags.DEFINE_float("started", 0.0, "used by the benchmark itself")


def child():
    import jax
    import numpy as np

    import odvae_jax
    from odvae_jax.compilation import use_compilation_cache

    use_compilation_cache()
    imported = time.time()
    vae = odvae_jax.ODVAE.from_pretrained(_MODEL.value)
    jax.block_until_ready(vae)
    loaded = time.time()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    shape = (1, _FRAMES.value, _SIZE.value, _SIZE.value, 3)

    def run(seed):
        rng, start = np.random.default_rng(seed), time.time()
        if _CHILD.value == "decode":
            latents = rng.standard_normal(vae.config.latent_shape(shape), np.float32)
            np.asarray(odvae_jax.decode_uint8(vae, latents))
        else:
            video = rng.integers(0, 256, shape, np.uint8)
            np.asarray(odvae_jax.encode_uint8(vae, video).mean)
        return time.time() - start

    run(0)
    ready, before = time.time(), len(compiled)
    second = run(1)
    times = [t - _STARTED.value for t in (imported, loaded, ready)]
    print(json.dumps([*times, second, len(compiled) - before]))


def main(_):
    if _CHILD.value:
        return child()
    given = dict(os.environ)
    os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator is the children's
    with tempfile.TemporaryDirectory() as folder:
        model().save_pretrained(Path(folder) / "model")
        print(f"{'':20}{'imported':>10}{'loaded':>10}{'ready':>10}{'second s':>10}{'compiled':>10}")
        for work in _WORK.value:
            for name in ("cold", "warm"):
                process = subprocess.run(
                    [sys.executable, *sys.argv, f"--child={work}", f"--model={folder}/model",
                     f"--started={time.time()}"],
                    env={**given, "JAX_COMPILATION_CACHE_DIR": f"{folder}/{work}"},
                    stdout=subprocess.PIPE, text=True, check=True,
                )  # fmt: skip
                *times, second, compiled = json.loads(process.stdout.splitlines()[-1])
                cells = "".join(f"{t:10.1f}" for t in times)
                print(f"{work + ', ' + name:20}{cells}{second:10.2f}{compiled:10}", flush=True)
    return None


if __name__ == "__main__":
    app.run(main)
