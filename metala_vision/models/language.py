"""A small causal language model of the blocks of MetaLA-ViT: what recall of sequences is tested with."""

import torch
from timm.models import checkpoint
from timm.models._manipulate import named_apply
from torch import Tensor, nn

from metala_vision.layers import MetaLABlock
from metala_vision.layers.mixers.registry import check_settings, mixers_of_blocks

from .init import init_module


class MetaLALanguageModel(nn.Module):
    """Embedding, causal blocks, norm, and logits by the embedding's own weights.

    Args:
        vocab_size: number of tokens.
        embed_dim: channels of a token; `2 * num_heads` divides it.
        depth: number of blocks.
        num_heads: heads of the mixer.
        mlp_ratio: hidden channels of the SwiGLU over `embed_dim`.
        mixer: the token mixer, as for `MetaLAViT`; it must have a causal form.
        local_conv: as for `MetaLAViT`; the convolution sees the last four tokens.
        self_aug: as for `MetaLAViT`.
        decay_bias: as for `MetaLAViT`.
        max_tokens: the longest sequence of a learned position embedding; 0 for none.
        drop_rate: dropout of the embedding and after the projections.

    Raises:
        ValueError: an unknown mixer, or one without a causal form; `num_heads` that does not fit.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int = 64,
        depth: int = 2,
        num_heads: int = 1,
        mlp_ratio: float = 3.0,
        mixer: str | tuple[str, ...] | list[str] = "metala",
        local_conv: bool = True,
        self_aug: bool = True,
        decay_bias: bool = True,
        max_tokens: int = 0,
        drop_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        mixers = mixers_of_blocks(mixer, depth)
        settings = dict(local_conv=local_conv, self_aug=self_aug, decay_bias=decay_bias)
        check_settings(mixers, True, **settings)
        self.vocab_size = self.num_classes = vocab_size
        self.embed_dim = self.num_features = embed_dim
        self.max_tokens = max_tokens
        self.grad_checkpointing = False
        self.embed = nn.Embedding(vocab_size, embed_dim, **dd)
        self.pos_embed = nn.Parameter(torch.empty(1, max_tokens, embed_dim, **dd)) if max_tokens > 0 else None
        self.embed_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            MetaLABlock(
                embed_dim,
                num_heads,
                mlp_ratio,
                scan=("row",),
                causal=True,
                proj_drop=drop_rate,
                mixer=mixers[i],
                **settings,
                **dd,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialises every parameter, also after `to_empty()`."""
        named_apply(init_module, self)
        nn.init.trunc_normal_(self.embed.weight, std=0.02)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Names without decay, beside the one-dimensional ones."""
        return {"pos_embed", "embed.weight"}

    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups for layer-wise rate decay."""
        return dict(stem=r"^embed|^pos_embed", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def forward_features(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N], integers -> normalised features [B, N, C]; those at t depend on the tokens up to t alone.

        Raises:
            ValueError: more tokens than the position embedding has.
        """
        x = self.embed(tokens)
        if self.pos_embed is not None:
            if tokens.shape[1] > self.max_tokens:
                raise ValueError(f"tokens: got {tokens.shape[1]} in a sequence, expected at most {self.max_tokens}")
            x = x + self.pos_embed[:, : tokens.shape[1]]
        x = self.embed_drop(x)
        for block in self.blocks:
            grid = (1, tokens.shape[1])
            x = checkpoint(block, x, grid) if self.grad_checkpointing else block(x, grid)
        return self.norm(x)

    def forward_head(self, x: Tensor) -> Tensor:
        """Features [..., C] -> logits of the next token [..., vocab_size]."""
        return nn.functional.linear(x, self.embed.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N], integers -> logits of the next token at each place [B, N, vocab_size]."""
        return self.forward_head(self.forward_features(tokens))
