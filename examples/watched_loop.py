"""
A watch in a training loop
==========================

A plain loop that diverges, and what a watch says of it: the rate grows until the network takes it no more.

python examples/watched_loop.py [FOLDER]
normscope report FOLDER
"""

import sys
import tempfile

import torch
from torch import nn

import normscope as ns


def main(folder: str) -> None:
    torch.manual_seed(0)
    data = ns.load_data("digits")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with ns.watch(model, optimizer, every=10, out=folder, on_alarm="stop") as watch:
        for step, (images, labels) in enumerate(ns.batches(data, 32, seed=0)):
            optimizer.param_groups[0]["lr"] = 0.01 * 1.04**step
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            watch.step(loss, (images, labels))
            if watch.should_stop or step == 400:
                break
            optimizer.step()
    for alarm in watch.alarms:
        print(alarm.sentence)
    print(watch.record()["critical_multiple"].to_series().round(2).to_string())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
