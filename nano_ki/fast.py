"""FAST action tokens (arXiv 2501.09747): an action chunk [H, D] -> a few integers, and back.

    normalise each dimension to about [-1, 1] -> DCT along time -> round(gamma * coefficient)
    -> one list, lowest frequency first, dimensions interleaved -> byte-pair encoding

Smooth motion has few large coefficients, all at low frequency; the rest of the list is zeros, which
byte-pair encoding swallows in long runs. The runs are longer still if quiet dimensions go to the back of
the list as well: `order="use"` sorts it by how often each coefficient was not zero. Here the pairs are
merged over an alphabet of *integers* -A..A. A = ceil(gamma * reach * sqrt(H)): by Cauchy-Schwarz no chunk
with |x| <= reach can leave it, so there are no unseen symbols. Every sequence drawn under `allowed`
decodes. Needs numpy alone.

Try it: python -m tutorials.studies.fast [FILE.npz --horizon 30]          Read next: episodes.py
"""
import json
import os
import warnings
import zlib

import numpy as np

VERSION = 2
GAP = -1                 # separates chunks in the flat array; never merged


def dct_matrix(horizon):
    """Orthonormal DCT-II, float64 [H, H]: coefficients = C @ signal, signal = C.T @ coefficients."""
    k, n = np.mgrid[:horizon, :horizon]
    return np.sqrt(2 / horizon) * np.cos(np.pi * k * (n + .5) / horizon) * np.where(k == 0, .5 ** .5, 1)


