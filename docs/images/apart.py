"""The picture of docs/apart.md, from what was measured:

python docs/images/apart.py results/apart/resnet20/apart.nc
"""

import sys
from pathlib import Path

from normscope.paper.exhibits.apart import EXHIBIT
from normscope.results import load

figure = EXHIBIT.draw(load(sys.argv[1]))
figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)
