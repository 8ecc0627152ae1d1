"""Embeddings of all passages: `rocketray encode` as a script.

python jobs/encode.py --data D --model M --out O
ray job submit --working-dir . -- python jobs/encode.py --data D --model M --out O
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["encode", *sys.argv[1:]])
