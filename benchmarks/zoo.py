"""Does every probe work on models of timm and transformers as they come, and leave no trace?

Small models built from their configs, with random weights and inputs, under every probe. A call is *right* where it
gives an answer, *refused* where it says in one line what it cannot measure, a *bug* where it raises anything else or
calls itself one; and after each the model's state, modes, hooks and torch's random numbers are compared bit for bit.

    python -m benchmarks.zoo [rows.json [NAME ...]]
"""

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import normscope as ns
from benchmarks.machine import about, headline, write_json
from normscope.errors import InternalError, NormscopeError

PROBES: dict[str, Callable[[nn.Module, Any], Any]] = {
    "channel_moments": ns.channel_moments,
    "gradient_cancellation": ns.gradient_cancellation,
    "gradient_histogram": ns.gradient_histogram,
    "gradient_noise": lambda model, batch: ns.gradient_noise(model, batch, partitions=2),
    "gradient_norms": ns.gradient_norms,
    "input_jacobian": lambda model, batch: ns.input_jacobian(model, batch, num_examples=1),
    "moments_along_step": lambda model, batch: ns.moments_along_step(model, batch, step_size=0.01),
    "output_gradients": ns.output_gradients,
    "relative_loss": lambda model, batch: ns.relative_loss(model, batch, step_sizes=[0.01, 1.0]),
    "sharpness": lambda model, batch: ns.sharpness(model, batch, max_products=4),
    "with_norm": lambda model, batch: ns.with_norm(model, "batch", batch=batch),
    "with_init": lambda model, batch: ns.with_init(model, "orthogonal", seed=0),
}

TEXT = {
    "GPT2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}),
    "Bert": ("BertConfig", "BertForSequenceClassification", {"intermediate_size": 32, "num_labels": 3}),
    "Llama": ("LlamaConfig", "LlamaForCausalLM", {"intermediate_size": 32}),
    "Mixtral": ("MixtralConfig", "MixtralForCausalLM", {"intermediate_size": 32, "num_local_experts": 3}),
    "T5": ("T5Config", "T5ForConditionalGeneration", {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}),
    "Mamba": ("MambaConfig", "MambaForCausalLM", {"state_size": 4}),
    "Albert": ("AlbertConfig", "AlbertForSequenceClassification", {"intermediate_size": 32, "embedding_size": 8}),
}
"""Config, model and options beside those of all."""

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}

IMAGES = (
    "resnet10t",
    "mobilenetv3_small_050",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "efficientnet_lite0",
    "nfnet_l0",
)
"""timm's, at 64 x 64 where they take it."""


def text_model(name: str) -> tuple[nn.Module, Any]:
    package: Any = importlib.import_module("transformers")
    config, model, options = TEXT[name]
    options = {"vocab_size": 40, **(options if name in ("GPT2", "T5") else SMALL | options)}
    options |= {"num_layers": 2, "decoder_start_token_id": 0} if name == "T5" else {}
    net = getattr(package, model)(getattr(package, config)(**options))
    ids = torch.randint(3, 40, (4, 8))
    labels = ids if "Classification" not in model else torch.arange(4) % 2
    return net, {"input_ids": ids, "labels": labels}


def image_model(name: str) -> tuple[nn.Module, Any]:
    timm: Any = importlib.import_module("timm")
    options = {"img_size": 64} if name.startswith("vit") else {}
    net = timm.create_model(name, pretrained=False, num_classes=3, **options)
    return net, (torch.randn(4, 3, 64, 64), torch.arange(4) % 3)


def state(model: nn.Module) -> list[Any]:
    """What has to stay."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    return [
        [t.detach().clone() for t in tensors],
        [(m.training, type(m)) for m in model.modules()],
        hooks,
        [(t.requires_grad, t.grad is None) for t in tensors],
        torch.get_rng_state().tolist(),
    ]


def is_same(before: list[Any], after: list[Any]) -> bool:
    bits = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before[0], after[0], strict=True))
    return bits and before[1:] == after[1:]


def main() -> None:
    torch.set_num_threads(1)
    names = sys.argv[2:] or [*TEXT, *IMAGES]
    print((__doc__ or "").split("\n")[0], headline(), sep="\n")
    rows: list[dict[str, Any]] = []
    for name in names:
        torch.manual_seed(0)
        try:
            model, batch = text_model(name) if name in TEXT else image_model(name)
        except Exception as error:  # another release of the package has other names
            print(f"{name}: not built: {type(error).__name__}: {str(error)[:200]}", flush=True)
            continue
        model(**batch) if isinstance(batch, dict) else model(batch[0])  # lazy parts are there from here on
        for probe, call in PROBES.items():
            before, began, said = state(model), time.perf_counter(), ""
            try:
                call(model, batch)
                outcome = "right"
            except InternalError as error:
                outcome, said = "bug", str(error)
            except NormscopeError as error:
                outcome, said = "refused", str(error)
            except Exception as error:
                outcome, said = "bug", f"{type(error).__name__}: {error}"
            seconds = time.perf_counter() - began
            trace = not is_same(before, state(model))
            rows.append({"model": name, "probe": probe, "outcome": outcome, "trace": trace, "seconds": seconds})
            if said or trace:
                print(f"{name} {probe}: {outcome}{', TRACE' if trace else ''}: {said[:300]}", flush=True)
        of_model = [row for row in rows if row["model"] == name]
        counts = {kind: sum(row["outcome"] == kind for row in of_model) for kind in ("right", "refused", "bug")}
        print(f"{name}: {counts}, {sum(row['seconds'] for row in of_model):.1f} s", flush=True)
    counts = {kind: sum(row["outcome"] == kind for row in rows) for kind in ("right", "refused", "bug")}
    print(f"{len(rows)} calls: {counts}; {sum(row['trace'] for row in rows)} left a trace")
    if len(sys.argv) > 1:
        write_json(sys.argv[1], {**about(), "rows": rows})


if __name__ == "__main__":
    main()
