"""The loop over this machine's Python documentation: `rocketray quickstart` as a script.

python jobs/quickstart.py --out O
ray job submit --working-dir . -- python jobs/quickstart.py --out O
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["quickstart", *sys.argv[1:]])
