"""The language side of the VLM: a prefix-LM decoder that leaves a memory.

The prefix (image tokens, prompt) is read bidirectionally; the answer (text or FAST tokens) is causal:

    query \\ key   prefix    answer
    prefix         all       .
    answer         all       causal

One forward pass gives logits for the answer and, per layer, the (K, V) of the prefix and of the answer's first `keep`
tokens. That *memory* is what the action expert reads, in training and when acting.

Try it: python -m nano_ki.decoder          Read next: flow.py
"""
import torch
import torch.nn.functional as F
from torch import nn

from nano_ki.vit import Block, ViT, linear, norm

PAGES = 2                    # pictures in one prefix at most

def alternate(pages, words):
    """Pictures [B, n, S, S, 3] and words [B, n, slots] -> the segments of a prefix: picture, words, picture, words ..."""
    return [segment for page in zip(pages.unbind(1), words.unbind(1), strict=True) for segment in page]

def prefix_mask(prefix, answer, device=None):
    """bool [L, L], L = prefix + answer: True where the row's token sees the column's."""
    length = prefix + answer
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask[:prefix, :prefix] = True
    return mask

class VLM(nn.Module):
    """Picture and prompt -> answer. vocabulary: words and FAST tokens; slots: prompt length; longest: answer tokens at most."""

    def __init__(self, width, vit_depth, depth, size, vocabulary, slots, longest):
        super().__init__()
        self.vit = ViT(width, vit_depth, size)
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embed.weight, std=.5)
        self.position = nn.Parameter(.5 * torch.randn(slots + longest, width))
        self.page = nn.Parameter(.5 * torch.randn(PAGES, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = linear(width, vocabulary, zero=True)
        self.slots = slots

    def prefix(self, *segments):
        """Pictures uint8 [B, S, S, 3] and words, ids [B, slots], in any order: picture, words, picture, words ...
        -> [B, T, D]. Each picture begins a new page, and its words belong to it."""
        read, page = [], -1
        for segment in segments:
            if segment.ndim == 4:
                page += 1
                read.append(self.vit(segment) + self.page[page])
            else:
                # A token shift adds the word before, so that one query can ask for "red star". Without it the VLM told
                # pucks apart by colour alone for 7,000 steps. With it, 400 more steps were enough.
                words = self.embed(segment)
                before = F.pad(words[:, :-1], (0, 0, 1, 0))
                read.append(words + before + self.position[:self.slots] + self.page[max(page, 0)])
        return torch.cat(read, 1)

    def forward(self, prefix, answer=None, layers=None, keep=0):
        """prefix [B, T, D], answer ids [B, F] or None -> logits [B, F + 1, V], memory. Logits j predict answer token j
        from the prefix and the tokens before j; the last one is what comes next. memory: per layer (k, v), each [B, N,
        T + keep, K], of the prefix and `keep` answer tokens. layers: use the first `layers` only (pretrain.py; None: all)."""
        x, length, mask = prefix, prefix.shape[1], None
        if answer is not None:
            place = self.position[self.slots:self.slots + answer.shape[1]]
            x = torch.cat((x, self.embed(answer) + place), 1)
            mask = prefix_mask(length, answer.shape[1], x.device)
        memory = []
        for block in self.blocks[:layers]:
            x, (k, v) = block(x, mask)
            memory.append((k[:, :, :length + keep], v[:, :, :length + keep]))
        return self.head(norm(x[:, length - 1:])), memory

    def extend(self, token, number, past):
        """Decode one token: ids [B] and their place in the answer. past: the keys and values so far, at first
        the memory. Returns the next logits [B, V], and past with this token appended."""
        x = (self.embed(token) + self.position[self.slots + number])[:, None]
        now = []
        for block, kv in zip(self.blocks, past, strict=True):
            x, kv = block(x, past=kv)
            now.append(kv)
        return self.head(norm(x[:, 0])), now

    def generate(self, segments, count, allow=None, end=None):
        """Greedy answer to a prefix of these segments, at most `count` tokens, ids [B, j]: it stops when all rows say `end`.
        allow(tokens [B, j]) -> bool [B, V] restricts the next one (None: all); end: id or None."""
        logits, past = self(self.prefix(*segments))
        logits, tokens = logits[:, -1], []
        for number in range(count):
            if allow is not None:
                seen = torch.stack(tokens, 1) if tokens else segments[-1][:, :0]
                logits = logits.masked_fill(~allow(seen), -torch.inf)
            tokens.append(logits.argmax(-1))
            if number + 1 == count or (end is not None and (tokens[-1] == end).all()):
                break
            logits, past = self.extend(tokens[-1], number, past)
        return torch.stack(tokens, 1)

if __name__ == "__main__":
    vlm = VLM(width=64, vit_depth=2, depth=4, size=48, vocabulary=400, slots=7, longest=20)
    prefix = vlm.prefix(torch.randint(0, 256, (8, 48, 48, 3), dtype=torch.uint8), torch.randint(0, 60, (8, 7)))
    logits, memory = vlm(prefix, torch.randint(0, 60, (8, 12)))
    print(f"prefix {prefix.shape} -> logits {logits.shape}, memory {len(memory)} x (k, v) {memory[0][0].shape}")
