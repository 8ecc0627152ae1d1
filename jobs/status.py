"""What a run's folder holds: `rocketray status` as a script.

python jobs/status.py O --json
ray job submit --working-dir . -- python jobs/status.py O --json
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["status", *sys.argv[1:]])
