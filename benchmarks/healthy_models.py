"""Are healthy models of other people's left alone?

Models of transformers and timm, built small from their own configurations with fresh weights, each on data that its
task can be learned from, with an optimizer and a rate that people train it with. `diagnose` may find no fault in any,
neither where it finds rates itself nor at the rate given. The list was fixed before it was first run.

    python -m benchmarks.healthy_models [rows.json [NAME ...]]        (needs transformers and timm)
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normscope as ns
from benchmarks.machine import headline, write_json
from normscope.diagnosis.finding import as_findings
from normscope.diagnosis.words import score_of, skipped

BATCHES, SIZE, STEPS = 40, 16, 80


@dataclass(frozen=True)
class Healthy:
    """A sound set-up."""

    name: str
    source: str
    """Package and class."""
    build: Callable[[], nn.Module]
    data: Callable[[], list[Any]]
    optimizer: str
    lr: float
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Data


def images(size: int = 32, channels: int = 3) -> list[Any]:
    """Handwritten digits, enlarged."""
    data = ns.load_data("digits")
    x = F.interpolate(data.train_images, size=(size, size), mode="bilinear").expand(-1, channels, -1, -1)
    n = BATCHES * SIZE
    return list(zip(x[:n].split(SIZE), data.train_labels[:n].split(SIZE), strict=True))


def pixel_images() -> list[Any]:
    """The same for a model called with names."""
    return [{"pixel_values": x, "labels": y} for x, y in images()]


def masks() -> list[Any]:
    """Which pixel is ink."""
    return [{"pixel_values": x, "labels": (x[:, 0] > x[:, 0].mean()).long()} for x, _ in images()]


def chain(length: int = 24, vocabulary: int = 32) -> Tensor:
    """Sequences of a Markov chain, each token followed by one of two."""
    g = generator()
    following = torch.randint(3, vocabulary, (vocabulary, 2), generator=g)
    tokens = torch.randint(3, vocabulary, (BATCHES * SIZE, length), generator=g)
    for i in range(1, length):
        pick = (torch.rand(len(tokens), generator=g) < 0.2).long()
        tokens[:, i] = following[tokens[:, i - 1], pick]
    return tokens


def text() -> list[Any]:
    return [{"input_ids": ids, "labels": ids.clone()} for ids in chain().split(SIZE)]


def padded_text() -> list[Any]:
    """Of different lengths, padded on the right."""
    g, out = generator(1), []
    for ids in chain().split(SIZE):
        mask = torch.arange(ids.shape[1]) < torch.randint(8, 25, (len(ids), 1), generator=g)
        out.append(
            {
                "input_ids": ids.masked_fill(~mask, 0),
                "attention_mask": mask.long(),
                "labels": ids.masked_fill(~mask, -100),
            }
        )
    return out


def masked_text() -> list[Any]:
    """A seventh of the tokens hidden and asked for."""
    g, out = generator(2), []
    for ids in chain().split(SIZE):
        hidden = torch.rand(ids.shape, generator=g) < 0.15
        out.append({"input_ids": ids.masked_fill(hidden, 1), "labels": ids.masked_fill(~hidden, -100)})
    return out


def sentences() -> list[Any]:
    """Does a token of the first four occur?"""
    return [{"input_ids": ids, "labels": (ids < 7).any(1).long()} for ids in chain().split(SIZE)]


def tagged() -> list[Any]:
    """The token class of every token, and whether the one before was even."""
    return [{"input_ids": ids, "labels": ids % 3 + 3 * (ids.roll(1, 1) % 2)} for ids in chain().split(SIZE)]


def copied() -> list[Any]:
    """Sequences to be given again."""
    return [{"input_ids": ids[:, :10], "labels": ids[:, :10].clone()} for ids in chain().split(SIZE)]


def embedded() -> list[Any]:
    """Text as vectors."""
    table = torch.randn(32, 64, generator=generator(3))
    return [{"inputs_embeds": table[ids], "labels": ids} for ids in chain().split(SIZE)]


def series() -> list[Any]:
    """Sines of random phases and their continuation."""
    g, out = generator(4), []
    for _ in range(BATCHES):
        phase = 6.3 * torch.rand(SIZE, 1, 2, generator=g)
        t = 0.3 * torch.arange(40)[None, :, None]
        values = torch.sin(t + phase) + 0.05 * torch.randn(SIZE, 40, 2, generator=g)
        out.append({"past_values": values[:, :32], "future_values": values[:, 32:]})
    return out


def waves() -> list[Any]:
    """Which of four tones?"""
    g, out = generator(5), []
    for _ in range(BATCHES):
        y = torch.randint(4, (8,), generator=g)
        t = torch.arange(1600) / 1600
        x = torch.sin(6.28 * 20 * (1 + y[:, None]) * t + 6.28 * torch.rand(8, 1, generator=g))
        out.append({"input_values": x + 0.3 * torch.randn(8, 1600, generator=g), "labels": y})
    return out


def table() -> list[Any]:
    """scikit-learn's diabetes, standardized."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    inputs, targets = torch.as_tensor(x).float(), torch.as_tensor(y).float()[:, None]
    inputs, targets = (v - v.mean(0) for v in (inputs, targets))
    inputs, targets = inputs / inputs.std(0), targets / targets.std()
    return list(zip(inputs.split(SIZE), targets.split(SIZE), strict=True))[:-1]


