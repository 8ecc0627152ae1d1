"""The best passages of many questions: `rocketray retrieve` as a script.

python jobs/retrieve.py --model M --queries dev --out O
ray job submit --working-dir . -- python jobs/retrieve.py --model M --queries dev --out O
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["retrieve", *sys.argv[1:]])
