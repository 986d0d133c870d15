"""Triton kernels for what stands before an attention: norm, LoRA branches of q, k and v, rotary positions; and back.

The frozen product between them is the matrix library's. A program takes 16 tokens and a piece of the width (or some
heads), so that every matrix of a branch is read once for 16 tokens; sums over the width that several programs share
are left in pieces that the next kernel adds, in the same order each time. Rank 4 fills a corner of the smallest tile.
Dropout's mask is never stored: forward and backward draw it from the same seed. The gradients of the branches' matrices
are not on the way to any other: they are computed for all layers at once, in the end.

Shapes: T tokens, W hidden width, R rank, H heads of queries, keys and values together, D the width of a head, O = H * D
outputs, P pieces of the width, G groups of heads, L layers. Branch 0 is q, 1 is k, 2 is v.
"""

import triton
import triton.language as tl

BLOCK_T = 16
"""Tokens of a program."""

LARGEST_RANK = 16
"""Columns of the tile that holds a branch's low-rank values."""


@triton.jit
def _draws(seed, row, column, width):  # type: ignore[no-untyped-def]
    """A number in [0, 1) for each branch; Philox with 7 rounds, the fewest that pass all tests (Salmon et al. 2011)."""
    first, second, third, _ = tl.rand4x(seed, row[:, None] * width + column[None, :], 7)
    return first, second, third


@triton.jit
def _kept(x, draw, dropout):  # type: ignore[no-untyped-def]
    """The values that a branch sees, scaled up for those that it does not."""
    return tl.where(draw >= dropout, x / (1.0 - dropout), 0.0)


