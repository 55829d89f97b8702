"""python main.py --config=configs/digits.py --workdir=runs/digits --mode=train"""

import sys

from scoremle.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
