"""What a training step costs, and where it goes.

    python -m kvae.benchmark --config=configs/photos_vqvae.py [--compare=quantizer.neighborhood=none]
    python -m kvae.benchmark --scaling
    python -m kvae.benchmark --quantizers
    python -m kvae.benchmark --soms [--share=0.1]

The step is that of training, compiled in the same way. The quantiser (lookup, statistics, update) is also timed by
itself, and so is a matrix product, for the rate that the device reaches. `--compare` puts the config beside itself with
one field of the model changed, step by step in turns, so that whatever else the machine does falls on both.

`--scaling` on two CPU cores (jax 0.10.2, commit 37cf6ce): time and memory are linear in N and in K.

                 milliseconds   picoseconds per distance   temporary memory, of one N x K array
    4,096 x 512          4.2                      2,002                                   1.27
    16,384 x 512        20.6                      2,459                                   0.76
    65,536 x 512        90.4                      2,694                                   0.29
    262,144 x 512      330.4                      2,462                                   0.26
    4,096 x 2,048       20.4                      2,435                                   0.67
    4,096 x 8,192       74.3                      2,214                                   0.15
    4,096 x 65,536     794.3                      2,959                                   0.02
"""

import argparse
import json
import pathlib
import sys

import jax

from kvae import main
from kvae.benchmark.quantizers import quantizers, scaling
from kvae.benchmark.soms import soms
from kvae.benchmark.step import measure
from kvae.benchmark.timing import say, table, transposed
from kvae.core import program
from kvae.core.errors import InputError, wrap_write_errors
from kvae.core.fields import Positive, Size
from kvae.core.files import write_text
from kvae.training.config.sections import validate_config


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, dict]]:
    """The benchmark's own options, and the configs by name; those are read as the training program reads them."""
    parser = program.Parser("python -m kvae.benchmark", __doc__)
    parser.add_argument("--compare", metavar="NAME=VALUE", help="a field of the model, and its other value")
    parser.add_argument("--json", metavar="FILE", help="writes what was measured there, too")
    parser.add_argument("--seconds", type=program.number(Positive), default=20, help="how long steps are timed (20)")
    parser.add_argument(
        "--random-images", type=program.number(Size), metavar="SIDE", help="instead of the config's data set"
    )
    parser.add_argument("--scaling", action="store_true", help="the map by itself against N and K; no config")
    parser.add_argument("--quantizers", action="store_true", help="every quantiser by itself; no config")
    parser.add_argument("--soms", action="store_true", help="kvae.SOM beside other maps; no config")
    parser.add_argument("--share", type=float, default=1, help="with --soms, share of the rows, for a first look (1)")
    options, rest = parser.parse_known_args(argv)
    if not 0 < options.share <= 1:
        raise InputError(f"--share={options.share}; it must be above 0 and at most 1")
    if options.scaling or options.quantizers or options.soms:
        return options, {}
    config, workdir = main.parse(rest)
    configs = {pathlib.Path(workdir).name: config}
    if options.compare:
        if "=" not in options.compare:
            raise InputError(f"--compare={options.compare}; it must be a field of the model and a value, name=value")
        configs[options.compare] = main.parse([*rest, f"--config.model.{options.compare}"])[0]
    return options, {name: validate_config(config) for name, config in configs.items()}


def benchmark(argv: list[str]) -> int:
    """Runs the program; returns its exit status."""
    options, configs = parse(argv)
    if options.scaling:
        rows = scaling()
    elif options.quantizers:
        rows = quantizers(options.seconds / 10)
    elif options.soms:
        rows = soms(options.share)
    else:
        rows = measure(configs, options.seconds, options.random_images)
    result = {"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "jax": jax.__version__}
    result |= {"rows": rows}
    print(table(rows) if configs else table(transposed(rows)))
    if len(configs) == 2:
        one, other = (row["step_milliseconds"] for row in rows.values())
        result["ratio_of_medians"] = one / other
        print(f"ratio of medians, {' / '.join(rows)}: {one / other:.3f}")
    say(f"done on {result['devices']} x {result['device']}, jax {jax.__version__}")
    if options.json:
        with wrap_write_errors(f"--json={options.json}"):
            write_text(options.json, json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(program.run(benchmark, sys.argv[1:]))
