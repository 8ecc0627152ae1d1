"""Pseudo labels for unlabelled questions: `rocketray augment` as a script.

python jobs/augment.py --run R --model cross --out O
ray job submit --working-dir . -- python jobs/augment.py --run R --model cross --out O
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["augment", *sys.argv[1:]])
