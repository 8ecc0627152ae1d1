"""Hard negatives without the false ones: `rocketray denoise` as a script.

python jobs/denoise.py --run R --model cross --out O
ray job submit --working-dir . -- python jobs/denoise.py --run R --model cross --out O
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["denoise", *sys.argv[1:]])
