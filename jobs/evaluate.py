"""Measures of a TREC run: `rocketray evaluate` as a script.

python jobs/evaluate.py --run A.trec --qrels Q.tsv
ray job submit --working-dir . -- python jobs/evaluate.py --run A.trec --qrels Q.tsv
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # For a machine without the package.

from rocketray.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
