"""The paper's Table 3, as a job on a cluster or here: `rocketray ablate` as a script.

python jobs/ablate.py small --data D --out O
ray job submit --working-dir . -- python jobs/ablate.py small --data D --out O
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["ablate", *sys.argv[1:]])
