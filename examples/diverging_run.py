"""
A diverging run, and its post-mortem
====================================

``watch`` sits beside a training and warns before the loss is lost. Here the rate grows by 10 % a step until the network
goes down; the record says when that was announced, by what, and keeps everything it saw.
"""

import tempfile

import matplotlib.pyplot as plt
import torch
from deep_cnn import Net

import normscope as ns

torch.manual_seed(0)
data = ns.load_data("digits")
model = ns.with_init(Net(blocks=8), "default", seed=0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

with ns.watch(model, optimizer, out=tempfile.mkdtemp(), every=4) as watch:
    for batch in ns.batches(data, 64, seed=0):
        loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        watch.step(loss, batch)
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= 1.1
        if loss > 1000:
            break

record = watch.record()
print(f"the loss has passed 1000 at step {record['step'].values[-1]}")
for alarm in watch.alarms:
    print(alarm.sentence)
plt.semilogy(record["step"], record["loss"])
plt.axvline(watch.alarms[0].step, color="tab:red", ls=":", label="first alarm")
plt.xlabel("step")
plt.ylabel("loss")
plt.legend()
