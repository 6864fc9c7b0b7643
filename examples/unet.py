"""
A U-Net and a loss of its own
=============================

Denoising digits: pixels in, pixels out, squared error. The instruments take any loss of model and batch; the gradient
of each layer shows whether the skip connection carries it.
"""

import torch
from torch import nn

import normscope as ns


class UNet(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.encode = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.bottom = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.decode = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, noisy):
        fine = self.encode(noisy).relu()
        coarse = self.bottom(self.down(fine).relu()).relu()
        return self.decode(torch.cat([fine, self.up(coarse)], 1))


def squared_error(model, batch):
    noisy, clean = batch
    return nn.functional.mse_loss(model(noisy), clean)


torch.manual_seed(0)
clean = ns.load_data("digits").train_images[:128]
batch = clean + 0.5 * torch.randn_like(clean), clean
model = UNet()

norms = ns.gradient_norms(model, batch, loss_fn=squared_error)
print(norms["update_ratio"].to_series().round(3))
ns.plot_relative_loss(ns.relative_loss(model, batch, loss_fn=squared_error))
