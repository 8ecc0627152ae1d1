"""What denoising did to a run's data: `rocketray audit` as a script.

python jobs/audit.py O
ray job submit --working-dir . -- python jobs/audit.py O
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["audit", *sys.argv[1:]])
