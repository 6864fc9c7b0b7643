"""
A sweep: two norms, three rates, trained to the end
===================================================

A spec is a dictionary or a TOML file; every combination is a run. Killed at any moment, the same call goes on, and what
is finished is never trained again.
"""

import tempfile

import matplotlib.pyplot as plt

import normscope as ns

spec = {
    "base": {"net": "resnet8", "data": "digits", "epochs": 4, "train_size": 1000},
    "axes": {"norm": ["batch", "none"], "lr": [1.0, 0.1, 0.01]},
}
runs = ns.sweep(spec, tempfile.mkdtemp(), workers=1)
print(runs["outcome"].to_pandas())
last = runs["test_accuracy"].isel(epoch=-1)
for norm in ("batch", "none"):
    plt.plot(runs["lr"], last.sel(norm=norm), "o-", label=norm)
plt.xscale("log")
plt.xlabel("learning rate")
plt.ylabel("test accuracy after 4 epochs")
plt.legend(title="norm")
