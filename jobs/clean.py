"""Old versions removed: `rocketray clean` as a script.

python jobs/clean.py O --dry-run
ray job submit --working-dir . -- python jobs/clean.py O --dry-run
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["clean", *sys.argv[1:]])