class FAST:
    """horizon H, low and high [D] (mapped to -1 and 1), gamma, alphabet A, merges [M, 2] (token ids).

    order: a permutation of 0..H*D-1, place i of the list holds coefficient order[i] of the array [H, D]
    (None: as it is, lowest frequency first). Token ids: 0..2A are the integers -A..A; 2A + 1 + m is merge
    m; there are `vocab` of them in all. `saturated` counts the coefficients that the last `encode` had to
    clip to the alphabet.
    """

    def __init__(self, horizon, low, high, gamma, alphabet, merges, order=None, transform="dct"):
        self.horizon, self.gamma, self.alphabet = int(horizon), float(gamma), int(alphabet)
        self.low, self.high = np.array(low, np.float64), np.array(high, np.float64)
        self.merges = np.array(merges, np.int64).reshape(-1, 2)
        self.dims, self.base, self.saturated = len(self.low), 2 * self.alphabet + 1, 0
        self.vocab = self.base + len(self.merges)
        self.constant = self.high <= self.low
        self.scale = np.where(self.constant, 1, (self.high - self.low) / 2)
        self.middle = (self.high + self.low) / 2
        if transform not in ("dct", "none"):
            raise ValueError(f"transform is {transform!r}; wanted 'dct' or 'none'")
        self.transform, self.dct = transform, dct_matrix(self.horizon) if transform == "dct" else np.eye(self.horizon)
        size = self.horizon * self.dims
        self.order = np.arange(size) if order is None else np.array(order, np.int64)
        if not np.array_equal(np.sort(self.order), np.arange(size)):
            raise ValueError(f"order is no permutation of 0..{size - 1}")
        self._place = np.argsort(self.order)
        spans = [(s,) for s in range(-self.alphabet, self.alphabet + 1)]
        for a, b in self.merges:
            if not 0 <= min(a, b) <= max(a, b) < len(spans):
                raise ValueError(f"merge {len(spans) - self.base} joins ids {a} and {b}; "
                                 f"wanted ids 0..{len(spans) - 1}, made before it")
            spans.append(spans[a] + spans[b])
        self.spans = spans                                    # the integers each token stands for
        self.lengths = np.array([len(s) for s in spans])      # how many they are
        self._flat = np.concatenate([np.array(s) for s in spans])
        self._start = np.cumsum(self.lengths) - self.lengths

    # -- making one ------------------------------------------------------------------------------

    @classmethod
    def fit(cls, chunks, gamma=10., vocab=1024, low=None, high=None, reach=3., most=2000,
            order="use", transform="dct"):
        """A tokenizer for chunks [N, H, D] (training data only).

        low, high: [D] known limits; by default the 1st and 99th percentile of each dimension, or wider where
        it moves rarely but far. reach: no chunk within +-reach (normalised) can saturate. most: chunks used for the merges (more change
        the token count by under 2 %). order: "use" puts the coefficients that are most often not zero
        first (in eighths; within one, lowest frequency first), "frequency" is the paper's order. transform:
        "none" leaves the DCT and the merges out: one bin and one token for each number, the naive way.
        ValueError for bad chunks, another order or a vocab below the alphabet.
        """
        chunks = finite(chunks, "chunks")
        if chunks.ndim != 3 or not chunks.size:
            raise ValueError(f"chunks have shape {chunks.shape}; wanted [N, H, D], none of them 0")
        if not (np.isfinite(gamma) and gamma > 0 and np.isfinite(reach) and reach > 0):
            raise ValueError(f"gamma is {gamma} and reach {reach}; both must be finite and above 0")
        flat = chunks.reshape(-1, chunks.shape[2])
        if low is None or high is None:
            low, high = _limits(flat, reach)
        low, high = np.broadcast_to(low, flat.shape[1:]), np.broadcast_to(high, flat.shape[1:])
        horizon = chunks.shape[1]
        alphabet = int(np.ceil(gamma * reach * (1 if transform == "none" else np.sqrt(horizon))))
        if not isinstance(vocab, (int, np.integer)) or vocab < 2 * alphabet + 1:
            raise ValueError(f"vocab is {vocab}; the alphabet alone has {2 * alphabet + 1} symbols at "
                             f"gamma {gamma:g}, H {horizon}: raise vocab or lower gamma")
        plain = cls(horizon, low, high, gamma, alphabet, [], transform=transform)
        if transform == "none":
            return plain
        if len(chunks) > most:
            chunks = chunks[np.linspace(0, len(chunks) - 1, most).astype(int)]
        symbols = plain._symbols(chunks)
        if order == "use":         # (measured: 7 to 8 % fewer tokens on three robots, 0 to 1 % on a fourth)
            used = (symbols != alphabet).mean(0)
            plain.order = np.argsort(-np.ceil(8 * used), kind="stable")
        elif order != "frequency":
            raise ValueError(f"order is {order!r}; wanted 'use' or 'frequency'")
        merges = _learn(symbols[:, plain.order], 2 * alphabet + 1, vocab)
        return cls(horizon, low, high, gamma, alphabet, merges, plain.order)

    # -- using it --------------------------------------------------------------------------------

    def normalise(self, actions):
        """[..., D] -> the same, about -1..1. Constant dimensions become 0."""
        return np.where(self.constant, 0, (actions - self.middle) / self.scale)

    def restore(self, normalised):
        """The inverse of normalise; constant dimensions become their constant."""
        return np.where(self.constant, self.middle, normalised * self.scale + self.middle)

    def encode(self, chunks):
        """[N, H, D] -> a list of N int arrays of token ids; one chunk [H, D] -> one int array.

        ValueError for another H or D, NaN or infinity.
        """
        chunks = finite(chunks, "chunks")
        if chunks.ndim not in (2, 3) or chunks.shape[-2:] != (self.horizon, self.dims):
            raise ValueError(f"chunks have shape {chunks.shape}; wanted [N, {self.horizon}, {self.dims}]"
                             f" or [{self.horizon}, {self.dims}]")
        if chunks.ndim == 2:
            return self.encode(chunks[None])[0]
        symbols = self._symbols(chunks)                       # (in blocks: they stay in the cache)
        return [ids for k in range(0, len(chunks), 2048) for ids in self._merge(symbols[k:k + 2048])]

    def decode(self, tokens, strict=True):
        """A list of N id sequences -> float64 [N, H, D]; one sequence -> [H, D].

        ValueError for ids out of range or not whole numbers, and for a sequence that does not stand for
        exactly H * D coefficients. strict=False cuts what is too much and takes what is missing (the end
        of the list: high frequencies) as 0; `self.repaired` says how many sequences that changed.
        """
        if isinstance(tokens, np.ndarray) and tokens.ndim == 2:
            tokens = list(tokens)
        if len(tokens) == 0 or np.ndim(tokens[0]) == 0:
            return self.decode([tokens], strict)[0]
        ids = [self._check_ids(t) for t in tokens]
        count = np.array([len(t) for t in ids])
        ids = np.concatenate(ids)
        length = self.lengths[ids]
        # position in _flat of every coefficient: the token's start, plus 0, 1, 2 ... within the token
        first = np.cumsum(length) - length
        symbols = self._flat[np.repeat(self._start[ids] - first, length) + np.arange(length.sum())]
        owner = np.repeat(np.arange(len(count)), count)
        total = np.bincount(owner, length, len(count)).astype(int)
        size = self.horizon * self.dims
        wrong = np.flatnonzero(total != size)
        self.repaired = len(wrong)
        if strict and len(wrong):
            raise ValueError(f"sequence {wrong[0]} stands for {total[wrong[0]]} of {size} coefficients; "
                             "draw tokens under allowed(), or pass strict=False to cut or fill with 0")
        if len(wrong):                                        # cut, or fill with 0
            row = np.repeat(np.arange(len(count)), total)
            column = np.arange(len(symbols)) - np.repeat(np.cumsum(total) - total, total)
            grid, keep = np.zeros((len(count), size)), column < size
            grid[row[keep], column[keep]] = symbols[keep]
            symbols = grid
        symbols = symbols.reshape(-1, size)[:, self._place]
        coefficient = symbols.reshape(-1, self.horizon, self.dims) / self.gamma
        return self.restore(np.matmul(self.dct.T, coefficient))

    def allowed(self, prefix):
        """Which tokens may follow prefix (ids [j] or [B, j]) -> bool [V + 1] or [B, V + 1].

        A token is allowed if it does not overrun H * D coefficients; the last entry, stop, only at
        exactly H * D. Whatever is drawn under this mask until stop, decodes.
        """
        prefix = np.asarray(prefix)
        ids = self._check_ids(prefix.ravel()).reshape(prefix.shape)
        left = self.horizon * self.dims - self.lengths[ids].sum(-1)
        left = np.asarray(left)[..., None]
        return np.concatenate((self.lengths <= left, left == 0), -1)

    def bound(self):
        """(RMSE, maximum error) that no chunk exceeds, in normalised units, when nothing saturated."""
        half = .5 / self.gamma
        return half, half * np.abs(self.dct).sum(0).max()

    def state(self):
        """Everything, as plain numbers and lists, with a checksum: one wrong digit would go unnoticed."""
        data = dict(format="nano_ki FAST", version=VERSION, horizon=self.horizon, gamma=self.gamma,
                    alphabet=self.alphabet, low=self.low.tolist(), high=self.high.tolist(),
                    merges=self.merges.tolist(), order=self.order.tolist(), transform=self.transform)
        return data | {"checksum": _checksum(data)}

    @classmethod
    def from_state(cls, data, source="the state"):
        """The inverse of `state`. ValueError for anything else; source: its name in the message."""
        try:
            if not isinstance(data, dict):
                raise ValueError(f"a {type(data).__name__}")
            if data["format"] != "nano_ki FAST" or data["version"] != VERSION:
                raise ValueError(f"format {data['format']!r}, version {data['version']!r}")
            if data["checksum"] != _checksum({k: v for k, v in data.items() if k != "checksum"}):
                raise ValueError("the checksum does not fit: something was changed")
            H, D, A = data["horizon"], len(data["low"]), data["alphabet"]
            numbers = np.array([data["low"], data["high"]], np.float64)
            merges = np.array(data["merges"])
            if not (type(H) is type(A) is int and H > 0 and A > 0 and D > 0):
                raise ValueError(f"horizon {H!r}, alphabet {A!r}, {D} dimensions")
            if not np.isfinite(numbers).all() or (numbers[1] < numbers[0]).any():
                raise ValueError("low and high are not finite and in order")
            if not (type(data["gamma"]) in (int, float) and 0 < data["gamma"] < np.inf):
                raise ValueError(f"gamma {data['gamma']!r}")
            if merges.size and (merges.ndim != 2 or merges.shape[1] != 2 or merges.dtype.kind != "i"):
                raise ValueError("merges are not pairs of whole numbers")
            if data["order"] is None or np.array(data["order"]).dtype.kind != "i":
                raise ValueError("order is no list of whole numbers")
            return cls(H, data["low"], data["high"], data["gamma"], A, merges, data["order"], data["transform"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{source} is not a whole version {VERSION} FAST tokenizer ({error}); "
                             "write it again with FAST.fit(...).save(path)") from None

    def save(self, path):
        """One JSON file, written to a temporary name first."""
        try:
            with open(f"{path}.part", "w", encoding="utf-8") as f:
                json.dump(self.state(), f)
            os.replace(f"{path}.part", path)
        except OSError as error:
            if os.path.exists(f"{path}.part"):
                os.remove(f"{path}.part")
            raise OSError(f"cannot write {path} ({error}); free some space, or choose another folder") from None

    @classmethod
    def load(cls, path):
        """The tokenizer that `save` wrote. ValueError for a foreign, truncated or edited file."""
        with open(path, encoding="utf-8", errors="replace") as f:
            text = f.read()
        try:
            data = json.loads(text)
        except ValueError as error:
            data = {"format": f"not JSON: {error}"}
        return cls.from_state(data, path)

    # -- inside ----------------------------------------------------------------------------------

    def _symbols(self, chunks):
        """[N, H, D] -> token ids of single integers [N, H * D], in the tokenizer's order."""
        coefficient = np.rint(self.gamma * np.matmul(self.dct, self.normalise(chunks)))
        clipped = np.clip(coefficient, -self.alphabet, self.alphabet)
        self.saturated = int((clipped != coefficient).sum())
        if self.saturated:
            warnings.warn(f"{self.saturated} of {coefficient.size} coefficients are beyond the tokenizer's alphabet and were "
                          "clipped: these chunks decode to other actions. Fit it on data that hold such motion, or raise reach",
                          stacklevel=3)
        return clipped.reshape(len(chunks), -1)[:, self.order].astype(np.int64) + self.alphabet

    def _merge(self, symbols):
        """Ids of single integers [N, H * D] -> a list of N shorter id arrays."""
        seq = _flatten(symbols)
        for m, (a, b) in enumerate(self.merges):              # in rank order, on the whole batch at once
            at = _matches(seq, a, b)
            if len(at):
                seq[at] = self.base + m
                seq = np.delete(seq, at + 1)
        starts = np.flatnonzero(seq == GAP)[:-1]
        return [part[1:].astype(np.int64) for part in np.split(seq[:-1], starts[1:])]

    def _check_ids(self, ids):
        ids = np.asarray(ids)
        if ids.size == 0:
            return np.zeros(ids.shape if ids.ndim == 1 else 0, np.int64)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"token ids are {ids.dtype} of shape {ids.shape}; wanted whole numbers [n]")
        if ids.min() < 0 or ids.max() >= self.vocab:
            raise ValueError(f"token ids run from {ids.min()} to {ids.max()}; wanted 0..{self.vocab - 1}")
        return ids.astype(np.int64)


