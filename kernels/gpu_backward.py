"""Triton kernels of the backward pass.

With D_t the gradient of the state S_t, one order gives
    dq_t = S_t do_t,   dv_t = k_t D_t,   dk_t = D_t v_t,   dg_t = exp(g_t) * rowsum(S_{t-1} * D_t).
The last is a running sum of q * dq - k * dk against the scan. It is taken chunk by chunk, each with its own boundary
term rowsum(S * D), since over a long sequence its rounding errors would add up to more than the gradient.
"""

import triton
import triton.language as tl

from .gpu_common import LN_EPS, chunk_tokens, decays, dot, load, log_decay, log_decay_gradient, one_minus_exp, tanh
from .gpu_forward import incoming


@triton.jit
def add(p_sum, p_out, o_x, m_x, b_x, FIRST: tl.constexpr, LAST: tl.constexpr):
    """Adds `b_x` to what earlier orders left in `p_sum`; stores the sum there or, at the last order, in `p_out`."""
    if not FIRST:
        b_x += tl.load(p_sum + o_x, mask=m_x, other=0.0)
    if LAST:
        tl.store(p_out + o_x, b_x.to(p_out.dtype.element_ty), mask=m_x)
    else:
        tl.store(p_sum + o_x, b_x, mask=m_x)


