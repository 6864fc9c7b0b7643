"""Does the post-mortem of a watch name what was broken: cause, layer, and the first bad example?

A hundred small trainings, each broken at one step in one way: an example that is not finite or a million times too
large, one layer's weights not finite or a million times too large, weights of a network in float16 that overflow it, a
rate a thousand to a million times too high. Right means: the cause, and the layer or the example where there is one,
within two steps. A failure that the training survives (its loss neither diverges nor jumps) is counted apart. So is one
that was to overflow float16 and, seen at the step itself, leaves every activation, loss and gradient finite: there two
layers were written over, and to say so is right.

    python -m benchmarks.injected_failures [rows.json]
"""

import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import headline, write_json
from benchmarks.training_runs import network, optimizer_of, source
from normscope.model.layers import own_parameters, watched_modules
from normscope.model.loss import cross_entropy, default_loss
from normscope.monitoring.watch import watch

NETS = ("mlp", "cnn", "resnet_bn", "mlp_deep", "resnet", "vit", "lstm", "gpt")
KINDS = ("not finite example", "huge example", "not finite layer", "huge layer", "overflow", "rate")
FINITE = "overflow that is none"
RATES = {"momentum": 0.02, "adam": 1e-3, "adamw": 1e-3}
EVERY = 10


def half(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0].half()), batch[1])


def failure(data: Any, number: int) -> dict[str, Any]:
    draw = random.Random(number)
    kind = KINDS[number % len(KINDS)]
    images = [net for net in NETS if net not in ("lstm", "gpt")]
    net = draw.choice(("mlp", "mlp_deep", "cnn") if kind == "overflow" else images if "example" in kind else NETS)
    name, at = draw.choice(tuple(RATES)), draw.randint(22, 55)
    torch.manual_seed(number)
    model = network(net, data.characters)
    precise = kind == "overflow"
    if precise:
        model, name = model.half(), "momentum"
    optimizer = optimizer_of(name, model, RATES[name])
    layers = watched_modules(model)
    layer, example = draw.choice(list(layers)), draw.randrange(8)
    place = draw.choice(("before", "after"))
    loss_fn = half if precise else default_loss
    with (
        tempfile.TemporaryDirectory() as folder,
        watch(model, optimizer, loss_fn, every=EVERY, out=folder, on_alarm=lambda alarm: None) as seen,
    ):
        for step, (x, y) in zip(range(at + 4), data.batches(net, number), strict=False):
            if step == at:
                with torch.no_grad():
                    if "example" in kind:
                        x = x.clone()
                        x[example] *= math.nan if kind.startswith("not") else 1e6
                    elif kind == "not finite layer":
                        own_parameters(layers[layer])[0].view(-1)[0] = draw.choice((math.nan, math.inf))
                    elif kind == "huge layer":
                        own_parameters(layers[layer])[0].mul_(1e6)
                    elif kind == "overflow":
                        for module in list(layers.values())[:2]:
                            own_parameters(module)[0].mul_(90)
                    else:
                        for group in optimizer.param_groups:
                            group["lr"] *= 10 ** draw.uniform(3, 6)
            optimizer.zero_grad()
            loss = loss_fn(model, (x, y))
            loss.backward()
            if step == at and precise and _all_finite([loss, *(p.grad for p in model.parameters())]):
                kind = FINITE
            if place == "before":
                seen.step(loss, (x, y))
            optimizer.step()
            if place == "after":
                seen.step(loss, (x, y))
    found = seen.postmortem
    cause = {"n": "bad batch", "h": "bad batch"}.get(kind[0], kind) if "example" in kind else kind
    cause = "broken layer" if "layer" in kind or kind == FINITE else cause
    seen_at = seen.alarms[0].step if seen.alarms else -1
    right = found is not None and found.cause == cause and at <= seen_at <= at + 2
    if found is not None and cause == "bad batch":
        right = right and found.example == example
    if found is not None and "layer" in kind:
        right = right and found.layer == layer
    said = "survived" if found is None else f"{found.cause} {found.layer} {found.example}"
    return {"kind": kind, "net": net, "optimizer": name, "place": place, "right": right, "said": said}


def _all_finite(tensors: Iterable[Tensor | None]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor is not None)


def main() -> None:
    torch.set_num_threads(1)
    data = source()
    print((__doc__ or "").split("\n")[0], headline(), sep="\n")
    found = [failure(data, number) for number in range(100)]
    for kind in (*KINDS, FINITE):
        of_kind = [row for row in found if row["kind"] == kind]
        survived = sum(row["said"] == "survived" for row in of_kind)
        wrong = Counter(row["said"] for row in of_kind if not row["right"] and row["said"] != "survived")
        print(
            f"{kind:22}{sum(row['right'] for row in of_kind):4} of {len(of_kind):3}, {survived} survived; {dict(wrong)}"
        )
    died = [row for row in found if row["said"] != "survived"]
    print(f"named right: {sum(row['right'] for row in died)} of {len(died)}; {len(found) - len(died)} survived")
    if len(sys.argv) > 1:
        write_json(sys.argv[1], {"rows": found})


if __name__ == "__main__":
    main()