def _limits(flat, reach):
    """(low, high) [D] to map to -1 and 1: the 1st and 99th percentile of actions [n, D]. A dimension that moves rarely
    but far (a gripper that opens once in an episode) gets wider ones, so that all of its motion lies within +-reach:
    what happens in more than one step of 10,000 is motion, what is rarer may be a glitch."""
    least, low, high, most = np.percentile(flat, (.01, 1, 99, 99.99), axis=0)
    still = high - low <= 1e-6 * (flat.max(0) - flat.min(0))                 # (q01 = q99, and yet not constant)
    low, high = np.where(still, flat.min(0), low), np.where(still, flat.max(0), high)
    middle, half = (low + high) / 2, (high - low) / 2
    wide = np.maximum(most - middle, middle - least) / reach
    return np.where(wide > half, middle - wide, low), np.where(wide > half, middle + wide, high)


def _checksum(data):
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())


def finite(array, name):
    try:
        array = np.asarray(array, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are not numbers of one shape: {error}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold {int((~np.isfinite(array)).sum())} values that are NaN or "
                         f"infinite; wanted finite numbers")
    return array


def _flatten(symbols):
    """ids [N, S] -> int16 [N * (S + 1) + 1] with a GAP before each chunk and at the end."""
    n, s = symbols.shape
    seq = np.full((n, s + 1), GAP, np.int16 if symbols.max() < 30000 else np.int32)
    seq[:, 1:] = symbols
    return np.append(seq.ravel(), seq.dtype.type(GAP))


