"""What a recipe will take on this machine or others: `rocketray plan` as a script.

python jobs/plan.py small --data D
ray job submit --working-dir . -- python jobs/plan.py small --machine g6.2xlarge:8 --data D

A job runs on the cluster's head, which has no GPU. To measure a GPU machine, ask for all its GPUs:

ray job submit --entrypoint-num-gpus 1 --working-dir . -- python jobs/plan.py small --data D
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
