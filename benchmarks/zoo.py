"""Does every call work on models of timm, transformers, pytorchcv and torch_geometric as they come, and leave no trace?

Small models built from their configs, with random weights and inputs, under every probe, a diagnosis, a check and a
watch. A call is *right* where it gives an answer, *refused* where it says in one line what it cannot measure, a *bug*
where it raises anything else or calls itself one; and after each the model's state, modes, hooks and torch's random
numbers are compared bit for bit. The numbers of `TWINS` are compared with those of the model in float64.

    python -m benchmarks.zoo [rows.json [NAME ...]]

Rows are written after each model, and models that are in the file already are not run again.
"""

import copy
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import normscope as ns
from benchmarks.calls import CALLS
from benchmarks.machine import about, headline, write_json
from normscope.errors import InternalError, NormscopeError

TWINS = {"gradient_norms": "weight_gradient_norm", "channel_moments": "mean", "relative_loss": "relative_loss"}
"""Variables that are also measured in float64."""


def watched(model: nn.Module, batch: Any, loss_fn: Any = None) -> None:
    """One step is measured; what a watch cannot measure is a note."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with ns.watch(model, optimizer, loss_fn, every=1) as watch:
        watch.step(1.0, batch)
    if watch.notes:
        raise NormscopeError(watch.notes[0])


TRIED = {**CALLS, "watch": watched}

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


_CV = """
    resnet10 preresnet10 seresnet10 sepreresnet10 resnext14_16x4d bninception
    mobilenet_wd4 fdmobilenet_wd4 mobilenetv2_wd4 shufflenet_g1_wd4
    shufflenetv2_wd2 menet108_8x1_g3 condensenet74_c4_g4 igcv3_wd4 mnasnet_small
    proxylessnas_cpu fbnet_cb efficientnet_b0 xdensenet121_2 densenet121 diracnet18v2 resnet20_cifar10
    nin_cifar10 wrn16_10_cifar10 ror3_56_cifar10 rir_cifar10 resdropresnet20_cifar10 pyramidnet110_a48_cifar10
    shakeshakeresnet20_2x16d_cifar10 irevnet301 bagnet9 dla34 airnet50_1x64d_r2 ibn_resnet50 sknet50 hrnet_w18_small_v1
    vovnet27s ghostnet spnasnet
"""

CV = tuple(f"pytorchcv:{name}" for name in _CV.split())
"""pytorchcv's, at 64 x 64 (32 x 32 for those of CIFAR)."""

GRAPHS = tuple(f"graph:{name}" for name in ("GCN", "GraphSAGE", "GAT", "GIN", "EdgeCNN"))
"""torch_geometric's, on one graph of 12 nodes."""


def cv_model(name: str) -> tuple[nn.Module, Any]:
    provider: Any = importlib.import_module("pytorchcv.model_provider")
    name = name.partition(":")[2]
    if name.endswith("cifar10"):
        return provider.get_model(name), (torch.randn(4, 3, 32, 32), torch.arange(4) % 3)
    net = provider.get_model(name, num_classes=3)
    if isinstance(getattr(net.features, "final_pool", None), nn.AvgPool2d):
        net.features.final_pool = nn.AdaptiveAvgPool2d(1)  # theirs is for 224 x 224
    return net, (torch.randn(4, 3, 64, 64), torch.arange(4) % 3)


def graph_model(name: str) -> tuple[nn.Module, Any]:
    nets: Any = importlib.import_module("torch_geometric.nn")
    data: Any = importlib.import_module("torch_geometric.data")
    net = getattr(nets, name.partition(":")[2])(8, 16, num_layers=2, out_channels=3, norm="batch")
    edges = torch.stack([torch.arange(12), (torch.arange(12) + 1) % 12])
    return net, data.Data(x=torch.randn(12, 8), edge_index=edges, y=torch.arange(12) % 3)


def graph_loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch.x, batch.edge_index), batch.y)


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


def build(name: str) -> tuple[nn.Module, Any, dict[str, Any]]:
    """A model, a batch, and the keyword arguments that each call is given."""
    if name.startswith("graph:"):
        return *graph_model(name), {"loss_fn": graph_loss}
    make = cv_model if name.startswith("pytorchcv:") else text_model if name in TEXT else image_model
    return *make(name), {}


def error_of_twin(probe: str, model: nn.Module, batch: Any, given: dict[str, Any], found: Any) -> float | None:
    """The largest difference from float64, over the largest number; None where there is no twin (dropout)."""

    def numbers(model: nn.Module, batch: Any, seed: int) -> Any:
        torch.manual_seed(seed)
        return TRIED[probe](model, batch, **given)[TWINS[probe]].values

    if given or (numbers(model, batch, 0) != numbers(model, batch, 1)).any():
        return None
    double = (
        {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        if isinstance(batch, dict)
        else (batch[0].double(), batch[1])
    )
    expected = numbers(copy.deepcopy(model).double(), double, 0)
    difference = abs(found[TWINS[probe]].values - expected)
    return float(difference.max() / abs(expected).max())


def tried(probe: str, model: nn.Module, batch: Any, given: dict[str, Any]) -> dict[str, Any]:
    """One call: its outcome, whether it left a trace, how long it took, what it said."""
    before, began, said, found = state(model), time.perf_counter(), "", None
    try:
        found = TRIED[probe](model, batch, **given)
        outcome = "right"
    except InternalError as error:
        outcome, said = "bug", str(error)
    except NormscopeError as error:
        outcome, said = "refused", str(error)
    except Exception as error:
        outcome, said = "bug", f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - began
    row = {"probe": probe, "outcome": outcome, "trace": not is_same(before, state(model)), "seconds": seconds}
    if found is not None and probe in TWINS:
        try:
            row["twin"] = error_of_twin(probe, model, batch, given, found)
        except Exception:  # the model itself does not compute in float64
            row["twin"] = None
    return row | {"said": said}


def main() -> None:
    torch.set_num_threads(1)
    names = sys.argv[2:] or [*TEXT, *IMAGES, *CV, *GRAPHS]
    print((__doc__ or "").split("\n")[0], headline(), sep="\n")
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path and path.exists() else []
    for name in [name for name in names if all(row["model"] != name for row in rows)]:
        torch.manual_seed(0)
        try:
            model, batch, given = build(name)
            given["loss_fn"](model, batch) if given else model(**batch) if isinstance(batch, dict) else model(batch[0])
        except Exception as error:  # another release of the package has other names
            print(f"{name}: not built: {type(error).__name__}: {str(error)[:200]}", flush=True)
            continue
        for probe in TRIED:
            row = {"model": name, **tried(probe, model, batch, given)}
            rows.append(row)
            if row["said"] or row["trace"]:
                print(
                    f"{name} {probe}: {row['outcome']}{', TRACE' if row['trace'] else ''}: {row['said'][:300]}",
                    flush=True,
                )
            if (row.get("twin") or 0) > 0.01:
                print(f"{name} {probe}: {row['twin']:.2g} from float64", flush=True)
        of_model = [row for row in rows if row["model"] == name]
        print(f"{name}: {counts(of_model)}, {sum(row['seconds'] for row in of_model):.1f} s", flush=True)
        if path is not None:
            write_json(str(path), {**about(), "rows": rows})
    print(f"{len(rows)} calls: {counts(rows)}; {sum(row['trace'] for row in rows)} left a trace")


def counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {kind: sum(row["outcome"] == kind for row in rows) for kind in ("right", "refused", "bug")}


if __name__ == "__main__":
    main()