def mse(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


# Models


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=10, **options)

    return build


def of_transformers(kind: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, kind)(getattr(transformers, config)(**options))

    return build


def bfloat16(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: build().bfloat16()


def mixer() -> nn.Module:
    """A regression head on a tabular residual network."""
    return nn.Sequential(nn.Linear(10, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))


SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
BERT = {**SMALL, "vocab_size": 32, "max_position_embeddings": 40}
LLAMA = {**SMALL, "vocab_size": 32, "max_position_embeddings": 40, "num_key_value_heads": 2, "pad_token_id": 0}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
BART = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 32, "max_position_embeddings": 40}
BART |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
GPT2 = {
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "vocab_size": 32,
    "n_positions": 40,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
WAV = {**SMALL, "conv_dim": (16, 16), "conv_stride": (8, 4), "conv_kernel": (16, 8), "num_feat_extract_layers": 2}
WAV |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0, "num_labels": 4}
PATCH = {"num_input_channels": 2, "context_length": 32, "prediction_length": 8, "patch_length": 8, "patch_stride": 8}
PATCH |= {"d_model": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "loss": "mse"}
SEG = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32], "patch_sizes": [3, 3]}
SEG |= {"strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 32}

MODELS = [
    Healthy("resnet, SGD", "timm test_resnet", of_timm("test_resnet"), images, "momentum", 0.05),
    Healthy("resnet-t, AdamW", "timm resnet10t", of_timm("resnet10t"), images, "adamw", 1e-3),
    Healthy("lcnet", "timm lcnet_035", of_timm("lcnet_035"), images, "adamw", 2e-3),
    Healthy("mobilenet", "timm mobilenetv3_small_050", of_timm("mobilenetv3_small_050"), images, "adamw", 2e-3),
    Healthy("efficientnet", "timm test_efficientnet", of_timm("test_efficientnet"), images, "adam", 2e-3),
    Healthy("convnext", "timm test_convnext", of_timm("test_convnext"), images, "adamw", 1e-3),
    Healthy("nfnet", "timm test_nfnet", of_timm("test_nfnet"), images, "momentum", 0.02),
    Healthy("vit", "timm test_vit", of_timm("test_vit", img_size=32, patch_size=8), images, "adamw", 1e-3),
    Healthy("mambaout", "timm test_mambaout", of_timm("test_mambaout"), images, "adamw", 1e-3),
    Healthy("gpt2", "transformers GPT2", of_transformers("GPT2LMHeadModel", "GPT2Config", **GPT2), text, "adamw", 2e-3),
    Healthy(
        "llama", "transformers Llama", of_transformers("LlamaForCausalLM", "LlamaConfig", **LLAMA), text, "adamw", 2e-3
    ),
    Healthy(
        "llama, padded",
        "transformers Llama",
        of_transformers("LlamaForCausalLM", "LlamaConfig", **LLAMA),
        padded_text,
        "adamw",
        2e-3,
    ),
    Healthy(
        "llama in bfloat16",
        "transformers Llama",
        bfloat16(of_transformers("LlamaForCausalLM", "LlamaConfig", **LLAMA)),
        text,
        "adamw",
        2e-3,
    ),
    Healthy(
        "gpt2 on vectors",
        "transformers GPT2",
        of_transformers("GPT2LMHeadModel", "GPT2Config", **GPT2),
        embedded,
        "adamw",
        2e-3,
    ),
    Healthy(
        "qwen2, padded",
        "transformers Qwen2",
        of_transformers("Qwen2ForCausalLM", "Qwen2Config", **LLAMA),
        padded_text,
        "adam",
        2e-3,
    ),
    Healthy(
        "bert, classes",
        "transformers BERT",
        of_transformers("BertForSequenceClassification", "BertConfig", **BERT),
        sentences,
        "adamw",
        1e-3,
    ),
    Healthy(
        "bert, masked",
        "transformers BERT",
        of_transformers("BertForMaskedLM", "BertConfig", **BERT),
        masked_text,
        "adamw",
        2e-3,
    ),
    Healthy(
        "roberta, tags",
        "transformers RoBERTa",
        of_transformers("RobertaForTokenClassification", "RobertaConfig", num_labels=6, **BERT),
        tagged,
        "adamw",
        2e-3,
    ),
    Healthy(
        "electra, classes",
        "transformers ELECTRA",
        of_transformers("ElectraForSequenceClassification", "ElectraConfig", embedding_size=64, **BERT),
        sentences,
        "adamw",
        1e-3,
    ),
    Healthy(
        "t5",
        "transformers T5",
        of_transformers("T5ForConditionalGeneration", "T5Config", vocab_size=32, **T5),
        copied,
        "adamw",
        3e-3,
    ),
    Healthy(
        "bart",
        "transformers BART",
        of_transformers("BartForConditionalGeneration", "BartConfig", **BART),
        copied,
        "adamw",
        2e-3,
    ),
    Healthy(
        "vit, named",
        "transformers ViT",
        of_transformers("ViTForImageClassification", "ViTConfig", image_size=32, patch_size=8, num_labels=10, **SMALL),
        pixel_images,
        "adamw",
        1e-3,
    ),
    Healthy(
        "segformer",
        "transformers SegFormer",
        of_transformers("SegformerForSemanticSegmentation", "SegformerConfig", num_labels=2, **SEG),
        masks,
        "adamw",
        2e-3,
    ),
    Healthy(
        "patchtst",
        "transformers PatchTST",
        of_transformers("PatchTSTForPrediction", "PatchTSTConfig", **PATCH),
        series,
        "adamw",
        2e-3,
        lambda m, b: m(**b).loss,
    ),
    Healthy(
        "wav2vec2",
        "transformers Wav2Vec2",
        of_transformers("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", **WAV),
        waves,
        "adamw",
        1e-3,
    ),
    Healthy("regression on a table", "scikit-learn diabetes", mixer, table, "adam", 3e-3, mse),
]


def judged(case: Healthy, lr: float | None) -> dict[str, Any]:
    """What is said of it."""
    torch.manual_seed(0)
    batches = case.data()
    begun = time.process_time()
    tree = ns.diagnose(
        lambda: case.build(),
        batches,
        optimizer=case.optimizer,
        loss_fn=case.loss_fn,
        steps=STEPS,
        lr=lr,
    )
    faults = [finding for finding in as_findings(tree["findings"].to_dataset()) if finding.fault]
    return {
        "faults": [f"{finding.name}: {finding.sentence}" for finding in faults],
        "score": score_of(tree),
        "skipped": skipped(tree),
        "seconds": round(time.process_time() - begun, 1),
    }


def rows(names: list[str]) -> Iterator[dict[str, Any]]:
    """One for each model, with the rate found and with the one given."""
    for case in MODELS:
        if names and case.name not in names:
            continue
        row: dict[str, Any] = {"name": case.name, "source": case.source, "optimizer": case.optimizer, "lr": case.lr}
        for key, lr in (("found", None), ("given", case.lr)):
            try:
                row[key] = judged(case, lr)
            except Exception as error:  # what is refused counts
                row[key] = {"refused": f"{type(error).__name__}: {error}"}
        yield row


def main() -> None:
    out, names = (sys.argv[1] if len(sys.argv) > 1 else "-"), sys.argv[2:]
    print(headline())
    made = []
    for row in rows(names):
        made.append(row)
        for key in ("found", "given"):
            one = row[key]
            said = one.get("refused") or "; ".join(one["faults"]) or "no fault"
            numbers = f"score {one.get('score', float('nan')):.2f}, {one.get('seconds', 0)} s"
            print(f"{row['name']:22} rate {key}: {numbers}: {said}", flush=True)
        if out != "-":
            write_json(out, made)
    accused = sum(bool(row[key].get("faults")) for row in made for key in ("found", "given"))
    print(f"{accused} of {2 * len(made)} diagnoses accuse one of {len(made)} healthy models")


if __name__ == "__main__":
    main()
