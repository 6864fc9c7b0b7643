"""
A watch inside Lightning
========================

A Lightning run with the callback: pip install normscope[lightning].

python examples/watched_lightning.py [FOLDER]
normscope report FOLDER/watch
"""

import sys
import tempfile

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import normscope as ns
from normscope.integrations.lightning import Watch


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = ns.build_net("resnet20", norm="batch", in_channels=1, seed=0)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(folder: str) -> None:
    data = ns.load_data("digits")
    loader = DataLoader(TensorDataset(data.train_images, data.train_labels), batch_size=64, shuffle=True)
    callback = Watch(every=5)
    trainer = pl.Trainer(max_steps=10, default_root_dir=folder, callbacks=[callback], logger=False, accelerator="cpu")
    trainer.fit(Digits(), loader)
    assert callback.watch is not None
    print(callback.watch.record()["critical_multiple"].values)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
