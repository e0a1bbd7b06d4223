"""Times a training step and its parts, the quantisers, or kvae.SOM.

    python -m kvae.benchmark --config=configs/photos_vqvae.py
    python -m kvae.benchmark --config=configs/photos_vqvae.py --compare=quantizer.neighborhood=none
    python -m kvae.benchmark --config=configs/cifar10_vqvae.py --torch --random-images=32
    python -m kvae.benchmark --scaling
    python -m kvae.benchmark --quantizers
    python -m kvae.benchmark --soms [--share=0.1]
    python -m kvae.benchmark --som-widths
    python -m kvae.benchmark --real-maps [--data=FOLDER ...]

With --config it measures four things: the training step of that run, compiled as in training; the quantiser alone
(lookup, statistics, update); the share of time spent waiting for data; and the rate of a large matrix product, for
comparison. --compare also times the same config with one field of the model changed. It alternates between the two
every few steps, so that other load on the machine affects both equally. --torch alternates with the same model written
in plain PyTorch: eager, with channels last, and compiled. Both must have the same loss for the same weights and batch.

--scaling times the map alone for several numbers of vectors N and codes K. Time is linear in both; memory grows more
slowly. On two CPU cores (jax 0.10.2, commit 37cf6ce):

                 milliseconds   picoseconds per distance   temporary memory / one N x K array
    4,096 x 512          4.2                      2,002                                  1.27
    16,384 x 512        20.6                      2,459                                  0.76
    65,536 x 512        90.4                      2,694                                  0.29
    262,144 x 512      330.4                      2,462                                  0.26
    4,096 x 2,048       20.4                      2,435                                  0.67
    4,096 x 8,192       74.3                      2,214                                  0.15
    4,096 x 65,536     794.3                      2,959                                  0.02

--quantizers times one training step of every quantiser, alternating with vector-quantize-pytorch if it is installed.
--soms times kvae.SOM against whichever of MiniSom, fastersom and somoclu are installed. MiniSom runs its NumPy
implementation. fastersom 0.6 needs Python 3.12 or newer. --som-widths compares final widths of kvae.SOM on six real
data sets. --real-maps measures time, errors, populations and missing values on five real data sets, in files from
packages of PyPI and Debian; it prints how to get missing ones.
"""

import argparse
import json
import pathlib
import sys

import jax

from kvae import main as training
from kvae.benchmark.timing import format_table, log_progress, transpose
from kvae.core import program
from kvae.core.allocator import keep_freed_memory
from kvae.core.errors import InputError, wrap_write_errors
from kvae.core.fields import Positive, Size
from kvae.core.files import write_text


def parse_options(argv: list[str]) -> tuple[argparse.Namespace, dict[str, dict]]:
    """Returns the benchmark's own options, and the configs by name, parsed as `kvae.main` parses them.

    Raises:
      InputError: An option, a config, a field or a value is invalid.
    """
    parser = program.Parser("python -m kvae.benchmark", __doc__)
    parser.add_argument("--compare", metavar="FIELD=VALUE", help="also time the config with this model field changed")
    parser.add_argument("--torch", action="store_true", help="also time the same step in PyTorch, of the extra [bench]")
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")
    parser.add_argument(
        "--seconds", type=program.number(Positive), default=20, help="seconds to time steps for (default: %(default)s)"
    )
    parser.add_argument(
        "--random-images",
        type=program.number(Size),
        metavar="SIDE",
        help="use random images of this size, not the data set",
    )
    parser.add_argument("--scaling", action="store_true", help="time the map alone by N and K; needs no --config")
    parser.add_argument("--quantizers", action="store_true", help="time every quantiser alone; needs no --config")
    parser.add_argument("--soms", action="store_true", help="time kvae.SOM against other libraries; needs no --config")
    parser.add_argument("--som-widths", action="store_true", help="compare final widths of kvae.SOM; needs no --config")
    parser.add_argument("--real-maps", action="store_true", help="measure maps of real data; needs no --config")
    parser.add_argument("--data", action="append", default=[], metavar="FOLDER", help="search here for real data")
    parser.add_argument(
        "--share", type=float, default=1, help="share of the rows that --soms uses (default: %(default)s)"
    )
    options, rest = parser.parse_known_args(argv)
    if not 0 < options.share <= 1:
        raise InputError(f"--share is {options.share}; it must be a number > 0 and <= 1")
    if options.scaling or options.quantizers or options.soms or options.som_widths or options.real_maps:
        return options, {}
    config, workdir = training.parse(rest)
    configs = {pathlib.Path(workdir).name: config}
    if options.compare:
        if "=" not in options.compare:
            raise InputError(f"--compare is {options.compare!r}; it must be FIELD=VALUE, for a field of the model")
        configs[options.compare] = training.parse([*rest, f"--config.model.{options.compare}"])[0]
    from kvae.training.config.sections import validate_config

    configs = {name: validate_config(config) for name, config in configs.items()}
    if options.torch:
        from kvae.benchmark.torch_steps import check_comparable

        check_comparable(next(iter(configs.values())))
    return options, configs


def main(argv: list[str]) -> int:
    """Runs the program with these arguments and returns its exit status."""
    options, configs = parse_options(argv)
    # Imports are local, so that a missing extra is reported only by the measurement that needs it.
    if options.scaling or options.quantizers:
        from kvae.benchmark.layer_times import time_layers, time_scaling

        rows = time_scaling() if options.scaling else time_layers(options.seconds / 10)
    elif options.soms:
        from kvae.benchmark.soms import time_soms

        rows = time_soms(options.share)
    elif options.som_widths:
        from kvae.benchmark.som_widths import compare_widths

        rows = compare_widths()
    elif options.real_maps:
        from kvae.benchmark.real_maps import compare_real_maps

        rows = compare_real_maps(options.data)
    else:
        from kvae.benchmark.step_times import time_configs

        rows = time_configs(configs, options.seconds, options.random_images, options.torch)
    result = {"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "jax": jax.__version__}
    result |= {"rows": rows}
    print(format_table(rows if configs else transpose(rows)))
    first, *others = rows if configs else [""]
    for other in others:
        ratio = rows[first]["step_milliseconds"] / rows[other]["step_milliseconds"]
        result.setdefault("ratios_of_medians", {})[other] = ratio
        print(f"ratio of medians, {first} / {other}: {ratio:.3f}")
    log_progress(f"done on {result['devices']} x {result['device']}, jax {jax.__version__}")
    if options.json:
        with wrap_write_errors(f"--json={options.json}"):
            write_text(options.json, json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(program.run(main, sys.argv[1:]))
