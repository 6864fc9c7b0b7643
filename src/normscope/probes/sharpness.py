"""How sharp is the loss here, and how large a learning rate does that leave? (the largest eigenvalues of the Hessian)

For a mini-batch B with gradient g = ∇ℓ_B(θ) and Hessian H = ∇²ℓ_B(θ)

    sharpness = λ₁(H),    curvature along the gradient = gᵀ H g / gᵀ g.

On a quadratic loss, descent with momentum μ is stable along an eigenvector if and only if lr · λ < 2(1 + μ); and one
step α along g takes the loss to its lowest at α = 1/curvature and back to where it was at 2/curvature.
"""

import math

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from normscope.curvature.hessian import Hessian, hessian
from normscope.curvature.lanczos import Ritz, lanczos, unit
from normscope.errors import InvalidConfig
from normscope.model.batch import Batch
from normscope.model.contract import instrument
from normscope.model.loss import LossFn, loss_units
from normscope.model.vector_norm import dot, norm
from normscope.results.schema import OF_LOSS, coord, measured, variable

VARIABLES = (
    coord("rank", "rank, the largest first", "1 is the largest"),
    variable("eigenvalue", "rank", "eigenvalue of the Hessian", "λ"),
    variable("residual", "rank", "residual of the eigenvector", "‖Hv − λv‖"),
    variable("error", "rank", "error of the eigenvalue, at most", "products' rounding included"),
    variable("converged", "rank", "known to the tolerance"),
    variable("lowest_eigenvalue", "", "lowest eigenvalue of the Hessian", "an upper bound"),
    variable("lowest_error", "", "error of the lowest eigenvalue, at most"),
    variable("lowest_converged", "", "lowest known to the tolerance", "relative to the largest absolute eigenvalue"),
    variable("curvature", "", "curvature along the gradient", "gᵀHg / gᵀg"),
    variable("edge_lr", "", "learning rate at the edge of stability, 2(1 + μ)/λ₁"),
    variable("num_products", "", "Hessian-vector products"),
    variable("loss", "", "loss", "ℓ_B(θ)", units=OF_LOSS),
    variable("gradient_norm", "", "norm of the gradient", "‖g‖"),
    variable("threshold", "", "threshold 2(1 + μ)/lr", optional=True),
    variable("lr", "", "learning rate", "the one in use", optional=True),
)


def start_vector(gradient: Tensor, seed: int) -> Tensor:
    """(n,) the gradient's direction, which has much of the sharpest directions, and as much of a random one, which has
    something of all: an eigenvector at right angles to the gradient is found too."""
    generator = torch.Generator().manual_seed(seed)
    start = unit(torch.randn(len(gradient), generator=generator, dtype=gradient.dtype).to(gradient.device))
    if not bool(gradient.any()):
        return start
    start += unit(gradient)
    return start if bool(start.any()) else unit(gradient)  # one parameter: the two may be opposite


def _curvature_along_gradient(h: Hessian) -> float:
    """gᵀ H g / gᵀ g, by one product; NaN where g is zero."""
    direction = h.gradient()
    if not bool(direction.any()):
        return math.nan
    direction = unit(direction)
    return dot(direction, h.product(direction))


def _ritz_values(h: Hessian, *, count: int, lowest: bool, tolerance: float, max_products: int, seed: int) -> Ritz:
    """Lanczos's method until the `count` largest eigenvalues, and the lowest if asked for, are known to `tolerance`, or
    as well as products of their precision allow."""
    if count > h.size:
        raise InvalidConfig(f"num_eigenvalues is {count}, but the loss depends on {h.size} parameters only")
    known = Ritz(np.full(0, np.nan), np.full(0, np.nan))
    for known in lanczos(h.product, start_vector(h.gradient(), seed), seed=seed + 1):
        products = len(known.values)
        if products >= max_products:
            break
        rounding = h.precision * np.abs(known.values).max() + known.asymmetry
        top = known.errors[:count] <= np.maximum(tolerance * np.abs(known.values[:count]), rounding)
        bottom = not lowest or known.errors[-1] <= max(tolerance * np.abs(known.values).max(), rounding)
        if products >= count and top.all() and bottom:
            break
    return known


