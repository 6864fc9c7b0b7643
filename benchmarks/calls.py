"""Every instrument as `call(model, batch, loss_fn=...)`, so that it ends soon: for attacks and for the zoo."""

from collections.abc import Callable, Mapping
from typing import Any

import normscope as ns

Call = Callable[..., Any]

PROBES: Mapping[str, Call] = {
    "channel_moments": ns.channel_moments,
    "gradient_cancellation": ns.gradient_cancellation,
    "gradient_histogram": ns.gradient_histogram,
    "gradient_noise": lambda model, batch, **k: ns.gradient_noise(model, batch, partitions=2, **k),
    "gradient_norms": ns.gradient_norms,
    "input_jacobian": lambda model, batch, **k: ns.input_jacobian(model, batch, num_examples=1, **k),
    "moments_along_step": lambda m, b, **k: ns.moments_along_step(m, b, step_size=0.1, fractions=[0, 1], **k),
    "output_gradients": ns.output_gradients,
    "relative_loss": lambda model, batch, **k: ns.relative_loss(model, batch, step_sizes=[0.1, 1.0], **k),
    "sharpness": lambda model, batch, **k: ns.sharpness(model, batch, max_products=4, **k),
}
SURGERY: Mapping[str, Call] = {
    "with_norm": lambda model, batch, **k: ns.with_norm(model, "batch", batch=batch, **k),
    "with_init": lambda model, batch, **_: ns.with_init(model, "orthogonal", seed=0),
}
SEARCHES: Mapping[str, Call] = {
    "stable_lr": lambda m, b, **k: ns.stable_lr(m, [b, b], optimizer="sgd", steps=3, seeds=1, **k),
    "diagnose": lambda m, b, **k: ns.diagnose(m, [b, b], optimizer="sgd", steps=3, seconds=0.2, **k),
    "check": lambda m, b, **k: ns.check(m, [b, b], optimizer="sgd", lr=0.1, steps=3, seeds=1, workers=1, **k),
}
CALLS: Mapping[str, Call] = {**PROBES, **SURGERY, **SEARCHES}
