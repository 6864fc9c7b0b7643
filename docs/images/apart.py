"""The pictures of docs/apart.md, from what was measured:

python docs/images/apart.py results/apart
"""

import sys
from pathlib import Path

from normscope.paper.exhibit import exhibits
from normscope.results import load

PICTURES = {
    "apart": ("resnet20", "apart"),
    "apart_resnet110": ("resnet110", "apart"),
    "apart_transformers": ("transformers", "apart_transformers"),
}

for picture, (folder, name) in PICTURES.items():
    figure = exhibits()[name].draw(load(Path(sys.argv[1]) / folder / f"{name}.nc"))
    figure.savefig(Path(__file__).parent / f"{picture}.png", dpi=110)
