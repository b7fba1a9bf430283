"""The text encoder's layers as transformers 4 has them: two masks to a layer, which returns a tuple.

To be loaded under the name of the package's own module; see text_encoders.old_clip.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN


class CLIPAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.num_heads, self.dropout = config.num_attention_heads, config.attention_dropout
        self.scale = (config.hidden_size // self.num_heads) ** -0.5
        width = config.hidden_size
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self, hidden_states, attention_mask=None, causal_attention_mask=None, output_attentions=False
    ):
        query, key, value = (
            each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for each in (
                self.q_proj(hidden_states) * self.scale,
                self.k_proj(hidden_states),
                self.v_proj(hidden_states),
            )
        )
        scores = query @ key.transpose(-1, -2)
        for mask in (causal_attention_mask, attention_mask):
            scores = scores if mask is None else scores + mask
        weights = scores.softmax(dim=-1)
        mixed = self.out_proj((weights @ value).transpose(1, 2).flatten(2))
        return mixed, weights if output_attentions else None


class CLIPMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states):
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class CLIPEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = CLIPAttention(config), CLIPMLP(config)
        self.layer_norm1, self.layer_norm2 = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(2)
        )

    def forward(self, hidden_states, attention_mask, causal_attention_mask, output_attentions=False):
        mixed, weights = self.self_attn(
            hidden_states=self.layer_norm1(hidden_states),
            attention_mask=attention_mask,
            causal_attention_mask=causal_attention_mask,
            output_attentions=output_attentions,
        )
        hidden_states = hidden_states + mixed
        hidden_states = hidden_states + self.mlp(self.layer_norm2(hidden_states))
        return (hidden_states, weights) if output_attentions else (hidden_states,)


class CLIPEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, inputs_embeds, attention_mask=None, output_attentions=False):
        """The states before and after each layer, and the weights of each layer's attention if asked for."""
        lowest, (batch, tokens) = torch.finfo(inputs_embeds.dtype).min, inputs_embeds.shape[:2]
        causal = torch.full((tokens, tokens), lowest).triu(1).expand(batch, 1, tokens, tokens)
        if attention_mask is not None:
            padded = attention_mask[:, None, None] == 0
            attention_mask = torch.zeros(causal.shape).masked_fill(padded, lowest)
        states, weights = [inputs_embeds], []
        for layer in self.layers:
            outputs = layer(states[-1], attention_mask, causal, output_attentions=output_attentions)
            states.append(outputs[0])
            weights += outputs[1:]
        return states, weights
