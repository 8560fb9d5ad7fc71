"""The whole policy: one VLM, one action expert, two losses, and the line that keeps them apart.

    L = cross-entropy(FAST tokens, text)  +  alpha * || expert(x_t, t | memory) - (action - noise) ||^2

    query \\ key           picture + prompt    words of the answer    FAST tokens    expert's action tokens
    picture + prompt       all                 .                      .              .
    words of the answer    all                 causal                 .              .
    FAST tokens            all                 all                    causal         .
    action tokens          all (*)             all                    never          all (of the same noise)
    (*) in half of the training samples less: VLA.flow_loss

The expert must not see FAST tokens: they are the answer, and they do not exist yet when the robot acts. The
paper has one transformer with two weight sets (arXiv 2505.23705). No VLM token attends to the expert, so two
passes compute the same here: the VLM leaves (K, V) of the prefix and of its first words in each layer, and the
expert runs on this memory. Training and acting share that code, and insulation is one `.detach()`: `VLA.memory_for_expert`.

Read next: episodes.py (or at once train.py, where the two losses are added up)
"""
from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import nn

from nano_ki import flow
from nano_ki.decoder import VLM, alternate
from nano_ki.expert import Expert
from nano_ki.language import END, FIRST_FAST, GOAL, HEIGHT, LANDING, NUMBER0, PAD, SLOTS, X, Y
from nano_ki.ranks import threads_kept
from nano_ki.vit import STRIDE

# Robot samples come first (as many as chunks), then questions. image uint8 [B, S, S, 3], prompt ids [B, 7], answer ids [B, F]
# with PAD behind (a robot's: landing place, FAST tokens, <end>), chunk [robots, H, A].
# Questions about two pages: pages uint8 [Q, 2, S, S, 3], words ids [Q, 2, 7] (after each picture), reply ids [Q, 2].
Batch = namedtuple("Batch", "image prompt answer chunk pages words reply")

