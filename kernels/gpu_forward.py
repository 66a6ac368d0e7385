"""Triton kernels of the forward pass: states of the segments, their combination, outputs.

A sequence, one head of one image, is cut into segments of whole chunks. With one segment `outputs` does everything.
With more, `segment_states` computes what each segment adds to the state, and `combine` the state that leaves it.
`segment_states` and `combine` also serve the backward pass, whose adjoint states travel against the scan.
"""

import triton
import triton.language as tl

from .gpu_common import LN_EPS, chunk_tokens, decays, dot, load, log_decay, one_minus_exp, tanh


@triton.jit(do_not_specialize=["scale", "root", "tokens", "rows", "cols", "heads", "segments", "segment_chunks"])
def segment_states(
    q, gate, k, v, grad_out, states, totals,
    scale, root, tokens, rows, cols, heads, segments, segment_chunks,
    s_qb, s_qt, s_qh, s_gb, s_gt, s_gh, s_kb, s_kt, s_kh, s_vb, s_vt, s_vh, s_ob, s_ot, s_oh,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr,
    DERIVED: tl.constexpr, LOGITS: tl.constexpr, COLUMN: tl.constexpr, REVERSE: tl.constexpr, ORDERS: tl.constexpr,
    ADJOINT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What one segment adds to the state (and, with ADJOINT, to the adjoint state) of one order.

    states [B * H, ORDERS, 1 + ADJOINT, segments, KP, VP] and totals [B * H, ORDERS, segments, KP], the log-decay of
    the whole segment, are float32. Program: (B * H, segment, order, tile of V).
    """
    i_p = tl.program_id(0)
    i_v = i_p % (VP // BV)
    i_p = i_p // (VP // BV)
    i_d = i_p % ORDERS
    i_s = i_p // ORDERS % segments
    i_n = (i_p // ORDERS // segments).to(tl.int64)
    i_b, i_h = i_n // heads, i_n % heads
    o_k = tl.arange(0, KP)
    o_v = i_v * BV + tl.arange(0, BV)
    p_g = gate + i_b * s_gb + i_h * s_gh
    p_v = v + i_b * s_vb + i_h * s_vh
    p_k = k + i_b * s_kb + i_h * s_kh
    p_q = q + i_b * s_qb + i_h * s_qh
    p_o = grad_out + i_b * s_ob + i_h * s_oh
    start = i_s * segment_chunks * BT
    chunks = tl.minimum(segment_chunks, tl.cdiv(tokens - start, BT))
    reverse = i_d + REVERSE > 0

    b_s = tl.zeros([KP, BV], tl.float32)
    b_d = tl.zeros([KP, BV], tl.float32)
    b_total = tl.zeros([KP], tl.float32)
    for i_c in range(chunks):
        o_t, m_t = chunk_tokens(i_c, start, start + chunks * BT, tokens, rows, cols, reverse, COLUMN, BT)
        m_k = m_t[:, None] & (o_k < K)[None, :]
        m_v = m_t[:, None] & (o_v < V)[None, :]
        b_g = log_decay(load(p_g, o_t, s_gt, o_k, m_k), root, m_k, LOGITS)
        b_v = load(p_v, o_t, s_vt, o_v, m_v)
        b_k = one_minus_exp(b_g) if DERIVED else load(p_k, o_t, s_kt, o_k, m_k)
        b_start, _, b_end, b_all = decays(b_g, BT)
        if ADJOINT:
            b_q = load(p_q, o_t, s_qt, o_k, m_k) * scale
            b_do = load(p_o, o_t, s_ot, o_v, m_v)
            # The adjoint arrives at the segment's start: this chunk's part still decays over the chunks before it.
            b_d += tl.exp(b_total)[:, None] * dot(tl.trans(b_q * tl.exp(b_start)), b_do, PRECISION)
        b_s = tl.exp(b_all)[:, None] * b_s + dot(tl.trans(b_k * tl.exp(b_end)), b_v, PRECISION)
        b_total += b_all

    i_x = i_n * ORDERS + i_d
    o_s = o_k[:, None] * VP + o_v[None, :]
    tl.store(states + (i_x * (1 + ADJOINT) * segments + i_s) * KP * VP + o_s, b_s)
    if ADJOINT:
        tl.store(states + ((i_x * 2 + 1) * segments + i_s) * KP * VP + o_s, b_d)
    if i_v == 0:
        tl.store(totals + (i_x * segments + i_s) * KP + o_k, b_total)


@triton.jit(do_not_specialize=["segments"])
def combine(
    states, totals,
    segments,
    KP: tl.constexpr, VP: tl.constexpr, BE: tl.constexpr, BS: tl.constexpr, REVERSE: tl.constexpr,
    ORDERS: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """Running states over the segments, in place: each segment's entry becomes the state that leaves it.

    The shapes are those of `segment_states`. Program: (B * H, order, state or adjoint, BE entries of the state). BS
    segments are loaded at once: loaded one by one, each would wait for memory.
    """
    i_p = tl.program_id(0)
    i_e = i_p % tl.cdiv(KP * VP, BE)
    i_p = i_p // tl.cdiv(KP * VP, BE)
    i_a = i_p % (1 + ADJOINT)
    i_d = i_p // (1 + ADJOINT) % ORDERS
    i_n = (i_p // (1 + ADJOINT) // ORDERS).to(tl.int64)
    reverse = (i_d + REVERSE > 0) != (i_a == 1)
    o_e = i_e * BE + tl.arange(0, BE)
    p_s = states + ((i_n * ORDERS + i_d) * (1 + ADJOINT) + i_a) * segments * KP * VP
    p_t = totals + (i_n * ORDERS + i_d) * segments * KP
    b_carry = tl.zeros([BE], tl.float32)
    for i_s in range(tl.cdiv(segments, BS)):
        o_s = i_s * BS + tl.arange(0, BS)
        m_s = (o_s < segments)[:, None] & (o_e < KP * VP)[None, :]
        o_s = tl.where(reverse, segments - 1 - o_s, o_s).to(tl.int64)
        p_e = p_s + o_s[:, None] * KP * VP + o_e[None, :]
        b_state = tl.load(p_e, mask=m_s, other=0.0)
        b_decay = tl.exp(tl.load(p_t + o_s[:, None] * KP + o_e[None, :] // VP, mask=m_s, other=0.0))
        for i_r in tl.static_range(BS):
            # Masked segments decay by 1 and add nothing.
            m_r = (tl.arange(0, BS) == i_r)[:, None]
            b_carry = tl.sum(tl.where(m_r, b_decay * b_carry[None, :] + b_state, 0.0), 0)
            b_state = tl.where(m_r, b_carry[None, :], b_state)
        tl.store(p_e, b_state, mask=m_s)


@triton.jit
def incoming(p_states, i_s, segments, backwards, KP: tl.constexpr, VP: tl.constexpr, o_s):
    """State [KP, BV] that enters segment `i_s`: the one that leaves its predecessor, zero for the first."""
    i_from = tl.where(backwards, i_s + 1, i_s - 1)
    o_from = i_from + tl.zeros_like(o_s)  # Triton 3.9's interpreter makes integers of a scalar mask that it broadcasts
    m_s = (o_from >= 0) & (o_from < segments)
    return tl.load(p_states + i_from.to(tl.int64) * (KP * VP) + o_s, mask=m_s, other=0.0)


@triton.jit(do_not_specialize=["scale", "root", "tokens", "rows", "cols", "heads", "segments", "segment_chunks"])
def outputs(
    q, gate, k, v, states, partial, out, z, gate_bias, aug_weight,
    scale, root, tokens, rows, cols, heads, segments, segment_chunks,
    s_qb, s_qt, s_qh, s_gb, s_gt, s_gh, s_kb, s_kt, s_kh, s_vb, s_vt, s_vh, s_zb, s_zt, s_zh,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr,
    DERIVED: tl.constexpr, MIXER: tl.constexpr, COLUMN: tl.constexpr, REVERSE: tl.constexpr, ORDERS: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, SEGMENTED: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs of one segment in the orders of one axis, one order after the other. Program: (B * H, segment, V tile).

    `partial` [B, N, H, V] float32 collects the orders; the last one writes `out` [B, N, H, V]. FIRST marks the axis
    that starts the sum, with the tokens' own terms, and LAST the axis that ends it. In the mixer `out` becomes
    SiLU(z + bias) * LayerNorm(o), where o is the sum plus the self-augmentation. KEEP stores the sum at the end of the
    axis in `partial`, for the next axis or, as o, for the backward pass.
    """
    i_p = tl.program_id(0)
    i_v = i_p % (VP // BV)
    i_s = i_p // (VP // BV) % segments
    i_n = (i_p // (VP // BV) // segments).to(tl.int64)
    i_b, i_h = i_n // heads, i_n % heads
    o_k = tl.arange(0, KP)
    o_v = i_v * BV + tl.arange(0, BV)
    o_r = tl.arange(0, BT)
    m_strict = o_r[:, None] > o_r[None, :]
    o_state = o_k[:, None] * VP + o_v[None, :]
    p_q = q + i_b * s_qb + i_h * s_qh
    p_g = gate + i_b * s_gb + i_h * s_gh
    p_k = k + i_b * s_kb + i_h * s_kh
    p_v = v + i_b * s_vb + i_h * s_vh
    p_z = z + i_b * s_zb + i_h * s_zh
    s_ot = heads * V
    p_partial = partial + i_b * tokens * s_ot + i_h * V
    p_out = out + i_b * tokens * s_ot + i_h * V
    start = i_s * segment_chunks * BT
    chunks = tl.minimum(segment_chunks, tl.cdiv(tokens - start, BT))

    for i_d in range(ORDERS):
        reverse = i_d + REVERSE > 0
        b_s = tl.zeros([KP, BV], tl.float32)
        if SEGMENTED:
            b_s = incoming(states + (i_n * ORDERS + i_d) * segments * KP * VP, i_s, segments, reverse, KP, VP, o_state)
        for i_c in range(chunks):
            o_t, m_t = chunk_tokens(i_c, start, start + chunks * BT, tokens, rows, cols, reverse, COLUMN, BT)
            m_k = m_t[:, None] & (o_k < K)[None, :]
            m_v = m_t[:, None] & (o_v < V)[None, :]
            b_g = log_decay(load(p_g, o_t, s_gt, o_k, m_k), root, m_k, MIXER)
            b_q = load(p_q, o_t, s_qt, o_k, m_k)
            b_k = one_minus_exp(b_g) if DERIVED else load(p_k, o_t, s_kt, o_k, m_k)
            b_v = load(p_v, o_t, s_vt, o_v, m_v)
            b_start, b_middle, b_end, b_all = decays(b_g, BT)
            b_a = dot(b_q * tl.exp(b_middle), tl.trans(b_k * tl.exp(-b_middle)), PRECISION)
            b_a = tl.where(m_strict, b_a, 0.0)
            b_o = dot(b_a, b_v, PRECISION) + dot(b_q * tl.exp(b_start), b_s, PRECISION)
            b_s = tl.exp(b_all)[:, None] * b_s + dot(tl.trans(b_k * tl.exp(b_end)), b_v, PRECISION)
            if FIRST:  # noqa: SIM102 (one at compile time, one at run time)
                if i_d == 0:
                    b_o += tl.sum(b_q * b_k, 1)[:, None] * b_v
            b_o *= scale
            o_out = o_t[:, None] * s_ot + o_v[None, :]
            if not FIRST:
                b_o += tl.load(p_partial + o_out, mask=m_v, other=0.0)
            elif ORDERS > 1:
                b_o += tl.load(p_partial + o_out, mask=m_v & (i_d > 0), other=0.0)
            if MIXER and LAST:  # noqa: SIM102
                if i_d == ORDERS - 1:
                    # The sigmoid's constant 1/2 is left out, since the norm removes it.
                    b_w = tl.load(aug_weight + i_h * K + o_k, mask=o_k < K, other=0.0).to(tl.float32)
                    b_o += 0.5 * tanh(0.5 * tl.sum(b_q * b_w[None, :] * b_k, 1)[:, None] * b_v)
                    b_z = load(p_z, o_t, s_zt, o_v, m_v)
                    b_bias = tl.load(gate_bias + i_h * V + o_v, mask=o_v < V, other=0.0).to(tl.float32)
                    b_y = gated_norm(b_o, b_z + b_bias[None, :], (o_v < V)[None, :], V)
                    tl.store(p_out + o_out, b_y.to(out.dtype.element_ty), mask=m_v)
            if LAST and not MIXER:
                tl.store(p_out + o_out, b_o.to(out.dtype.element_ty), mask=m_v & (i_d == ORDERS - 1))
            if KEEP:
                tl.store(p_partial + o_out, b_o, mask=m_v)
            elif ORDERS > 1:
                tl.store(p_partial + o_out, b_o, mask=m_v & (i_d < ORDERS - 1))
        if ORDERS > 1:
            tl.debug_barrier()  # other threads of the program read what these stored


@triton.jit
def gated_norm(b_o, b_z, m_v, V: tl.constexpr):
    """SiLU(z) * LayerNorm(o) over the last dimension, without affine."""
    b_o -= tl.sum(b_o, 1)[:, None] / V  # masked channels of o are zero
    b_o = tl.where(m_v, b_o, 0.0)
    b_rstd = 1 / tl.sqrt(tl.sum(b_o * b_o, 1) / V + LN_EPS)
    return b_z * tl.sigmoid(b_z) * b_o * b_rstd[:, None]
