"""Answers from a finished run: `rocketray search` as a script.

python jobs/search.py O 'how do I pad a tensor'
ray job submit --working-dir . -- python jobs/search.py O 'how do I pad a tensor'
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["search", *sys.argv[1:]])
