"""Looking at videos before training on them, and packing them for it.

python -m odvae_jax.data inspect SOURCE [--output=sheet.png] [--frames=25 --size=256]
python -m odvae_jax.data pack SOURCE DEST [--short-side=256] [--seconds=10] [--kind=h264]

SOURCE is whatever `config.data.path` takes; what is packed is read as `array_record:DEST`.
"""

import argparse
import logging
import os
import sys


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m odvae_jax.data", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)

    look = commands.add_parser("inspect", help="what training would see")
    look.add_argument("source")
    look.add_argument("--output", default="contact_sheet.png", help="picture of some clips")
    look.add_argument("--frames", type=int, default=25, help="of a clip")
    look.add_argument("--size", type=int, default=256, help="side of a clip")
    look.add_argument("--clips", type=int, default=8, help="in the picture")

    pack = commands.add_parser("pack", help="decode once, store small")
    pack.add_argument("source")
    pack.add_argument("dest")
    pack.add_argument("--short-side", type=int, default=256, help="that videos are scaled to")
    pack.add_argument(
        "--seconds", type=float, default=10.0, help="of the parts that long videos are cut into"
    )
    pack.add_argument("--kind", choices=["h264", "raw"], default="h264")
    pack.add_argument("--crf", type=int, default=16, help="of H.264: lower is better and larger")
    pack.add_argument("--videos-per-shard", type=int, default=256)

    for command in (look, pack):
        command.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    given = vars(parser.parse_args(arguments))
    command = given.pop("command")
    logging.getLogger("odvae_jax").setLevel(logging.ERROR)  # the reports below say it all
    try:
        if command == "inspect":
            from odvae_jax.data.inspection import contact_sheet, survey

            report = survey(given["source"], frames=given["frames"], workers=given["workers"])
            print(report)
            if report.usable:
                options = {n: given[n] for n in ("frames", "size", "clips")}
                print(contact_sheet(given["source"], given["output"], **options))
        else:
            from odvae_jax.data.packing import pack_videos

            print(pack_videos(given.pop("source"), given.pop("dest"), **given))
    except (ValueError, OSError) as error:
        raise SystemExit(f"odvae_jax.data {command}: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