class VLA(nn.Module):
    """config: nano_ki.config.Config; fast: the fitted FAST tokenizer of the action chunks."""

    def __init__(self, config, fast):
        super().__init__()
        c = self.config = config
        longest = LANDING + fast.horizon * fast.dims + 1        # of an answer: words, one token a coefficient, <end>
        self.vlm = VLM(c.vlm_width, c.vit_depth, c.depth, c.image, FIRST_FAST + fast.vocab, SLOTS, longest)
        self.expert = Expert(c.expert_width, c.vlm_width, c.depth, fast.horizon, fast.dims)
        self.fast, self.insulate = fast, c.insulate
        counts = torch.full((FIRST_FAST + fast.vocab,), longest)          # coefficients that each id stands for (a word: too many to fit)
        counts[FIRST_FAST:], counts[END] = torch.from_numpy(fast.lengths), 0
        self.register_buffer("counts", counts, persistent=False)
        self.said = LANDING * c.subtask                 # words with which the answer begins, and which the expert reads

    def memory_for_expert(self, memory):
        """What the expert may read: per layer the (K, V) of the prefix and the subtask's words, insulated or not.

        THE STOP-GRADIENT. It detaches K and V of every layer, but only for the expert. So the flow loss reaches
        no weight of the VLM. The cross-entropy reaches all of them, because the VLM's own queries attend to the
        undetached K and V inside VLM.forward. The forward values are the same either way."""
        if self.insulate:
            memory = [(k.detach(), v.detach()) for k, v in memory]
        return memory

    def forward(self, batch, generator=None, memory=None):
        """`losses`, or the flow loss alone on a memory that they left, in the precision that config asks for. (Called as
        model(...), so that DDP and FSDP see it.)"""
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            if memory is None:
                return self.losses(batch, generator)
            return {"ce": batch.chunk.new_zeros(()), "flow": self.flow_loss(batch, memory, generator), "memory": memory}

    def losses(self, batch, generator=None):
        """The named losses of one batch: {"fast", "text", "flow", "ce"}, scalars, and "memory", which the expert read.
        "ce" is the mean over all real answer tokens, FAST and text alike (never over padding); "fast" and "text" (words and
        <end>) are its two parts. Where the VLM has no loss (flow-only recipes) the three are 0."""
        robots = len(batch.chunk)
        loss, memory = self.read((batch.image, batch.prompt), batch.answer, self.said)
        out = dict.fromkeys(("fast", "text", "ce", "flow"), memory[0][0].new_zeros(()))
        if self.config.cross_entropy:
            answers = [(loss, batch.answer)]
            if len(batch.reply):
                answers.append((self.read(alternate(batch.pages, batch.words), batch.reply)[0], batch.reply))
            loss, ids = (torch.cat([x.flatten() for x in both]) for both in zip(*answers, strict=True))
            masks = {"fast": ids >= FIRST_FAST, "text": (ids < FIRST_FAST) & (ids != PAD), "ce": ids != PAD}
            out |= {name: (loss * mask).sum() / mask.sum().clamp(min=1) for name, mask in masks.items()}
        if self.config.flow_loss:
            out["memory"] = self.memory_for_expert([(k[:robots], v[:robots]) for k, v in memory])
            out["flow"] = self.flow_loss(batch, out["memory"], generator)
        return out

    def read(self, segments, answer, keep=0):
        """Cross-entropy of each answer token after these segments, [B, F], 0 on padding (None: no loss); memory, as VLM.forward."""
        prefix = self.vlm.prefix(*segments)
        if not self.config.cross_entropy:
            return None, self.vlm(prefix, answer[:, :keep] if keep else None, keep=keep)[1]
        logits, memory = self.vlm(prefix, answer[:, :-1], keep=keep)
        return F.cross_entropy(logits.transpose(1, 2).float(), answer, reduction="none", ignore_index=PAD), memory

    def flow_loss(self, batch, memory, generator=None):
        """The mean over chunks and noises of the squared error of the expert's velocities. Where the VLM says a subtask, the expert is
        told no more than goal, finger and subtask of every other sample. Picture and object's name say where to land, too, but surely
        for shown kinds only; so it learns to go by the subtask (new both, seed 1: .94 in place of .85)."""
        action = batch.chunk[:, None].expand(-1, self.config.flow_draws // self.config.updates, -1, -1)
        noise = torch.empty_like(action, memory_format=torch.contiguous_format).normal_(generator=generator)
        t = flow.sample_time(*action.shape[:-2], generator=generator, device=action.device)
        x, target, parts = flow.path(action, noise, t), flow.target(action, noise), [(slice(None), slice(None))]         # (samples, tokens read)
        if self.said:
            told = [(self.config.image // STRIDE) ** 2 + slot for slot in (GOAL, X, Y, HEIGHT, *range(SLOTS, SLOTS + self.said))]
            parts = [(slice(0, None, 2), slice(None)), (slice(1, None, 2), told)]
        velocity = [self.expert(x[i], t[i], [(k[i, :, j], v[i, :, j]) for k, v in memory]) for i, j in parts if len(x[i])]
        return F.mse_loss(torch.cat(velocity).float(), torch.cat([target[i] for i, _ in parts]))

    @torch.inference_mode()
    def act(self, image, prompt, generator=None, steps=None):
        """Flow: one pass over the prefix, the words of the subtask, then `steps` Euler steps on this memory -> chunks [B, H, A].
        The actions are normalised (fast.restore gives table units). steps: default config.euler_steps. One robot gets
        one CPU thread: for products so small a second one is no faster, and on a busy machine four times slower."""
        with threads_kept(1 if len(image) == 1 else None):
            memory = self.remember(image, prompt)
            noise = torch.empty(len(image), 1, self.fast.horizon, self.fast.dims, device=image.device)
            noise.normal_(generator=generator)
            times = flow.times(steps or self.config.euler_steps, image.device)
            each = iter(self.expert.modulation(times[:-1]))              # of all times at once
            x = flow.euler(lambda x, t: self.expert(x, t, memory, next(each)), noise, times)
        return x[:, 0]

    def remember(self, image, prompt):
        """What the expert reads when it acts: the memory of the prefix, and of the words that the VLM then says itself."""
        logits, memory = self.vlm(self.vlm.prefix(image, prompt))
        for number in range(self.said):
            word = NUMBER0 + logits.flatten(1)[:, NUMBER0:FIRST_FAST].argmax(1)
            logits, memory = self.vlm.extend(word, number, memory)
        return memory

    @torch.inference_mode()
    def act_tokens(self, image, prompt):
        """Autoregressive: where to land in words, then FAST tokens, of those that can still decode -> chunks [B, H, A]."""
        size = self.fast.horizon * self.fast.dims
        with threads_kept(1 if len(image) == 1 else None):
            tokens = self.vlm.generate((image, prompt), self.said + size + 1, self.allowed, END).cpu().numpy()
        ids = [row[row >= FIRST_FAST] - FIRST_FAST for row in tokens]
        chunks = self.fast.normalise(self.fast.decode(ids)).astype("float32")
        return torch.from_numpy(chunks).to(image.device)

    def allowed(self, tokens):
        """Which ids may follow: ids [B, j] -> bool [B, V]. First the words of a place. Then FAST tokens that do not overrun
        the chunk, and <end> when it is full: the rule of FAST.allowed, over the VLM's vocabulary and on its device."""
        if tokens.shape[1] < self.said:
            words = torch.arange(len(self.counts), device=tokens.device)
            return ((words >= NUMBER0) & (words < FIRST_FAST)).expand(len(tokens), -1)
        left = self.fast.horizon * self.fast.dims - self.counts[tokens[:, self.said:]].sum(1, keepdim=True)
        mask = self.counts <= left
        mask[:, END] = left[:, 0] == 0
        return mask
