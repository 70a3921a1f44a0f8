"""Time and memory of loading a checkpoint of full size, each layout in a process of its own.

python benchmarks/loading.py

Makes variant 4 with random weights (239M parameters, 957 MB), writes it in our layout, the released
one and as a released training checkpoint (a pickle, if PyTorch is installed to write it), and loads
each: seconds, and the peak of the process's memory above what it had before, as a multiple of the
file's size.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

_MEASURE = """
import sys, time
import jax
from odvae_jax import ODVAE

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

jax.devices()
before = status("VmRSS")
start = time.perf_counter()
vae = ODVAE.from_pretrained(sys.argv[1])
jax.block_until_ready(jax.tree.leaves(vae))
print(time.perf_counter() - start, status("VmHWM") - before)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128, help="base width")
    arguments = parser.parse_args()

    from odvae_jax import ODVAE, ODVAEConfig
    from odvae_jax.checkpoints import open_sora_plan

    vae = ODVAE(ODVAEConfig.variant(4, width=arguments.width, upsample="linear"), rngs=0)
    with tempfile.TemporaryDirectory() as folder:
        native, released, pickled = (Path(folder) / n for n in ("native", "released", "pickled"))
        vae.save_pretrained(native)
        open_sora_plan.save(vae, released)
        sources = {"native": native, "released": released}
        try:
            import torch
            from safetensors.torch import load_file
        except ImportError:
            print("no PyTorch: the pickle is left out")
        else:
            pickled.mkdir()
            (pickled / "config.json").write_text((released / "config.json").read_text())
            state = load_file(released / open_sora_plan.WEIGHTS_FILE)
            torch.save({"ema_state_dict": state}, pickled / "checkpoint.ckpt")
            del state
            sources["released .ckpt"] = pickled
        del vae
        print(f"{'layout':16}{'file MB':>9}{'seconds':>9}{'memory / file':>15}")
        for name, source in sources.items():
            size = max(p.stat().st_size for p in source.iterdir())
            done = subprocess.run(
                [sys.executable, "-c", _MEASURE, str(source)],
                capture_output=True,
                text=True,
                check=True,
            )
            seconds, memory = map(float, done.stdout.split())
            print(f"{name:16}{size / 1e6:9.0f}{seconds:9.1f}{memory / size:15.2f}")


if __name__ == "__main__":
    main()
