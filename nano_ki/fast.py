"""FAST action tokens (arXiv 2501.09747): an action chunk [H, D], H time steps of D action dimensions, becomes
a short list of integers. Encoding takes five steps, and decoding undoes them:

    normalise    map each dimension to about [-1, 1]
    DCT          the discrete cosine transform along time gives one coefficient per frequency
    round        gamma * coefficient becomes an integer in -A..A
    one list     all integers of the chunk, lowest frequency first, dimensions interleaved
    merge        byte-pair encoding: the most frequent pair of neighbours becomes a token, again and again

Smooth motion has few large coefficients, all at low frequency. The others are zeros, and merging packs long
runs of zeros into one token. A = ceil(gamma * reach * sqrt(H)) is so large that no chunk with |x| <= reach
leaves -A..A (Cauchy-Schwarz). A sequence drawn under the mask `allowed` always decodes. Needs numpy alone.

Try it: python -m tutorials.studies.fast [FILE.npz --horizon 30]          Read next: config.py
"""
import json
import os
import warnings
import zlib
from pathlib import Path

import numpy as np

VERSION = 2              # of the saved file
GAP = -1                 # stands between chunks in a long array of ids; it is never merged

def dct_matrix(horizon):
    """Orthonormal DCT-II, float64 [H, H]: coefficients = C @ signal, signal = C.T @ coefficients."""
    k, n = np.mgrid[:horizon, :horizon]
    return np.sqrt(2 / horizon) * np.cos(np.pi * k * (n + .5) / horizon) * np.where(k == 0, .5 ** .5, 1)

