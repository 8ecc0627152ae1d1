"""One model on your own examples: `rocketray train` as a script.

python jobs/train.py dual --examples triples.jsonl --out O
ray job submit --working-dir . -- python jobs/train.py dual --examples triples.jsonl --out O
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
