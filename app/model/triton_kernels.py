"""The kernels themselves; kernels.py says what each computes and gives them their grids.

Those that follow a Projection take the adapters' part along: they multiply the tile of x A that their tokens may see with
B, over the few columns of the bank that these tokens' adapters own.

PDL: programmatic dependent launch (CUDA programming guide, "Programmatic Dependent Launch and Synchronization"; Hopper and later).
A kernel may start while the one before it ends. Before `gdc_wait` it reads only what is older than the product before it, which
is launched the plain way and so began when all else had ended: positions, the residual, its own weights.
"""
# mypy: ignore-errors
# ruff: noqa: N803 - constants of a kernel are written in capitals

import triton
import triton.language as tl


@triton.jit
def _load(place, mask, EVEN: tl.constexpr):
    """EVEN: nothing lies outside, so that no mask is needed."""
    if EVEN:
        return tl.load(place)
    return tl.load(place, mask=mask, other=0)


@triton.jit
def _updated(
    z_ptr, z_stride, b_ptr, b_stride, columns_ptr, bounds_ptr, num_tokens, rows, columns1, columns2, is_column1,
    is_column2, hidden1, hidden2,
    HAS_ADAPTERS: tl.constexpr, SHARED: tl.constexpr, EVEN: tl.constexpr, EVEN_BANK: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Two tiles of z's outputs, each plus (x A, masked) @ B, in float32. SHARED: both tiles are of one site."""
    # Rows beyond the last read the last, and are not stored.
    rows = tl.minimum(rows, num_tokens - 1).to(tl.int64)
    z_rows = z_ptr + rows[:, None] * z_stride
    if PDL:
        tl.extra.cuda.gdc_wait()
    # All that can be asked for is asked for before anything is looked at: what costs here is waiting for memory.
    first = _load(z_rows + columns1[None], is_column1[None], EVEN)
    second = _load(z_rows + columns2[None], is_column2[None], EVEN)
    if HAS_ADAPTERS:
        # Tokens come sorted by adapter: what a tile's tokens own are few columns, close together, nearly always one block.
        # The layers' weights pass through the L2 cache in between; without a word what is said here would be gone.
        begin = tl.load(bounds_ptr + tl.program_id(0), eviction_policy="evict_last")
        end = tl.load(
            bounds_ptr + tl.num_programs(0) + tl.program_id(0), eviction_policy="evict_last"
        )
        own_begin = tl.load(columns_ptr + rows, eviction_policy="evict_last")[:, None]
        own_end = tl.load(columns_ptr + num_tokens + rows, eviction_policy="evict_last")[:, None]
        update1 = tl.zeros(first.shape, tl.float32)
        update2 = tl.zeros(second.shape, tl.float32)
        for start in tl.range(begin, end, BLOCK, num_stages=1):
            k = start + tl.arange(0, BLOCK)
            is_k = k < end
            b_rows = b_ptr + k[:, None] * b_stride
            h1 = _load(z_rows + hidden1 + k[None], is_k[None], EVEN_BANK)
            h2 = h1
            if not SHARED:
                h2 = _load(z_rows + hidden2 + k[None], is_k[None], EVEN_BANK)
            b1 = _load(
                b_rows + columns1[None], is_k[:, None] & is_column1[None], EVEN and EVEN_BANK
            )
            b2 = _load(
                b_rows + columns2[None], is_k[:, None] & is_column2[None], EVEN and EVEN_BANK
            )
            own = (k[None] >= own_begin) & (k[None] < own_end)
            # Selected, not multiplied by the mask: a neighbour's inf times 0 would be NaN.
            update1 = tl.dot(tl.where(own, h1, 0.0), b1, update1, input_precision="ieee")
            update2 = tl.dot(tl.where(own, h2, 0.0), b2, update2, input_precision="ieee")
        return first.to(tl.float32) + update1, second.to(tl.float32) + update2
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def add(
    residual_ptr, num_outputs, z_ptr, z_stride, b_ptr, b_stride, columns_ptr, bounds_ptr, num_tokens,
    HAS_ADAPTERS: tl.constexpr, EVEN: tl.constexpr, EVEN_BANK: tl.constexpr, BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    rows = tl.program_id(0) * M + tl.arange(0, M)
    columns = tl.program_id(1) * N + tl.arange(0, N)
    place = residual_ptr + rows.to(tl.int64)[:, None] * num_outputs + columns[None]
    mask = (rows < num_tokens)[:, None] & ((columns < num_outputs) | EVEN)[None]
    residual = tl.load(place, mask=mask, other=0)
    tile, _ = _updated(  # the same tile twice is one to the compiler
        z_ptr, z_stride, b_ptr, b_stride, columns_ptr, bounds_ptr, num_tokens, rows, columns, columns,
        columns < num_outputs, columns < num_outputs, num_outputs, num_outputs,
        HAS_ADAPTERS, True, EVEN, EVEN_BANK, BLOCK, PDL,
    )  # fmt: skip
    tl.store(place, tile + residual, mask=mask)


@triton.jit
def gate(
    out_ptr, num_features, up_hidden, z_ptr, z_stride, b_ptr, b_stride, columns_ptr, bounds_ptr, num_tokens,
    SHARED: tl.constexpr,
    HAS_ADAPTERS: tl.constexpr, EVEN: tl.constexpr, EVEN_BANK: tl.constexpr, BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    rows = tl.program_id(0) * M + tl.arange(0, M)
    columns = tl.program_id(1) * N + tl.arange(0, N)
    is_column = columns < num_features
    gate, up = _updated(
        z_ptr, z_stride, b_ptr, b_stride, columns_ptr, bounds_ptr, num_tokens, rows, columns, columns + num_features,
        is_column, is_column, 2 * num_features, up_hidden, HAS_ADAPTERS, SHARED, EVEN, EVEN_BANK, BLOCK, PDL,
    )  # fmt: skip
    place = out_ptr + rows.to(tl.int64)[:, None] * num_features + columns[None]
    mask = (rows < num_tokens)[:, None] & (is_column | EVEN)[None]
    tl.store(place, gate * tl.sigmoid(gate) * up, mask=mask)


@triton.jit
def rotate_and_store(
    query_ptr, keys_ptr, values_ptr, cos_ptr, sin_ptr, places_ptr,
    num_outputs, z_ptr, z_stride, b_ptr, b_stride, columns_ptr, bounds_ptr, num_tokens,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr, SEPARATE: tl.constexpr, WIDTH: tl.constexpr,
    HAS_ADAPTERS: tl.constexpr, EVEN: tl.constexpr, EVEN_BANK: tl.constexpr, BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One head of M tokens. SEPARATE: q, k and v are three sites with a stretch of x A each."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    rows = tl.program_id(0) * M + tl.arange(0, M)
    head = tl.program_id(1)
    feature = tl.arange(0, N)
    is_feature = feature < HALF
    hidden = num_outputs
    if SEPARATE:
        hidden += WIDTH * (
            (head >= NUM_HEADS).to(tl.int32) + (head >= NUM_HEADS + NUM_KV_HEADS).to(tl.int32)
        )
    columns = head * 2 * HALF + feature
    mask = (rows < num_tokens)[:, None] & (is_feature | EVEN)[None]
    angle = rows[:, None] * HALF + feature[None]
    cos = tl.load(cos_ptr + angle, mask=mask, other=0)
    sin = tl.load(sin_ptr + angle, mask=mask, other=0)
    to = tl.load(places_ptr + rows, mask=rows < num_tokens, other=0).to(tl.int64)[:, None]
    first, second = _updated(
        z_ptr, z_stride, b_ptr, b_stride, columns_ptr, bounds_ptr, num_tokens, rows, columns, columns + HALF,
        is_feature, is_feature, hidden, hidden, HAS_ADAPTERS, True, EVEN, EVEN_BANK, BLOCK, PDL,
    )  # fmt: skip
    if head < NUM_HEADS + NUM_KV_HEADS:
        turned = first * cos.to(tl.float32) - second * sin.to(tl.float32)
        second = second * cos.to(tl.float32) + first * sin.to(tl.float32)
        first = turned
    if head < NUM_HEADS:
        place = (
            query_ptr + (rows.to(tl.int64)[:, None] * NUM_HEADS + head) * 2 * HALF + feature[None]
        )
    elif head < NUM_HEADS + NUM_KV_HEADS:
        place = keys_ptr + (to * NUM_KV_HEADS + head - NUM_HEADS) * 2 * HALF + feature[None]
    else:
        place = (
            values_ptr
            + (to * NUM_KV_HEADS + head - NUM_HEADS - NUM_KV_HEADS) * 2 * HALF
            + feature[None]
        )
    tl.store(place, first, mask=mask)
    tl.store(place + HALF, second, mask=mask)


@triton.jit
def attend(
    out_ptr, query_ptr, keys_ptr, values_ptr, blocks_ptr, num_blocks, scaling,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """M queries of one sequence and one head, over its keys N at a time (Dao et al. 2022, arXiv:2205.14135)."""
    # Heads first: those of one sequence read neighbouring memory at the same time.
    head = tl.program_id(0)
    block = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    count = tl.load(blocks_ptr + num_blocks + block)
    start = tl.load(blocks_ptr + block)
    position = tl.load(blocks_ptr + 2 * num_blocks + block)
    region = tl.load(blocks_ptr + 3 * num_blocks + block).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_wait()
    if count == 0:
        return
    kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
    feature = tl.arange(0, D)
    is_feature = feature < HEAD_DIM
    num_keys = position + count
    first = 0
    if WINDOW > 0:
        first = tl.maximum(0, position + 1 - WINDOW)
    keys_ptr += (region * NUM_KV_HEADS + kv_head) * HEAD_DIM
    values_ptr += (region * NUM_KV_HEADS + kv_head) * HEAD_DIM
    if count == 1:  # a matrix product of one row would be wasted
        place = (start.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM + feature
        one = tl.load(query_ptr + place, mask=is_feature, other=0).to(tl.float32) * scaling
        top = -1e30
        sum_of_weights = 0.0
        sum_of_values = tl.zeros([D], tl.float32)
        for begin in range(first, num_keys, N):
            key = begin + tl.arange(0, N)
            own = key[:, None] * (NUM_KV_HEADS * HEAD_DIM) + feature[None]
            mask = (key < num_keys)[:, None] & is_feature[None]
            k = tl.load(keys_ptr + own, mask=mask, other=0)
            v = tl.load(values_ptr + own, mask=mask, other=0)
            score = tl.where(key < num_keys, tl.sum(k.to(tl.float32) * one[None], 1), -1e30)
            new_top = tl.maximum(top, tl.max(score, 0))
            weight = tl.where(key < num_keys, tl.exp(score - new_top), 0.0)
            decay = tl.exp(top - new_top)
            sum_of_weights = sum_of_weights * decay + tl.sum(weight, 0)
            sum_of_values = sum_of_values * decay + tl.sum(weight[:, None] * v.to(tl.float32), 0)
            top = new_top
        tl.store(out_ptr + place, sum_of_values / sum_of_weights, mask=is_feature)
        return
    row = tl.arange(0, M)
    places = ((start + row).to(tl.int64)[:, None] * NUM_HEADS + head) * HEAD_DIM + feature[None]
    mask = (row < count)[:, None] & is_feature[None]
    query = tl.load(query_ptr + places, mask=mask, other=0)
    highest = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, D], tl.float32)
    for begin in range(first, num_keys, N):
        key = begin + tl.arange(0, N)
        is_key = key < num_keys
        own = key[:, None] * (NUM_KV_HEADS * HEAD_DIM) + feature[None]
        own_mask = is_key[:, None] & is_feature[None]
        k = tl.load(keys_ptr + own, mask=own_mask, other=0)
        v = tl.load(values_ptr + own, mask=own_mask, other=0)
        scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scaling
        distance = (position + row)[:, None] - key[None]
        is_seen = (distance >= 0) & is_key[None]
        if WINDOW > 0:
            is_seen = is_seen & (distance < WINDOW)
        scores = tl.where(is_seen, scores, -1e30)
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.where(is_seen, tl.exp(scores - new_highest[:, None]), 0.0)
        shrink = tl.exp(highest - new_highest)
        total = total * shrink + tl.sum(weights, 1)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision="ieee")
        highest = new_highest
    tl.store(out_ptr + places, out / total[:, None], mask=mask)


@triton.jit
def normalise(out_ptr, x_ptr, weight_ptr, eps, num_features, N: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, N)
    mask = feature < num_features
    weight = tl.load(weight_ptr + feature, mask=mask, other=0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    x = tl.load(x_ptr + row * num_features + feature, mask=mask, other=0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x) / num_features + eps)
    tl.store(out_ptr + row * num_features + feature, x * weight, mask=mask)
