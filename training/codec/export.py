"""Makes the codec's file from the state of a training run: `python -m training.codec.export`.

The file is the same that training writes at its end, where files of more than 16 MiB cannot be brought home.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lyra_ns.codec.learned import LearnedCodec, LearnedNetwork, config_of
from lyra_ns.codec.linear import load_linear_codec
from training.codec.state import read_state


def export_codec(state: Path) -> LearnedCodec:
    """The averaged network of a training state as a codec."""
    saved = read_state(state)
    network = LearnedNetwork(config_of(saved.config))
    network.load_state_dict(saved.weights("average"))
    return LearnedCodec(network, saved.statistics, load_linear_codec())


def main(arguments: list[str] | None = None) -> None:
    """Writes the file and prints its digest."""
    parser = argparse.ArgumentParser(prog="python -m training.codec.export", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder that training wrote")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    options = parser.parse_args(arguments)
    codec = export_codec(options.state)
    options.output.write_bytes(codec.to_bytes())
    print(f"{options.output}: digest {codec.digest}")


if __name__ == "__main__":
    main()
