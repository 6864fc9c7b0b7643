"""The pictures of docs/apart.md, from what was measured:

python docs/images/apart.py results/apart
"""

import sys
from pathlib import Path

from normscope.paper.exhibit import exhibits
from normscope.results import load

for folder, name in (("resnet20", "apart"), ("transformers", "apart_transformers")):
    figure = exhibits()[name].draw(load(Path(sys.argv[1]) / folder / f"{name}.nc"))
    figure.savefig(Path(__file__).parent / f"{name}.png", dpi=110)