@triton.jit(do_not_specialize=["scale", "root", "tokens", "rows", "cols", "heads", "segments", "segment_chunks"])
def query_gradients(
    q, gate, k, v, grad_out, states, chunk_states, aug_weight, dq_sum, dq, dgate_sum, daug_weight,
    scale, root, tokens, rows, cols, heads, segments, segment_chunks,
    s_qb, s_qt, s_qh, s_gb, s_gt, s_gh, s_kb, s_kt, s_kh, s_vb, s_vt, s_vh, s_ob, s_ot, s_oh, s_db, s_dt,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, BT: tl.constexpr, DERIVED: tl.constexpr,
    MIXER: tl.constexpr, COLUMN: tl.constexpr, REVERSE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    SEGMENTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walks one segment in one order, with the scan, for dq and its part in the gradient of the gate, both summed over
    the orders. Program: (B * H, segment).

    It stores the state at the start of each chunk in chunk_states [B * H, chunks, KP, VP]. The first order also adds
    the tokens' own terms and, in the mixer, the self-augmentation; the gradient of its weight comes in parts,
    daug_weight [B, segments, H, K].
    """
    i_p = tl.program_id(0)
    i_s = i_p % segments
    i_n = (i_p // segments).to(tl.int64)
    i_b, i_h = i_n // heads, i_n % heads
    o_k = tl.arange(0, KP)
    o_v = tl.arange(0, VP)
    o_r = tl.arange(0, BT)
    m_strict = o_r[:, None] > o_r[None, :]
    o_state = o_k[:, None] * VP + o_v[None, :]
    p_q = q + i_b * s_qb + i_h * s_qh
    p_g = gate + i_b * s_gb + i_h * s_gh
    p_k = k + i_b * s_kb + i_h * s_kh
    p_v = v + i_b * s_vb + i_h * s_vh
    p_o = grad_out + i_b * s_ob + i_h * s_oh
    i_d = i_b * s_db + i_h * K
    start = i_s * segment_chunks * BT
    all_chunks = tl.cdiv(tokens, BT)
    chunks = tl.minimum(segment_chunks, all_chunks - i_s * segment_chunks)
    p_chunk = chunk_states + (i_n * all_chunks + i_s * segment_chunks) * KP * VP

    b_s = tl.zeros([KP, VP], tl.float32)
    if SEGMENTED:
        b_s = incoming(states + i_n * 2 * segments * KP * VP, i_s, segments, REVERSE, KP, VP, o_state)
    if MIXER and FIRST:
        b_w = tl.load(aug_weight + i_h * K + o_k, mask=o_k < K, other=0.0).to(tl.float32)
        b_dw = tl.zeros([KP], tl.float32)
    for i_c in range(chunks):
        o_t, m_t = chunk_tokens(i_c, start, start + chunks * BT, tokens, rows, cols, REVERSE, COLUMN, BT)
        m_k = m_t[:, None] & (o_k < K)[None, :]
        m_v = m_t[:, None] & (o_v < V)[None, :]
        tl.store(p_chunk + i_c * KP * VP + o_state, b_s)
        b_do = load(p_o, o_t, s_ot, o_v, m_v)
        b_dq = dot(b_do, tl.trans(b_s), PRECISION)
        b_g = log_decay(load(p_g, o_t, s_gt, o_k, m_k), root, m_k, MIXER)
        b_k = one_minus_exp(b_g) if DERIVED else load(p_k, o_t, s_kt, o_k, m_k)
        b_start, b_middle, b_end, b_all = decays(b_g, BT)
        b_dq *= tl.exp(b_start)
        b_v = load(p_v, o_t, s_vt, o_v, m_v)
        b_da = tl.where(m_strict, dot(b_do, tl.trans(b_v), PRECISION), 0.0)
        b_dq += dot(b_da, b_k * tl.exp(-b_middle), PRECISION) * tl.exp(b_middle)
        b_dq *= scale
        b_s = tl.exp(b_all)[:, None] * b_s + dot(tl.trans(b_k * tl.exp(b_end)), b_v, PRECISION)
        o_d = i_d + o_t[:, None] * s_dt + o_k[None, :]
        # Before the own terms are added: they cancel in the gradient of the gate, but would leave rounding errors.
        b_q = load(p_q, o_t, s_qt, o_k, m_k)
        add(dgate_sum, dgate_sum, o_d, m_k, tl.cumsum(b_q * b_dq, 0, reverse=True), FIRST, False)
        if FIRST:
            b_dq += (scale * tl.sum(b_do * b_v, 1))[:, None] * b_k
            if MIXER:
                b_y = tanh(0.5 * tl.sum(b_q * b_w[None, :] * b_k, 1)[:, None] * b_v)
                b_dr = tl.sum(0.25 * (1 - b_y * b_y) * b_do * b_v, 1)
                b_dq += b_dr[:, None] * b_w[None, :] * b_k
                b_dw += tl.sum(b_dr[:, None] * b_q * b_k, 0)
        add(dq_sum, dq, o_d, m_k, b_dq, FIRST, LAST)
    if MIXER and FIRST:
        tl.store(daug_weight + ((i_b * segments + i_s) * heads + i_h) * K + o_k, b_dw, mask=o_k < K)


@triton.jit(do_not_specialize=["scale", "root", "tokens", "rows", "cols", "heads", "segments", "segment_chunks"])
def key_value_gradients(
    q, gate, k, v, grad_out, states, chunk_states, aug_weight, dgate_sum, dgate, dk_sum, dk, dv_sum, dv,
    scale, root, tokens, rows, cols, heads, segments, segment_chunks,
    s_qb, s_qt, s_qh, s_gb, s_gt, s_gh, s_kb, s_kt, s_kh, s_vb, s_vt, s_vh, s_ob, s_ot, s_oh, s_db, s_dt, s_eb, s_et,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, BT: tl.constexpr, DERIVED: tl.constexpr,
    MIXER: tl.constexpr, COLUMN: tl.constexpr, REVERSE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    SEGMENTED: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walks one segment in one order, against the scan, after `query_gradients`: dk, dv and dgate, summed over orders.

    It takes what `query_gradients` takes. KEYS asks for dk and dgate, VALUES for dv: together they can need more
    registers than there are. Program: (B * H, segment).
    """
    i_p = tl.program_id(0)
    i_s = i_p % segments
    i_n = (i_p // segments).to(tl.int64)
    i_b, i_h = i_n // heads, i_n % heads
    o_k = tl.arange(0, KP)
    o_v = tl.arange(0, VP)
    o_r = tl.arange(0, BT)
    m_strict = o_r[:, None] > o_r[None, :]
    o_state = o_k[:, None] * VP + o_v[None, :]
    p_q = q + i_b * s_qb + i_h * s_qh
    p_g = gate + i_b * s_gb + i_h * s_gh
    p_k = k + i_b * s_kb + i_h * s_kh
    p_v = v + i_b * s_vb + i_h * s_vh
    p_o = grad_out + i_b * s_ob + i_h * s_oh
    i_d = i_b * s_db + i_h * K
    i_e = i_b * s_eb + i_h * V
    start = i_s * segment_chunks * BT
    all_chunks = tl.cdiv(tokens, BT)
    chunks = tl.minimum(segment_chunks, all_chunks - i_s * segment_chunks)
    p_chunk = chunk_states + (i_n * all_chunks + i_s * segment_chunks) * KP * VP

    b_d = tl.zeros([KP, VP], tl.float32)
    if SEGMENTED:
        b_d = incoming(states + (i_n * 2 + 1) * segments * KP * VP, i_s, segments, not REVERSE, KP, VP, o_state)
    for i_x in range(chunks):
        i_c = chunks - 1 - i_x
        o_t, m_t = chunk_tokens(i_c, start, start + chunks * BT, tokens, rows, cols, REVERSE, COLUMN, BT)
        m_k = m_t[:, None] & (o_k < K)[None, :]
        m_v = m_t[:, None] & (o_v < V)[None, :]
        if KEYS:
            # rowsum(S * D) at the end of the chunk: the part of the state at its start; below, the chunk's own part
            b_boundary = tl.sum(tl.load(p_chunk + i_c * KP * VP + o_state) * b_d, 1)
        b_g = log_decay(load(p_g, o_t, s_gt, o_k, m_k), root, m_k, MIXER)
        b_k = one_minus_exp(b_g) if DERIVED else load(p_k, o_t, s_kt, o_k, m_k)
        b_v = load(p_v, o_t, s_vt, o_v, m_v)
        b_start, b_middle, b_end, b_all = decays(b_g, BT)
        if KEYS:
            b_dk = dot(b_v, tl.trans(b_d), PRECISION) * tl.exp(b_end)
            b_boundary = tl.exp(b_all) * b_boundary + tl.sum(b_k * b_dk, 0)
        if VALUES:
            b_dv = dot(b_k * tl.exp(b_end), b_d, PRECISION)
        # Loaded only here, to save registers
        b_q = load(p_q, o_t, s_qt, o_k, m_k) * scale
        b_do = load(p_o, o_t, s_ot, o_v, m_v)
        b_qm = b_q * tl.exp(b_middle)
        b_km = tl.exp(-b_middle)
        if VALUES:
            b_a = tl.where(m_strict, dot(b_qm, tl.trans(b_k * b_km), PRECISION), 0.0)
            b_dv += dot(tl.trans(b_a), b_do, PRECISION)
        if KEYS:
            b_da = tl.where(m_strict, dot(b_do, tl.trans(b_v), PRECISION), 0.0)
            b_dk += dot(tl.trans(b_da), b_qm, PRECISION) * b_km
            b_dg = b_boundary[None, :] - tl.cumsum(b_k * b_dk, 0, reverse=True)
        if FIRST and MIXER:
            b_w = tl.load(aug_weight + i_h * K + o_k, mask=o_k < K, other=0.0).to(tl.float32) / scale
            b_r = tl.sum(b_q * b_w[None, :] * b_k, 1)
            b_y = tanh(0.5 * b_r[:, None] * b_v)
            b_dy = 0.25 * (1 - b_y * b_y) * b_do
        if VALUES:
            if FIRST:
                b_dv += tl.sum(b_q * b_k, 1)[:, None] * b_do
                if MIXER:
                    b_dv += b_r[:, None] * b_dy
            add(dv_sum, dv, i_e + o_t[:, None] * s_et + o_v[None, :], m_v, b_dv, FIRST, LAST)
        if KEYS:
            if FIRST:
                b_dk += tl.sum(b_do * b_v, 1)[:, None] * b_q
                if MIXER:
                    b_dk += tl.sum(b_dy * b_v, 1)[:, None] * b_w[None, :] * b_q
            o_d = i_d + o_t[:, None] * s_dt + o_k[None, :]
            if DERIVED:
                b_dg -= tl.exp(b_g) * b_dk
            else:
                add(dk_sum, dk, o_d, m_k, b_dk, FIRST, LAST)
            b_dg += tl.load(dgate_sum + o_d, mask=m_k, other=0.0)
            if LAST:
                b_dg = log_decay_gradient(b_dg, load(p_g, o_t, s_gt, o_k, m_k), root, MIXER)
                tl.store(dgate + o_d, b_dg.to(dgate.dtype.element_ty), mask=m_k)
            else:
                tl.store(dgate_sum + o_d, b_dg, mask=m_k)
        b_d = tl.exp(b_all)[:, None] * b_d + dot(tl.trans(b_q * tl.exp(b_start)), b_do, PRECISION)


@triton.jit(do_not_specialize=["tokens", "images", "heads", "row_blocks"])
def gated_norm_gradient(
    grad_y, o, z, gate_bias, grad_o, grad_z, grad_bias,
    tokens, images, heads, row_blocks,
    s_zb, s_zt, s_zh, s_yb, s_yt, s_yh, s_ob, s_ot, s_oh, s_dzb, s_dzt,
    V: tl.constexpr, VP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Gradients of SiLU(z + bias) * LayerNorm(o): of o and z, and of the bias in parts [programs of a head, H, V].

    `o` is [B, N, H, V] float32, contiguous. Program: (`row_blocks` blocks of BT tokens of the whole batch, head).
    """
    i_p = tl.program_id(0)
    i_h = (i_p % heads).to(tl.int64)
    i_r = i_p // heads
    o_v = tl.arange(0, VP)
    b_bias = tl.load(gate_bias + i_h * V + o_v, mask=o_v < V, other=0.0).to(tl.float32)
    b_sum = tl.zeros([VP], tl.float32)
    for i_c in range(row_blocks):
        o_r = (i_r.to(tl.int64) * row_blocks + i_c) * BT + tl.arange(0, BT)
        m_x = (o_r < images.to(tl.int64) * tokens)[:, None] & (o_v < V)[None, :]
        i_b, o_t = (o_r // tokens)[:, None], o_r % tokens
        b_o = load(o + i_h * V, o_r, heads * V, o_v, m_x)
        b_z = load(z + i_b * s_zb + i_h * s_zh, o_t, s_zt, o_v, m_x) + b_bias[None, :]
        b_dy = load(grad_y + i_b * s_yb + i_h * s_yh, o_t, s_yt, o_v, m_x)
        b_o = tl.where((o_v < V)[None, :], b_o - tl.sum(b_o, 1)[:, None] / V, 0.0)
        b_rstd = 1 / tl.sqrt(tl.sum(b_o * b_o, 1) / V + LN_EPS)
        b_n = b_o * b_rstd[:, None]
        b_gate = tl.sigmoid(b_z)
        b_dz = b_dy * b_n * b_gate * (1 + b_z * (1 - b_gate))
        b_dn = b_dy * b_z * b_gate
        b_do = b_dn - tl.sum(b_dn, 1)[:, None] / V - b_n * tl.sum(b_dn * b_n, 1)[:, None] / V
        o_o = i_b * s_ob + o_t[:, None] * s_ot + i_h * s_oh + o_v[None, :]
        tl.store(grad_o + o_o, b_do * b_rstd[:, None], mask=m_x)
        o_z = i_b * s_dzb + o_t[:, None] * s_dzt + i_h * V + o_v[None, :]
        tl.store(grad_z + o_z, b_dz.to(grad_z.dtype.element_ty), mask=m_x)
        b_sum += tl.sum(b_dz, 0)
    tl.store(grad_bias + (i_r.to(tl.int64) * heads + i_h) * V + o_v, b_sum, mask=o_v < V)
