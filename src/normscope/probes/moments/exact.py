"""Mean and variance of each channel in float64 throughout: slow, and right wherever activations are finite."""

import torch
from torch import Tensor

from normscope.probes.moments.table import as_table

CHUNK = 2**17
"""Elements taken at a time in float64: a mebibyte, so that what is read twice is read from the cache."""


def exact_moments(output: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """As `moments`, in float64 throughout. On the CPU those of every column j of a table over a chunk of rows, pooled
    as mean = E mean_j and variance = E [variance_j + (mean_j − mean)²]."""
    output = output.detach()
    if output.device.type != "cpu":
        rows = output.movedim(dim, -1).reshape(-1, output.shape[dim])
        variance, mean = torch.var_mean(rows.double(), dim=0, correction=0)
        return mean, variance
    table, shape = as_table(output, dim)
    chunks = table.split(max(16, CHUNK // table.shape[1]))
    # The kernel behind batch norm's training pass, which centres before it squares.
    pairs = [torch.batch_norm_update_stats(chunk.double(), None, None, 0.0) for chunk in chunks]
    means, variances = (torch.stack([pair[i] for pair in pairs]).view(-1, *shape) for i in range(2))
    share = torch.tensor([len(chunk) / (len(table) * shape[0] * shape[2]) for chunk in chunks], dtype=torch.float64)
    share = share.view(-1, 1, 1, 1)
    mean = (share * means).sum((0, 1, 3))
    variance = (share * (variances + (means - mean[:, None]).square())).sum((0, 1, 3))
    return mean, variance
