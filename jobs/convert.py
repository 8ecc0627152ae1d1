"""Weights as safetensors: `rocketray convert` as a script.

python jobs/convert.py NAME --out FOLDER
ray job submit --working-dir . -- python jobs/convert.py NAME --out FOLDER
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
