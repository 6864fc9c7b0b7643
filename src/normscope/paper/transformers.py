"""Two small pre-norm transformers, a ViT and a character GPT, with any norm of `nets.norms` before each branch."""

from importlib.resources import files

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscope.nets.norms import make_norm

WIDTH, DEPTH, HEADS, PATCH, CONTEXT = 64, 6, 4, 4, 64

EMBEDDING_STD = 0.02
"""Of embeddings of positions and characters, as in GPT-2."""


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)), on (batch, tokens, features)."""

    def __init__(self, norm: str, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm1, self.norm2 = (make_norm(norm, WIDTH, channel_dim=-1) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """The shape of the input."""
        y = self.norm1(x)
        heads = [layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        # Spelled out: the fused kernels cannot be differentiated twice on every device.
        scores = heads[0] @ heads[1].transpose(-2, -1) / heads[0].shape[-1] ** 0.5
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        mixed = scores.softmax(-1) @ heads[2]
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Logits (batch, classes) of images (batch, channels, side, side), in patches of 4 × 4 pixels, mean-pooled."""

    def __init__(self, norm: str, *, channels: int, side: int, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, WIDTH, PATCH, PATCH)
        self.positions = nn.Parameter(EMBEDDING_STD * torch.randn((side // PATCH) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block(norm, causal=False) for _ in range(DEPTH)))
        self.norm = make_norm(norm, WIDTH, channel_dim=-1)
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class CharGPT(nn.Module):
    """Logits (batch, tokens, characters) of characters (batch, tokens)."""

    def __init__(self, norm: str, *, num_characters: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(num_characters, WIDTH)
        nn.init.normal_(self.characters.weight, std=EMBEDDING_STD)
        self.positions = nn.Parameter(EMBEDDING_STD * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block(norm, causal=True) for _ in range(DEPTH)))
        self.norm = make_norm(norm, WIDTH, channel_dim=-1)
        self.head = nn.Linear(WIDTH, num_characters)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits."""
        x = self.characters(characters) + self.positions[: characters.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def text() -> str:
    """English that is there without a network: what scikit-learn says of its data sets, 43 kB."""
    folder = files("sklearn.datasets.descr")
    pages = sorted((page for page in folder.iterdir() if page.name.endswith(".rst")), key=lambda page: page.name)
    return "".join(page.read_text(encoding="utf-8") for page in pages)


def characters() -> tuple[Tensor, int]:
    """The text as numbers, and how many different characters it has."""
    words = text()
    known = {character: number for number, character in enumerate(sorted(set(words)))}
    return torch.tensor([known[character] for character in words]), len(known)


def text_batch(examples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pieces of the text from places that the seed draws, (examples, CONTEXT), and the characters that follow."""
    numbers, _ = characters()
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(numbers) - CONTEXT, (examples,), generator=generator)
    pieces = numbers[starts[:, None] + torch.arange(CONTEXT + 1)]
    return pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous()
