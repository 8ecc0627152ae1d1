"""A data set as tables: `rocketray ingest` as a script.

python jobs/ingest.py --data D --out O
ray job submit --working-dir . -- python jobs/ingest.py --data D --out O
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["ingest", *sys.argv[1:]])