class FAST:
    """A tokenizer for chunks [H, D], H = horizon; `fit` makes one from data. Actions low [D] map to -1, high to 1. Ids
    0..2A stand for the integers -A..A, A = alphabet; id 2A + 1 + m stands for two ids, merges[m]. Place i of a list is
    coefficient order[i] of a flat chunk (None: i). `vocab` counts ids, `saturated` what the last `encode` clipped."""

    def __init__(self, horizon, low, high, gamma, alphabet, merges, order=None, transform="dct"):
        self.horizon, self.gamma, self.alphabet = int(horizon), float(gamma), int(alphabet)
        self.low, self.high = np.array(low, np.float64), np.array(high, np.float64)
        self.merges = np.array(merges, np.int64).reshape(-1, 2)
        self.dims, self.base, self.saturated = len(self.low), 2 * self.alphabet + 1, 0
        self.vocab, self._size = self.base + len(self.merges), self.horizon * self.dims
        self.constant, self.middle = self.high <= self.low, (self.high + self.low) / 2
        self.scale = np.where(self.constant, 1, (self.high - self.low) / 2)
        if transform not in ("dct", "none"):
            raise ValueError(f"transform is {transform!r}; wanted 'dct' or 'none'")
        self.transform, self.dct = transform, dct_matrix(self.horizon) if transform == "dct" else np.eye(self.horizon)
        self.order = np.arange(self._size) if order is None else np.array(order, np.int64)
        if not np.array_equal(np.sort(self.order), np.arange(self._size)):
            raise ValueError(f"order is no permutation of 0..{self._size - 1}")
        self.spans = list(np.arange(-self.alphabet, self.alphabet + 1)[:, None])        # the integers of each id
        for a, b in self.merges:
            if not 0 <= min(a, b) <= max(a, b) < len(self.spans):
                raise ValueError(f"a merge joins ids {a} and {b}; wanted ids made before it")
            self.spans.append(np.concatenate((self.spans[a], self.spans[b])))
        self.lengths = np.array([len(s) for s in self.spans])

    @classmethod
    def fit(cls, chunks, gamma=10., vocab=1024, low=None, high=None, reach=3., most=2000, order="use", transform="dct"):
        """A tokenizer for chunks [N, H, D]. ValueError for a bad chunk or setting. low, high: known limits [D];
        default: the 1st and 99th percentile, or wider where a dimension moves rarely but far. reach: no chunk within
        +-reach (normalised) can saturate. most: chunks to learn merges from; more save under 2 % of the tokens. order:
        "use" sorts the list by how often each coefficient is not zero, in eighths, so runs of zeros get longer;
        "frequency" is the paper's. transform: "none" leaves out the DCT and the merges: each number becomes a token."""
        chunks = finite(chunks, "chunks")
        if chunks.ndim != 3 or not chunks.size:
            raise ValueError(f"chunks have shape {chunks.shape}; wanted [N, H, D], none of them 0")
        if not (0 < gamma < np.inf and 0 < reach < np.inf):
            raise ValueError(f"gamma is {gamma} and reach {reach}; both must be finite and above 0")
        horizon, dims = chunks.shape[1:]
        if low is None and high is None:
            low, high = _limits(chunks.reshape(-1, dims), reach)
        low, high = (finite(np.broadcast_to(limit, dims), "low and high") for limit in (low, high))
        if (low > high).any():
            raise ValueError(f"low {low} is above high {high} in some dimension; exchange them")
        alphabet = int(np.ceil(gamma * reach * (1 if transform == "none" else np.sqrt(horizon))))
        if not isinstance(vocab, (int, np.integer)) or vocab < 2 * alphabet + 1:
            raise ValueError(f"vocab is {vocab}; wanted >= {2 * alphabet + 1}: raise vocab or lower gamma")
        plain = cls(horizon, low, high, gamma, alphabet, [], transform=transform)
        if transform == "none":
            return plain
        sample = np.linspace(0, len(chunks) - 1, min(most, len(chunks))).astype(int)
        symbols, places = plain._symbols(chunks[sample]), plain.order
        if order == "use":         # (measured: 7 to 8 % fewer tokens on three robots, 0 to 1 % on a fourth)
            places = np.argsort(-np.ceil(8 * (symbols != alphabet).mean(0)), kind="stable")        # (id A stands for 0)
        elif order != "frequency":
            raise ValueError(f"order is {order!r}; wanted 'use' or 'frequency'")
        return cls(horizon, low, high, gamma, alphabet, _learn(symbols[:, places], plain.base, vocab), places)

    def normalise(self, actions):
        """Actions [..., D] in the data's units -> [..., D], about -1..1. Constant dimensions become 0."""
        return np.where(self.constant, 0, (actions - self.middle) / self.scale)

    def restore(self, normalised):
        """The inverse of normalise. Constant dimensions become their constant."""
        return np.where(self.constant, self.middle, normalised * self.scale + self.middle)

    def _symbols(self, chunks):
        """Normalise, DCT, round, one list: chunks [N, H, D] -> ids of single integers [N, H * D]."""
        coefficient = np.rint(self.gamma * (self.dct @ self.normalise(chunks)))
        clipped = np.clip(coefficient, -self.alphabet, self.alphabet)
        stuck = self.constant & (np.abs(chunks - self.middle) > 1e-6 * (1 + np.abs(self.middle)))
        self.saturated = int((clipped != coefficient).sum() + stuck.sum())
        if self.saturated:
            warnings.warn(f"{self.saturated} of {coefficient.size} coefficients were clipped to the alphabet (or belong to a "
                          "dimension that was constant); they decode to other actions. Fit on such motion, or raise reach",
                          stacklevel=3)
        return clipped.reshape(len(chunks), self._size)[:, self.order].astype(np.int64) + self.alphabet

    def encode(self, chunks):
        """Chunks [N, H, D] -> a list of N arrays of ids; one [H, D] -> one. ValueError for another H or D, NaN, inf."""
        chunks = finite(chunks, "chunks")
        if chunks.ndim not in (2, 3) or chunks.shape[-2:] != (self.horizon, self.dims):
            raise ValueError(f"chunks have shape {chunks.shape}; wanted [N, {self.horizon}, {self.dims}]")
        if chunks.ndim == 2:
            return self.encode(chunks[None])[0]
        seq = _flatten(self._symbols(chunks))                  # GAP, chunk, GAP, chunk ... GAP
        for m, (a, b) in enumerate(self.merges):               # in the order learned, all chunks at once
            seq = _join(seq, a, b, self.base + m)
        return [part[1:].copy() for part in np.split(seq, np.flatnonzero(seq == GAP))[1:-1]]

    def decode(self, tokens, strict=True):
        """A list of N id sequences -> actions, float64 [N, H, D]; one -> [H, D]. ValueError for bad ids, or if they are
        not H * D integers: strict=False cuts them or adds 0 (high frequencies); `self.repaired` counts these."""
        if len(tokens) == 0 or np.ndim(tokens[0]) == 0:
            return self.decode([tokens], strict)[0]
        rows = [np.concatenate([[], *(self.spans[i] for i in self._check_ids(ids))]) for ids in tokens]
        wrong = [n for n, row in enumerate(rows) if len(row) != self._size]
        self.repaired = len(wrong)
        if strict and wrong:
            raise ValueError(f"sequence {wrong[0]} has {len(rows[wrong[0]])} of {self._size} coefficients; "
                             "draw tokens under allowed(), or pass strict=False to cut or fill with 0")
        symbols = np.array([np.append(row, np.zeros(self._size))[:self._size] for row in rows])
        coefficient = symbols[:, np.argsort(self.order)].reshape(-1, self.horizon, self.dims) / self.gamma
        return self.restore(self.dct.T @ coefficient)

    def allowed(self, prefix):
        """Which tokens may follow the ids [j] or [B, j] -> bool [V + 1] or [B, V + 1]; the last one is stop.
        A token may not overrun H * D integers; stop needs exactly H * D. ValueError for bad ids."""
        ids = self._check_ids(np.ravel(prefix)).reshape(np.shape(prefix))
        left = np.asarray(self._size - self.lengths[ids].sum(-1))[..., None]
        return np.concatenate((self.lengths <= left, left == 0), -1)

    def _check_ids(self, ids):
        ids = np.asarray(ids)
        whole = ids.ndim == 1 and ids.dtype.kind in "iu"
        if ids.size and not (whole and ids.min() >= 0 and ids.max() < self.vocab):
            raise ValueError(f"token ids are {ids}; wanted 0..{self.vocab - 1}, whole numbers of shape [n]")
        return ids.astype(np.int64).ravel()

    def bound(self):
        """(RMSE, maximum error) that no chunk exceeds, in normalised units, when nothing saturated."""
        return .5 / self.gamma, .5 / self.gamma * np.abs(self.dct).sum(0).max()

    def state(self):
        """Everything as plain numbers and lists, with a checksum, so that one changed digit is noticed."""
        data = dict(format="nano_ki FAST", version=VERSION, horizon=self.horizon, gamma=self.gamma,
                    alphabet=self.alphabet, low=self.low.tolist(), high=self.high.tolist(),
                    merges=self.merges.tolist(), order=self.order.tolist(), transform=self.transform)
        return data | {"checksum": _checksum(data)}

    @classmethod
    def from_state(cls, data, source="the state"):
        """The inverse of `state`; data may be JSON text. ValueError, naming source, for anything else."""
        try:
            data = json.loads(data) if isinstance(data, str) else {**data}        # TypeError: no mapping
            if data["checksum"] != _checksum({k: v for k, v in data.items() if k != "checksum"}):
                raise ValueError("the checksum does not fit: something was changed")
            H, A, gamma = data["horizon"], data["alphabet"], data["gamma"]
            low, high = finite([data["low"], data["high"]], "low and high")
            if not (H > 0 and A > 0 and 0 < gamma < np.inf and len(low) and (low <= high).all()):
                raise ValueError("horizon, alphabet and gamma must be above 0, and low not above high")
            made = cls(H, low, high, gamma, A, data["merges"], data["order"], data["transform"])
            if made.state() != data:
                raise ValueError("its format, its version or the type of an entry is another")
            return made
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"{source} is not a whole version {VERSION} FAST tokenizer ({error!r}); "
                             "write it again with FAST.fit(...).save(path)") from None

    def save(self, path):
        """Write one JSON file, under a temporary name first. OSError if that fails."""
        part = Path(f"{path}.part")
        try:
            part.write_text(json.dumps(self.state()), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            if os.path.exists(part):
                os.remove(part)
            raise OSError(f"cannot write {path} ({error}); free space, or choose another folder") from None

    @classmethod
    def load(cls, path):
        """The tokenizer that `save` wrote. ValueError for a foreign, truncated or edited file."""
        return cls.from_state(Path(path).read_text(encoding="utf-8", errors="replace"), path)

def finite(array, name):
    """The array as float64. ValueError, with its name, for what is ragged, not numbers, NaN or infinite."""
    try:
        array = np.asarray(array, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are not numbers of one shape: {error}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold {(~np.isfinite(array)).sum()} values that are NaN or infinite")
    return array

def _limits(flat, reach):
    """Actions [n, D] -> (low, high) [D]: the 1st and 99th percentile, or wider where a dimension moves rarely
    but far (a gripper), so that this motion lies within +-reach. Rarer than 1 in 10,000 may be a glitch."""
    least, low, high, most = np.percentile(flat, (.01, 1, 99, 99.99), axis=0)
    still = high - low <= 1e-6 * (flat.max(0) - flat.min(0))   # equal percentiles, and yet not constant
    low, high = np.where(still, flat.min(0), low), np.where(still, flat.max(0), high)
    middle, half = (low + high) / 2, (high - low) / 2
    wide = np.maximum(most - middle, middle - least) / reach
    return np.where(wide > half, middle - wide, low), np.where(wide > half, middle + wide, high)

def _checksum(data):
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())

def _flatten(symbols):
    """Ids [N, S] -> one array [N * (S + 1) + 1] with a GAP before each chunk and at the end."""
    return np.append(np.pad(symbols, ((0, 0), (1, 0)), constant_values=GAP), GAP)

def _join(seq, a, b, new):
    """Replace each pair (a, b) in seq by the id new, from left to right: if a is b, a a a becomes new a."""
    at = np.flatnonzero((seq[:-1] == a) & (seq[1:] == b))
    if a == b:                                 # such pairs overlap: keep every other one of each run
        run_start = np.maximum.accumulate(np.where(np.diff(at, prepend=-2) > 1, at, 0))
        at = at[(at - run_start) % 2 == 0]
    seq[at] = new
    return np.delete(seq, at + 1)

def _learn(symbols, base, vocab):
    """Byte-pair encoding: join the most frequent pair until there are vocab tokens -> the list of pairs."""
    seq, merges = _flatten(symbols), []
    for new in range(base, vocab):
        inside = (seq[:-1] != GAP) & (seq[1:] != GAP)
        counts = np.bincount((seq[:-1] * vocab + seq[1:])[inside], minlength=1)
        if counts.max() < 2:                                   # no pair repeats any more
            break
        merges.append(divmod(int(counts.argmax()), vocab))
        seq = _join(seq, *merges[-1], new)
    return merges
