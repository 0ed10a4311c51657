"""The kernels of ``rlvr/policy/head_kernel.py``, where the formulas are, in Triton.

Names: N tokens, V words, D the width of a hidden state, K tiles of a row. Sums are in WIDE, float32
unless all is float64. Bounds of loops are constants, which Triton's interpreter needs.
"""

import triton
import triton.language as tl


@triton.jit
def _place(N, width, TOKENS: tl.constexpr, WORDS: tl.constexpr, GROUP: tl.constexpr):
    """A program's tile: its number along tokens and along words; a group's rows run together."""
    rows, columns = tl.cdiv(N, TOKENS), tl.cdiv(width, WORDS)
    group = tl.program_id(0) // (GROUP * columns)
    within = tl.program_id(0) % (GROUP * columns)
    size = tl.minimum(rows - group * GROUP, GROUP)
    return group * GROUP + within % size, within // size


@triton.jit
def _logits(
    hidden,
    weight,
    bias,
    scale,
    tokens,
    words,
    N,
    V,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    DEPTH: tl.constexpr,
    OPERAND: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A tile of z, minus infinity beyond V; beyond N, a row of another token."""
    depth = tl.arange(0, DEPTH)
    h = hidden + (tokens % N).to(tl.int64)[:, None] * D + depth[None, :]
    w = weight + (words % V).to(tl.int64)[None, :] * D + depth[:, None]
    z = tl.zeros([TOKENS, WORDS], dtype=WIDE)
    for start in range(0, D, DEPTH):
        if D % DEPTH == 0:
            a = tl.load(h)
            b = tl.load(w)
        else:
            a = tl.load(h, mask=(start + depth < D)[None, :], other=0.0)
            b = tl.load(w, mask=(start + depth < D)[:, None], other=0.0)
        z += tl.dot(a.to(OPERAND), b.to(OPERAND), input_precision="ieee", out_dtype=WIDE)
        h += DEPTH
        w += DEPTH
    if HAS_BIAS:
        z += tl.load(bias + words % V)[None, :]
    return tl.where(words[None, :] < V, z * tl.load(scale), float("-inf"))


@triton.jit(do_not_specialize=["N"])
def forward(
    hidden,
    weight,
    bias,
    scale,
    targets,
    largest,
    total,
    moment,
    taken,
    N,
    V,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    OPERAND: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Of each row of a tile: m, s and u, to [K, N]; z_y, from the tile that has it."""
    row, column = _place(N, V, TOKENS, WORDS, GROUP)
    tokens = row * TOKENS + tl.arange(0, TOKENS)
    words = column * WORDS + tl.arange(0, WORDS)
    z = _logits(
        hidden, weight, bias, scale, tokens, words, N, V,
        D, HAS_BIAS, TOKENS, WORDS, DEPTH, OPERAND, WIDE,
    )  # fmt: skip
    m = tl.max(z, axis=1)
    shifted = z - tl.where(m == float("-inf"), 0.0, m)[:, None]
    e = tl.exp(shifted)
    present = tokens < N
    where = column.to(tl.int64) * N + tokens
    tl.store(largest + where, m, mask=present)
    tl.store(total + where, tl.sum(e, axis=1), mask=present)
    # 0 times the minus infinity of an impossible token is 0.
    tl.store(moment + where, tl.sum(tl.where(e > 0, e * shifted, 0.0), axis=1), mask=present)
    target = tl.load(targets + tokens, mask=present, other=-1)
    here = (target >= column * WORDS) & (target < tl.minimum((column + 1) * WORDS, V))
    z_y = tl.sum(tl.where(words[None, :] == target[:, None], z, 0.0), axis=1)
    tl.store(taken + tokens, z_y, mask=present & here)


@triton.jit(do_not_specialize=["N"])
def combine(
    largest,
    total,
    moment,
    logprobs,
    entropy,
    lse,
    N,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Of each token, from its K tiles; ``logprobs`` holds z_y before."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    present = tokens < N
    m = tl.load(largest + tokens, mask=present, other=0.0)
    for first in range(0, K, TILES):
        tiles = first + tl.arange(0, TILES)
        there = (tiles < K)[:, None] & present[None, :]
        where = tiles.to(tl.int64)[:, None] * N + tokens[None, :]
        m = tl.maximum(m, tl.max(tl.load(largest + where, mask=there, other=float("-inf")), axis=0))
    m = tl.where(m == float("-inf"), 0.0, m)
    s = m * 0.0
    u = m * 0.0
    for first in range(0, K, TILES):
        tiles = first + tl.arange(0, TILES)
        there = (tiles < K)[:, None] & present[None, :]
        where = tiles.to(tl.int64)[:, None] * N + tokens[None, :]
        shift = tl.load(largest + where, mask=there, other=float("-inf")) - m[None, :]
        weight = tl.exp(shift)
        tile_s = tl.load(total + where, mask=there, other=0.0)
        tile_u = tl.load(moment + where, mask=there, other=0.0)
        s += tl.sum(weight * tile_s, axis=0)
        # A tile of impossible tokens has weight 0 and shift minus infinity.
        tile_u += tl.where(weight > 0, shift, 0.0) * tile_s
        u += tl.sum(weight * tile_u, axis=0)
    log_s = tl.log(s)
    z_y = tl.load(logprobs + tokens, mask=present, other=0.0)
    tl.store(logprobs + tokens, z_y - (m + log_s), mask=present)
    tl.store(entropy + tokens, log_s - u / s, mask=present)
    tl.store(lse + tokens, m + log_s, mask=present)


@triton.jit(do_not_specialize=["N", "first", "width"])
def backward(
    hidden,
    weight,
    bias,
    scale,
    targets,
    lse,
    entropy,
    grad_logprobs,
    grad_entropy,
    gradient,
    N,
    V,
    first,
    width,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    OPERAND: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A tile of the gradient by h W^T, into the strip [N, width] of words that begins at ``first``.

    With g_l and g_H the gradients by log-probability and entropy:
    (g_l e_y - p (g_l + g_H (log p + H))) / temperature.
    """
    row, column = _place(N, width, TOKENS, WORDS, GROUP)
    tokens = row * TOKENS + tl.arange(0, TOKENS)
    within = column * WORDS + tl.arange(0, WORDS)
    words = first + within
    z = _logits(
        hidden, weight, bias, scale, tokens, words, N, V,
        D, HAS_BIAS, TOKENS, WORDS, DEPTH, OPERAND, WIDE,
    )  # fmt: skip
    present = tokens < N
    logp = z - tl.load(lse + tokens, mask=present, other=0.0)[:, None]
    p = tl.exp(logp)
    g_l = tl.load(grad_logprobs + tokens, mask=present, other=0.0)[:, None]
    target = tl.load(targets + tokens, mask=present, other=-1)
    g = tl.where(words[None, :] == target[:, None], g_l, 0.0) - p * g_l
    if HAS_ENTROPY:
        g_h = tl.load(grad_entropy + tokens, mask=present, other=0.0)[:, None]
        h = tl.load(entropy + tokens, mask=present, other=0.0)[:, None]
        g -= tl.where(p > 0, p * g_h * (logp + h), 0.0)
    where = tokens.to(tl.int64)[:, None] * width + within[None, :]
    there = present[:, None] & (within < width)[None, :]
    tl.store(gradient + where, (g * tl.load(scale)).to(gradient.dtype.element_ty), mask=there)