@instrument
def sharpness(
    model: nn.Module,
    batch: Batch,
    *,
    loss_fn: LossFn | None = None,
    num_eigenvalues: int = 1,
    lowest: bool = False,
    lr: float | None = None,
    momentum: float = 0.0,
    tolerance: float = 1e-3,
    max_products: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """The largest eigenvalues of the mini-batch's Hessian, by Lanczos's method, and its curvature along the gradient.

    The model is in training mode, so that under batch norm every example's loss has the batch's own statistics in it,
    and comes back untouched. Costs one forward and backward pass, and three to four times that for each product; holds
    the graph of both and one copy of the parameters for each product.

    Args:
        batch: `(inputs, labels)`, a mapping, or anything `loss_fn(model, batch)` takes.
        num_eigenvalues: how many of the largest. One that occurs several times may be found once.
        lowest: go on until the lowest eigenvalue is known as well; it is reported in any case.
        lr: the rate in use, if there is one: adds its threshold.
        momentum: μ of SGD, 0 to 1.
        tolerance: error that ends the search, relative to the eigenvalue.
        max_products: Hessian-vector products at most, the one along the gradient included.
        seed: of the random part of the start vector.

    Returns:
        Dataset over `rank` (1 is the largest): `eigenvalue`; `residual` ‖Hv − λv‖; `error`, how far off the eigenvalue
        may be (`lanczos.Ritz.errors`, and the products' rounding); `converged`, whether that is within the tolerance.
        Scalars: `lowest_eigenvalue` (of the products made, so an upper bound), `lowest_error` and `lowest_converged`,
        whether it is known to the tolerance times the largest absolute eigenvalue; `curvature` along the gradient (NaN
        where that is zero); `edge_lr` = 2(1 + μ)/λ₁, from which on descent is unstable (inf where λ₁ ≤ 0; while λ₁ has
        not converged, it is found too low and `edge_lr` too high, or NaN);
        `num_products`; `loss`; `gradient_norm`; with `lr` also `threshold` = 2(1 + μ)/lr and `lr`. NaN, and not
        converged, where the gradient or a product is not finite.

    Raises:
        InvalidConfig: a number that cannot be.
        InvalidModel: a loss that cannot be differentiated twice; and see `loss.checked_loss`.
        InvalidBatch, DeviceError: see `loss.checked_loss`.

    Example:
        The curvature of ℓ(w) = w² is 2, so that descent is stable below a rate of 1.

        >>> model = nn.Linear(1, 1, bias=False)
        >>> batch = (torch.ones(4, 1), torch.zeros(4, 1))
        >>> squares = lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> dataset = ns.sharpness(model, batch, loss_fn=squares)
        >>> round(float(dataset["eigenvalue"][0]), 5), round(float(dataset["edge_lr"]), 5)
        (2.0, 1.0)
    """
    _check(num_eigenvalues, lr, momentum, tolerance, max_products)
    curvature, values, errors, residuals = math.nan, *np.full((3, num_eigenvalues), np.nan)
    low = low_error = scale = math.nan
    products = 0
    with hessian(model, batch, loss_fn) as h:
        loss, gradient_norm = float(h.loss), float(norm(h.gradient()))
        if math.isfinite(gradient_norm):
            curvature = _curvature_along_gradient(h)
            products = int(gradient_norm > 0)
            known = _ritz_values(
                h,
                count=num_eigenvalues,
                lowest=lowest,
                tolerance=tolerance,
                max_products=max_products - products,
                seed=seed,
            )
            products += len(known.values)
            scale = float(np.abs(known.values).max())
            found = min(num_eigenvalues, len(known.values))
            values[:found], residuals[:found] = known.values[:found], known.residuals[:found]
            rounding = h.precision * scale + known.asymmetry
            errors[:found] = known.errors[:found] + rounding
            low, low_error = float(known.values[-1]), float(known.errors[-1] + rounding)
    converged = errors <= tolerance * np.abs(values)
    edge = 2 * (1 + momentum) / values[0] if values[0] > 0 else math.inf if converged[0] else math.nan
    parameter = next(p for p in model.parameters() if p.requires_grad)
    result = {
        "eigenvalue": values,
        "residual": residuals,
        "error": errors,
        "converged": converged,
        "lowest_eigenvalue": low,
        "lowest_error": low_error,
        "lowest_converged": low_error <= tolerance * scale,
        "curvature": curvature,
        "edge_lr": edge,
        "num_products": products,
        "loss": loss,
        "gradient_norm": gradient_norm,
        "rank": np.arange(1, num_eigenvalues + 1),
    }
    if lr is not None:
        result |= {"threshold": 2 * (1 + momentum) / lr, "lr": lr}
    config = {"momentum": momentum, "tolerance": tolerance, "seed": seed}
    units = loss_units(batch, loss_fn)
    return measured(VARIABLES, result, device=parameter.device, dtype=parameter.dtype, loss_units=units, **config)


def _check(num_eigenvalues: int, lr: float | None, momentum: float, tolerance: float, max_products: int) -> None:
    if num_eigenvalues < 1:
        raise InvalidConfig(f"num_eigenvalues must be at least 1, not {num_eigenvalues}")
    if max_products <= num_eigenvalues:
        raise InvalidConfig(
            f"max_products is {max_products}: {num_eigenvalues} eigenvalues and the gradient's curvature need "
            f"{num_eigenvalues + 1} or more"
        )
    if lr is not None and not 0 < lr < math.inf:
        raise InvalidConfig(f"lr must be positive and finite, not {lr}")
    if not 0 <= momentum < 1:
        raise InvalidConfig(f"momentum must lie in 0 to 1, 1 excluded, not {momentum}")
    if not 0 < tolerance < 1:
        raise InvalidConfig(f"tolerance must lie between 0 and 1, not {tolerance}")
