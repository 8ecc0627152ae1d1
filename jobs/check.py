"""A data set before anybody trains: `rocketray check` as a script.

python jobs/check.py --data D
ray job submit --working-dir . -- python jobs/check.py --data D
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["check", *sys.argv[1:]])
