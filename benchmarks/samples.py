"""What the Thinker writes, as a page: the ten samples that `muomni eval text` draws.

python benchmarks/samples.py results/text.json --out docs/samples.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from omni.config import read_json
from omni.evaluation.report import samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = read_json(arguments.results)
    page = f"# What `{result['checkpoint']}` writes\n\n{samples(result['metrics']['samples'])}\n"
    arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
