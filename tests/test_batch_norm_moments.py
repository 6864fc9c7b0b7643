"""Moments taken over from the batch norm behind a layer are those of the layer's own output, or are not taken."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import no_trace

from normscope.model.layers import record_calls
from normscope.probes import channel_moments as probe
from normscope.probes.channel_moments import channel_moments

IMAGES = 3 + 2 * torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(32) % 4


class Net(nn.Module):
    """A convolution of 16,384 outputs and more, a batch norm registered behind it, and what lies between."""

    def __init__(self, between: str = "") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16, momentum=None if between == "no momentum" else 0.3)
        self.between = between
        self.fc = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if self.between == "in place":
            y.relu_()
        elif self.between == "another":
            y = y + 1
        elif self.between == "twice":
            y = self.bn(y) + self.conv(x + 1)
        elif self.between == "frozen":
            self.bn.eval()
        if self.between == "not called":
            y = y.relu()
        elif self.between == "functional":
            y = F.batch_norm(y, None, None, training=True)
        elif self.between == "once more":
            y = self.bn(1 + self.bn(y))
        elif self.between == "written to":
            y = self.bn(y)
            self.bn.reset_running_stats()
        else:
            y = self.bn(y)
        return self.fc(y.relu().mean((2, 3)))


def twin(net: nn.Module, images: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance of every watched output in float64."""
    found = {}

    def on_call(call):
        over = [d for d in range(call.output.ndim) if d != 1]
        variance, mean = torch.var_mean(call.output.double(), over, correction=0)
        found[call.name] = mean, variance

    with torch.no_grad(), record_calls(net.train(), on_call):
        net(images)
    return found


@pytest.mark.parametrize(
    "between",
    [
        "",
        "no momentum",
        "in place",
        "another",
        "twice",
        "frozen",
        "not called",
        "functional",
        "once more",
        "written to",
    ],
)
@pytest.mark.parametrize("scale", [1, 1e25, 1e-25])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels last"])
def test_equal_a_float64_twin_whatever_lies_between(between: str, scale: float, format: torch.memory_format) -> None:
    images = (IMAGES * scale).contiguous(memory_format=format)
    expected = twin(Net(between), images)
    net = Net(between)
    with no_trace(net, (images, LABELS)):
        dataset = channel_moments(net, (images, LABELS))
    assert net.bn.momentum == (None if between == "no momentum" else 0.3)
    assert dataset["layer"].values.tolist() == list(expected)
    for layer, (mean, variance) in expected.items():
        if not variance.isfinite().all():  # batch norm overflows at 1e25 by itself
            continue
        one = dataset.sel(layer=layer, channel=slice(0, len(mean) - 1))
        # float32 sums over 2,048 values a channel, of means up to two deviations off 0
        torch.testing.assert_close(torch.from_numpy(one["mean"].values), mean, rtol=1e-5, atol=1e-5 * scale)
        torch.testing.assert_close(torch.from_numpy(one["variance"].values), variance, rtol=2e-5, atol=0)


def test_nothing_is_read_where_batch_norm_follows_at_once(monkeypatch) -> None:
    read = []
    monkeypatch.setattr(probe, "short_sums", lambda output, dim: read.append(tuple(output.shape)))
    channel_moments(Net(), (IMAGES, LABELS))
    assert read == [(32, 4)]


def test_what_came_in_vain_is_read_before_the_next_layer(monkeypatch) -> None:
    calls = []
    kept = probe.exact_moments
    monkeypatch.setattr(probe, "short_sums", lambda output, dim: None)
    monkeypatch.setattr(probe, "exact_moments", lambda output, dim: calls.append(output.shape[1]) or kept(output, dim))
    channel_moments(Net("not called"), (IMAGES, LABELS))
    assert calls == [16, 4]
