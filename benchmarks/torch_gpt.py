"""The model, the optimizer and the update that lmjax is measured against, in PyTorch, as its users write them.

A GPT-2 style Transformer: learned positions, LayerNorm without bias, erf GELU, tied output layer, no dropout; fused
attention (`scaled_dot_product_attention`), fused AdamW, clipping at global norm 1.0; float32, or autocast to bfloat16;
eager, or through `torch.compile`. Generation keeps keys and values. Shapes: B rows, T positions, D width, H heads, K
head size, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, layers: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        for linear in (self.qkv, self.up):
            nn.init.normal_(linear.weight, std=0.02)
        for linear in (self.output, self.down):
            nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * layers))

    def forward(self, x_BTD: Tensor, cache: list[Tensor] | None = None, slot: int = 0) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.qkv(self.attention_norm(x_BTD)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q_BHTK, k_BHTK, v_BHTK = qkv.unbind(0)
        if cache is not None:
            keys, values = cache
            keys[:, :, slot : slot + T], values[:, :, slot : slot + T] = k_BHTK, v_BHTK
            k_BHTK, v_BHTK = keys[:, :, : slot + T], values[:, :, : slot + T]
        mixed_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=T > 1)
        x_BTD = x_BTD + self.output(mixed_BHTK.transpose(1, 2).reshape(B, T, D))
        return x_BTD + self.down(F.gelu(self.up(self.mlp_norm(x_BTD))))


class GPT(nn.Module):
    """Ids to logits, or with targets to the mean cross-entropy."""

    def __init__(self, *, layers: int, width: int, heads: int, context: int, vocab_size: int):
        super().__init__()
        self.heads, self.context = heads, context
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, layers) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        x_BTD = self.features(ids_BT)
        logits_BTV = F.linear(x_BTD, self.tokens.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())

    def features(self, ids_BT: Tensor, caches: list[list[Tensor]] | None = None, slot: int = 0) -> Tensor:
        T = ids_BT.shape[1]
        x_BTD = self.tokens(ids_BT) + self.positions.weight[slot : slot + T]
        for i, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, None if caches is None else caches[i], slot)
        return self.norm(x_BTD)

    @torch.inference_mode()
    def generate(self, prompt_BT: Tensor, count: int, features: Callable[..., Tensor] | None = None) -> Tensor:
        """`count` further ids of each row, drawn at temperature 1, with cached keys and values.

        In the dtype of the parameters. features: `self.features`, or what `torch.compile` makes of it.
        """
        weight_VD, features = self.tokens.weight, features or self.features
        shape = len(prompt_BT), self.heads, self.context, weight_VD.shape[1] // self.heads
        caches = [[torch.zeros(shape, dtype=weight_VD.dtype) for _ in range(2)] for _ in self.blocks]
        found, ids_BT, slot = [], prompt_BT, 0
        for _ in range(count):
            last_BD = features(ids_BT, caches, slot)[:, -1]
            slot += ids_BT.shape[1]
            ids_BT = torch.multinomial(F.softmax(F.linear(last_BD, weight_VD).float(), dim=-1), 1)
            found.append(ids_BT)
        return torch.cat(found, 1)


def make_optimizer(model: nn.Module, *, rate: float, beta2: float) -> torch.optim.Optimizer:
    """AdamW with the decay on matrices only (the embeddings are spared, as in lmjax)."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("blocks")]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, beta2), eps=1e-8, fused=True)


class Trainer:
    """One update after the other: forward, backward, clipping, AdamW."""

    def __init__(self, model: GPT, *, rate: float = 1e-3, beta2: float = 0.95, bfloat16: bool, compiled: bool):
        self.model, self.bfloat16 = model, bfloat16
        self.optimizer = make_optimizer(model, rate=rate, beta2=beta2)
        self.loss = torch.compile(model) if compiled else model

    def update(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """One update; the loss before it."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss(ids_BT, targets_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
