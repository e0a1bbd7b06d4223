"""Measures the seconds and memory that a long metrics.jsonl adds to the start of a run.

python tests/long_journal.py [--rows=1000000]
"""

import argparse
import json
import pathlib
import resource
import tempfile
import time

from kvae.training.workdir.journal import Journal


def write_rows(path, count, every=20):
    """Yields rows like those of a run with many metrics, every 20th with an evaluation; about 0.8 KB each."""
    metrics = {f"train/metric_{i}": 0.123456789 * i for i in range(22)}
    with path.open("w") as file:
        for step in range(1, count + 1):
            row = {"step": step, **metrics} | ({"valid/loss": 1 / step} if step % every == 0 else {})
            file.write(json.dumps(row) + "\n")


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    count = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "metrics.jsonl"
        write_rows(path, 10)
        Journal(folder, first_step=10, steps=count, patience=5, writes=True).close()  # imports
        write_rows(path, count)
        size, before, begun = path.stat().st_size, peak_mib(), time.process_time()
        journal = Journal(folder, first_step=count - 7, steps=count, patience=5, writes=True)
        seconds = time.process_time() - begun
        shown = journal.rows
        print(
            f"{count:,} rows, {size / 2**30:.2f} GiB: {seconds:.1f} s of one core, {peak_mib() - before:.0f} MiB more"
        )
        print(f"a figure draws {len(shown)} of them, the last of step {shown[-1]['step']:,}")
        journal.close()


if __name__ == "__main__":
    main()
