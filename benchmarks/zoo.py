"""Does every probe work on models of timm and transformers as they come, and leave no trace?

Small models built from their configs, with random weights and inputs, under every probe. A call is *right* where it
gives an answer, *refused* where it says in one line what it cannot measure, a *bug* where it raises anything else or
calls itself one; and after each the model's state, modes, hooks and torch's random numbers are compared bit for bit.

    python -m benchmarks.zoo [rows.json [NAME ...]]

Rows are written after each model, and models that are in the file already are not run again.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
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

TEXT = (
    *("GPT2LMHeadModel", "GPTNeoForCausalLM", "GPTNeoXForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"),
    *("MixtralForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM"),
    *("Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen2MoeForCausalLM", "OlmoForCausalLM", "Olmo2ForCausalLM"),
    *("OPTForCausalLM", "BloomForCausalLM", "StableLmForCausalLM", "CohereForCausalLM", "CTRLLMHeadModel"),
    *("RwkvForCausalLM", "MambaForCausalLM", "GraniteForCausalLM", "SmolLM3ForCausalLM"),
    *("AlbertForSequenceClassification", "BertForSequenceClassification", "RobertaForSequenceClassification"),
    *("ModernBertForSequenceClassification", "DistilBertForSequenceClassification", "ElectraForSequenceClassification"),
    *("DebertaV2ForSequenceClassification", "ConvBertForSequenceClassification", "FNetForSequenceClassification"),
    *("MobileBertForSequenceClassification", "MPNetForSequenceClassification", "RoFormerForSequenceClassification"),
    *("NystromformerForSequenceClassification", "SqueezeBertForSequenceClassification", "XLMForSequenceClassification"),
    *("YosoForSequenceClassification", "CanineForSequenceClassification", "IBertForSequenceClassification"),
    *("T5ForConditionalGeneration", "UMT5ForConditionalGeneration", "BartForConditionalGeneration"),
    *("MBartForConditionalGeneration", "PegasusForConditionalGeneration", "MarianMTModel"),
    *("BlenderbotSmallForConditionalGeneration", "M2M100ForConditionalGeneration"),
)
"""transformers', at the sizes of `SIZES`."""

SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "num_heads", "n_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "dff", "encoder_ffn_dim", "decoder_ffn_dim"), 32
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 32),
    **dict.fromkeys(("d_kv", "head_dim"), 8),
    **dict.fromkeys(("embedding_size", "vocab_size"), 40),
    **dict.fromkeys(("num_experts", "num_local_experts", "state_size"), 4),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "decoder_start_token_id"), 0),
    **{"eos_token_id": 1, "num_labels": 3, "type_vocab_size": 2},
}
"""Of a config, as far as it has them."""

_IMAGES = """
    test_vit test_vit2 test_resnet test_efficientnet test_efficientnet_gn test_efficientnet_ln
    test_efficientnet_evos test_byobnet test_convnext test_convnext2 test_convnext3 test_nfnet resnet10t
    resnetv2_18 legacy_seresnet18 skresnet18 resnest14d mobilenetv3_small_050 mobilenetv4_conv_small
    tf_mobilenetv3_small_minimal_100 mobilevit_xxs mobilevitv2_050 convnext_atto inception_next_atto
    mambaout_femto vit_tiny_patch16_224 deit_tiny_patch16_224 eva02_tiny_patch14_224 convit_tiny pit_ti_224
    xcit_nano_12_p16_224 coat_lite_tiny pvt_v2_b0 tiny_vit_5m_224 swiftformer_xs efficientnet_lite0 nfnet_l0
    nf_regnet_b0 regnetx_002 regnety_002 dla46_c edgenext_xx_small efficientformerv2_s0 efficientvim_m1
    efficientvit_b0 efficientvit_m0 fasternet_t0 fastvit_t8 gcvit_xxtiny ghostnet_050 repghostnet_050
    hardcorenas_a hgnetv2_b0 lcnet_035 levit_128s gmlp_ti16_224 repvit_m0_9 rexnet_100 shvit_s1 starnet_s1
    ese_vovnet19b_slim_dw cs3darknet_s gcresnext26ts mnasnet_small mixnet_s spnasnet_100 fbnetc_100
    semnasnet_075 tinynet_e densenet121
"""

IMAGES = tuple(_IMAGES.split())
"""timm's, at 64 x 64 where they take it."""


def text_model(name: str) -> tuple[nn.Module, Any]:
    family: Any = getattr(importlib.import_module("transformers"), name)
    default = family.config_class()
    net = family(family.config_class(**{k: v for k, v in SIZES.items() if hasattr(default, k)}))
    ids = torch.randint(3, 40, (4, 8))
    return net, {"input_ids": ids, "labels": ids if "Classification" not in name else torch.arange(4) % 2}


def image_model(name: str) -> tuple[nn.Module, Any]:
    timm: Any = importlib.import_module("timm")
    try:
        net = timm.create_model(name, pretrained=False, num_classes=3, img_size=64)
    except TypeError:  # it takes any size
        net = timm.create_model(name, pretrained=False, num_classes=3)
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
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path and path.exists() else []
    for name in [name for name in names if all(row["model"] != name for row in rows)]:
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
            row = {"model": name, "probe": probe, "outcome": outcome, "trace": trace, "seconds": seconds, "said": said}
            rows.append(row)
            if said or trace:
                print(f"{name} {probe}: {outcome}{', TRACE' if trace else ''}: {said[:300]}", flush=True)
        of_model = [row for row in rows if row["model"] == name]
        counts = {kind: sum(row["outcome"] == kind for row in of_model) for kind in ("right", "refused", "bug")}
        print(f"{name}: {counts}, {sum(row['seconds'] for row in of_model):.1f} s", flush=True)
        if path is not None:
            write_json(str(path), {**about(), "rows": rows})
    counts = {kind: sum(row["outcome"] == kind for row in rows) for kind in ("right", "refused", "bug")}
    print(f"{len(rows)} calls: {counts}; {sum(row['trace'] for row in rows)} left a trace")


if __name__ == "__main__":
    main()