def _matches(seq, a, b):
    """Positions of the pair (a, b), left to right, without overlaps (a a a holds one a a)."""
    at = np.flatnonzero(seq == a)
    at = at[seq[at + 1] == b]                  # (the last entry is a GAP, so at + 1 exists)
    if a == b and len(at) > 1:
        new_run = np.diff(at, prepend=-2) > 1
        run_start = np.maximum.accumulate(np.where(new_run, at, 0))
        at = at[(at - run_start) % 2 == 0]
    return at


def _learn(symbols, base, vocab):
    """Byte-pair encoding on integers: merge the most frequent neighbours until `vocab` tokens."""
    seq = _flatten(symbols).astype(np.int16 if vocab < 30000 else np.int32)
    counts = np.zeros((vocab, vocab), np.int32)

    def count(at, around, sign):
        """Count the pairs that begin at at + around (each once: at is sorted, so twins are neighbours)."""
        at = (at[:, None] + around).ravel()
        at = at[np.diff(at, prepend=-9) != 0]
        a, b = seq[at], seq[at + 1]
        real = (a != GAP) & (b != GAP)
        np.add.at(counts.ravel(), a[real].astype(np.intp) * vocab + b[real], sign)

    count(np.arange(len(seq) - 1), 0, 1)
    merges = []
    for new in range(base, vocab):
        a, b = divmod(int(counts.argmax()), vocab)
        if counts[a, b] < 2:
            break                                          # nothing repeats any more
        at = _matches(seq, a, b)
        count(at, np.array((-1, 0, 1)), -1)                # pairs that end here ...
        seq[at] = new
        seq = np.delete(seq, at + 1)
        at = at - np.arange(len(at))                       # where the new tokens are now
        count(at, np.array((-1, 0)), 1)                    # ... and those that begin
        merges.append((a, b))
    return merges