@triton.jit
def _branch_of(head, Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.where(head < Q_HEADS, 0, tl.where(head < Q_HEADS + K_HEADS, 1, 2))


@triton.jit
def _first_head(branch, Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.where(branch == 0, 0, tl.where(branch == 1, Q_HEADS, Q_HEADS + K_HEADS))


@triton.jit
def norm_down(  # type: ignore[no-untyped-def]
    x_ptr, gain_ptr, a0, a1, a2, seed_ptr, xn_ptr, low_ptr, rescale_ptr, tokens, epsilon, dropout,
    W: tl.constexpr, R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """The norm (T, W), what it multiplied by (T,), and pieces of the branches' lower halves (P, T, 3 R)."""
    row, piece, rank = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.program_id(1), tl.arange(0, 16)
    is_row = (row < tokens)[:, None]
    squares = tl.zeros((BLOCK_T, BLOCK_W), tl.float32)
    # Unrolled, so that all loads are under way at once.
    for start in tl.static_range(0, W, BLOCK_W):
        column = start + tl.arange(0, BLOCK_W)
        there = is_row & (column < W)[None, :]
        x = tl.load(x_ptr + row[:, None] * W + column[None, :], mask=there, other=0.0).to(tl.float32)
        squares += x * x
    rescale = 1.0 / tl.sqrt(tl.sum(squares, 1) / W + epsilon)
    column = piece * BLOCK_W + tl.arange(0, BLOCK_W)
    there, place = is_row & (column < W)[None, :], row[:, None] * W + column[None, :]
    x = tl.load(x_ptr + place, mask=there, other=0.0)
    gain = tl.load(gain_ptr + column, mask=column < W, other=0.0)
    normed = ((x.to(tl.float32) * rescale[:, None]).to(x.dtype) * gain[None, :]).to(x.dtype)
    tl.store(xn_ptr + place, normed, mask=there)
    if piece == 0:
        tl.store(rescale_ptr + row, rescale, mask=row < tokens)
    draw0, draw1, draw2 = _draws(tl.load(seed_ptr), row, column, W)
    for branch in tl.static_range(3):
        a_ptr = a0 if branch == 0 else (a1 if branch == 1 else a2)
        seen = normed.to(tl.float32)
        if DROPS:
            seen = _kept(seen, draw0 if branch == 0 else (draw1 if branch == 1 else draw2), dropout)
        mask = (column < W)[:, None] & (rank < R)[None, :]
        a = tl.load(a_ptr + rank[None, :] * W + column[:, None], mask=mask, other=0.0)
        target = low_ptr + (piece * tokens + row[:, None]) * 3 * R + branch * R + rank[None, :]
        tl.store(target, tl.dot(seen, a), mask=is_row & (rank < R)[None, :])


@triton.jit
def up_rotate(  # type: ignore[no-untyped-def]
    base_ptr, pieces_ptr, u0, u1, u2, cos_ptr, sin_ptr, out_ptr, low_ptr, tokens, scale,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK_T: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """The frozen product with the branches' upper halves added, q and k turned (T, O); the lower halves (T, 3 R)."""
    row, head, rank = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.program_id(1), tl.arange(0, 16)
    is_row, is_rank, d = (row < tokens)[:, None], (rank < R)[None, :], tl.arange(0, D // 2)
    branch = _branch_of(head, Q_HEADS, K_HEADS)
    own = head - _first_head(branch, Q_HEADS, K_HEADS)
    low_place = row[:, None] * 3 * R + branch * R + rank[None, :]
    low = tl.zeros((BLOCK_T, 16), tl.float32)
    for piece in tl.static_range(0, P):
        low += tl.load(pieces_ptr + piece * tokens * 3 * R + low_place, mask=is_row & is_rank, other=0.0)
    if own == 0:
        tl.store(low_ptr + low_place, low, mask=is_row & is_rank)
    up_ptr = u0 if branch == 0 else (u1 if branch == 1 else u2)
    up_place = up_ptr + (own * D + d)[None, :] * R + rank[:, None]
    up_first = tl.load(up_place, mask=(rank < R)[:, None], other=0.0)
    up_second = tl.load(up_place + D // 2 * R, mask=(rank < R)[:, None], other=0.0)
    place = row[:, None] * (Q_HEADS + 2 * K_HEADS) * D + head * D + d[None, :]
    first = tl.load(base_ptr + place, mask=is_row, other=0.0).to(tl.float32) + scale * tl.dot(low, up_first)
    second = tl.load(base_ptr + place + D // 2, mask=is_row, other=0.0).to(tl.float32) + scale * tl.dot(low, up_second)
    if branch < 2:
        angle = row[:, None] * D + d[None, :]
        cos = tl.load(cos_ptr + angle, mask=is_row, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + angle, mask=is_row, other=0.0).to(tl.float32)
        first, second = first * cos - second * sin, second * cos + first * sin
    tl.store(out_ptr + place, first.to(out_ptr.dtype.element_ty), mask=is_row)
    tl.store(out_ptr + place + D // 2, second.to(out_ptr.dtype.element_ty), mask=is_row)


@triton.jit
def rotate_back(  # type: ignore[no-untyped-def]
    dq_ptr, dk_ptr, dv_ptr, u0, u1, u2, cos_ptr, sin_ptr, d_base_ptr, d_pieces_ptr, tokens, scale,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK_T: tl.constexpr,
    MEMBERS: tl.constexpr,
):  # fmt: skip
    """Gradients of the frozen product (T, O) and, a piece for each group of heads, of the lower halves (G, T, R)."""
    row, group, rank = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.program_id(1), tl.arange(0, 16)
    is_row, is_rank, d = (row < tokens)[:, None], (rank < R)[None, :], tl.arange(0, D // 2)
    branch = _branch_of(group * MEMBERS, Q_HEADS, K_HEADS)
    before = _first_head(branch, Q_HEADS, K_HEADS)
    source = dq_ptr if branch == 0 else (dk_ptr if branch == 1 else dv_ptr)
    up_ptr = u0 if branch == 0 else (u1 if branch == 1 else u2)
    count = tl.where(branch == 0, Q_HEADS, K_HEADS)
    angle = row[:, None] * D + d[None, :]
    # Values are not turned.
    cos = tl.where(branch < 2, tl.load(cos_ptr + angle, mask=is_row, other=0.0).to(tl.float32), 1.0)
    sin = tl.where(branch < 2, tl.load(sin_ptr + angle, mask=is_row, other=0.0).to(tl.float32), 0.0)
    total = tl.zeros((BLOCK_T, 16), tl.float32)
    for member in tl.static_range(MEMBERS):
        head = group * MEMBERS + member
        own = head - before
        place = (row[:, None] * count + own) * D + d[None, :]
        x = tl.load(source + place, mask=is_row, other=0.0).to(tl.float32)
        y = tl.load(source + place + D // 2, mask=is_row, other=0.0).to(tl.float32)
        first, second = x * cos + y * sin, y * cos - x * sin
        target = d_base_ptr + row[:, None] * (Q_HEADS + 2 * K_HEADS) * D + head * D + d[None, :]
        tl.store(target, first.to(d_base_ptr.dtype.element_ty), mask=is_row)
        tl.store(target + D // 2, second.to(d_base_ptr.dtype.element_ty), mask=is_row)
        up_place = up_ptr + (own * D + d)[:, None] * R + rank[None, :]
        total += tl.dot(first, tl.load(up_place, mask=is_rank, other=0.0))
        total += tl.dot(second, tl.load(up_place + D // 2 * R, mask=is_rank, other=0.0))
    tl.store(d_pieces_ptr + (group * tokens + row[:, None]) * R + rank[None, :], total * scale, mask=is_row & is_rank)


@triton.jit
def _added(  # type: ignore[no-untyped-def]
    pieces_ptr, tokens, row, rank,
    R: tl.constexpr, BLOCK_T: tl.constexpr, BEGIN: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The sum of some pieces of lower halves, (BLOCK_T, 16)."""
    there = (row < tokens)[:, None] & (rank < R)[None, :]
    total = tl.zeros((BLOCK_T, 16), tl.float32)
    for group in tl.static_range(BEGIN, BEGIN + COUNT):
        source = pieces_ptr + (group * tokens + row[:, None]) * R + rank[None, :]
        total += tl.load(source, mask=there, other=0.0)
    return total


@triton.jit
def d_input(  # type: ignore[no-untyped-def]
    x_ptr, xn_ptr, gain_ptr, rescale_ptr, d_xn_ptr, low_ptr, d_pieces_ptr, d_residual_ptr, a0, a1, a2, seed_ptr,
    dx_ptr, d_low_ptr, tokens, dropout,
    W: tl.constexpr, R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, DROPS: tl.constexpr,
    Q_GROUPS: tl.constexpr, K_GROUPS: tl.constexpr,
):  # fmt: skip
    """The gradient of the norm's input, residual included (T, W), and the lower halves' in one piece (T, 3 R)."""
    row, piece, rank = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.program_id(1), tl.arange(0, 16)
    is_row, is_rank = (row < tokens)[:, None], (rank < R)[None, :]
    products = tl.zeros((BLOCK_T, BLOCK_W), tl.float32)
    for start in tl.static_range(0, W, BLOCK_W):
        column = start + tl.arange(0, BLOCK_W)
        there, place = is_row & (column < W)[None, :], row[:, None] * W + column[None, :]
        d_xn = tl.load(d_xn_ptr + place, mask=there, other=0.0).to(tl.float32)
        products += d_xn * tl.load(xn_ptr + place, mask=there, other=0.0).to(tl.float32)
    # Along its input a norm has no gradient: what the frozen product and each branch would give it is taken out.
    along = tl.sum(products, 1)
    column = piece * BLOCK_W + tl.arange(0, BLOCK_W)
    there, place = is_row & (column < W)[None, :], row[:, None] * W + column[None, :]
    d_normed = tl.load(d_xn_ptr + place, mask=there, other=0.0).to(tl.float32)
    draw0, draw1, draw2 = _draws(tl.load(seed_ptr), row, column, W)
    for branch in tl.static_range(3):
        a_ptr = a0 if branch == 0 else (a1 if branch == 1 else a2)
        if branch == 0:
            d_low = _added(d_pieces_ptr, tokens, row, rank, R, BLOCK_T, 0, Q_GROUPS)
        elif branch == 1:
            d_low = _added(d_pieces_ptr, tokens, row, rank, R, BLOCK_T, Q_GROUPS, K_GROUPS)
        else:
            d_low = _added(d_pieces_ptr, tokens, row, rank, R, BLOCK_T, Q_GROUPS + K_GROUPS, K_GROUPS)
        low_place = row[:, None] * 3 * R + branch * R + rank[None, :]
        along += tl.sum(d_low * tl.load(low_ptr + low_place, mask=is_row & is_rank, other=0.0), 1)
        if piece == 0:
            tl.store(d_low_ptr + low_place, d_low, mask=is_row & is_rank)
        mask = (rank < R)[:, None] & (column < W)[None, :]
        d_seen = tl.dot(d_low, tl.load(a_ptr + rank[:, None] * W + column[None, :], mask=mask, other=0.0))
        if DROPS:
            d_seen = _kept(d_seen, draw0 if branch == 0 else (draw1 if branch == 1 else draw2), dropout)
        d_normed += d_seen
    x = tl.load(x_ptr + place, mask=there, other=0.0)
    rescale = tl.load(rescale_ptr + row, mask=row < tokens, other=0.0)[:, None]
    gain = tl.load(gain_ptr + column, mask=column < W, other=0.0).to(tl.float32)
    dx = rescale * (d_normed * gain[None, :] - x.to(tl.float32) * rescale * (along / W)[:, None])
    dx += tl.load(d_residual_ptr + place, mask=there, other=0.0).to(tl.float32)
    tl.store(dx_ptr + place, dx.to(x.dtype), mask=there)


@triton.jit
def d_up(  # type: ignore[no-untyped-def]
    d_base_ptr, low_ptr, d_up_ptr, tokens, scale,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The gradients of every layer's upper halves, one below the other, (L, O, R)."""
    head, layer = tl.program_id(0), tl.program_id(1).to(tl.int64)
    branch = _branch_of(head, Q_HEADS, K_HEADS)
    outputs = (Q_HEADS + 2 * K_HEADS) * D
    d_base_ptr += layer * tokens * outputs + head * D
    low_ptr += layer * tokens * 3 * R + branch * R
    d, rank = tl.arange(0, D), tl.arange(0, 16)
    total = tl.zeros((D, 16), tl.float32)
    for start in range(0, tokens, BLOCK_T):
        row = start + tl.arange(0, BLOCK_T)
        g = tl.load(d_base_ptr + row[None, :] * outputs + d[:, None], mask=row[None, :] < tokens, other=0.0)
        there = (row[:, None] < tokens) & (rank[None, :] < R)
        low = tl.load(low_ptr + row[:, None] * 3 * R + rank[None, :], mask=there, other=0.0)
        total += tl.dot(g, low.to(g.dtype))
    target = d_up_ptr + (layer * outputs + head * D + d)[:, None] * R + rank[None, :]
    tl.store(target, total * scale, mask=(rank < R)[None, :])


@triton.jit
def d_down(  # type: ignore[no-untyped-def]
    xn_ptr, d_low_ptr, seed_ptr, d_down_ptr, tokens, dropout,
    W: tl.constexpr, R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """The gradients of every layer's lower halves, one below the other, (L, 3 R, W)."""
    column, rank = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W), tl.arange(0, 16)
    layer = tl.program_id(1).to(tl.int64)
    seed = tl.load(seed_ptr + layer)
    xn_ptr += layer * tokens * W
    d_low_ptr += layer * tokens * 3 * R
    total0, total1 = tl.zeros((16, BLOCK_W), tl.float32), tl.zeros((16, BLOCK_W), tl.float32)
    total2 = tl.zeros((16, BLOCK_W), tl.float32)
    for start in range(0, tokens, BLOCK_T):
        row = start + tl.arange(0, BLOCK_T)
        there = (row < tokens)[:, None] & (column < W)[None, :]
        x = tl.load(xn_ptr + row[:, None] * W + column[None, :], mask=there, other=0.0)
        draw0, draw1, draw2 = _draws(seed, row, column, W)
        source = d_low_ptr + row[None, :] * 3 * R + rank[:, None]
        mask = (row < tokens)[None, :] & (rank < R)[:, None]
        for branch in tl.static_range(3):
            seen = x
            if DROPS:
                draw = draw0 if branch == 0 else (draw1 if branch == 1 else draw2)
                seen = _kept(x.to(tl.float32), draw, dropout).to(x.dtype)
            product = tl.dot(tl.load(source + branch * R, mask=mask, other=0.0).to(x.dtype), seen)
            if branch == 0:
                total0 += product
            elif branch == 1:
                total1 += product
            else:
                total2 += product
    target = d_down_ptr + (layer * 3 * R + rank)[:, None] * W + column[None, :]
    mask = (rank < R)[:, None] & (column < W)[None, :]
    tl.store(target, total0, mask=mask)
    tl.store(target + R * W, total1, mask=mask)
    tl.store(target + 2 * R * W, total2, mask=mask)
