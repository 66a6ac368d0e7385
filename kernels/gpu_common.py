"""What the Triton kernels share: index maps, the gate and its key, exponentials of a chunk, products.

Names: i_ index, o_ offsets, p_ pointers, b_ block of values, m_ mask. Values are float32 from load to store.
BT tokens make a chunk; K and V channels are padded to KP and VP, powers of two of at least 16.
"""

import triton
import triton.language as tl

from .reference import GATE_FLOOR, NORM_EPS

# Kernels can read constexpr globals only.
FLOOR = tl.constexpr(GATE_FLOOR)
LN_EPS = tl.constexpr(NORM_EPS)


@triton.jit
def one_minus_exp(b_x):
    """1 - exp(x) for x <= 0, with all digits also near zero: not every target has expm1."""
    b_series = 1 + b_x / 5 * (1 + b_x / 6 * (1 + b_x / 7))
    b_series = 1 + b_x / 2 * (1 + b_x / 3 * (1 + b_x / 4 * b_series))
    return tl.where(b_x > -0.25, -b_x * b_series, 1 - tl.exp(b_x))


@triton.jit
def log_sigmoid(b_x):
    """min(x, 0) - log1p(exp(-|x|)), with all digits also for large x."""
    b_e = tl.exp(-tl.abs(b_x))
    b_u = 1 + b_e
    b_log1p = tl.where(b_u == 1, b_e, tl.log(b_u) * (b_e / tl.where(b_u == 1, 1.0, b_u - 1)))
    return tl.where(b_x < 0, b_x, 0.0) - b_log1p


@triton.jit
def tanh(b_x):
    """(1 - exp(-2|x|)) / (1 + exp(-2|x|)), with the sign of x; exact near zero, no overflow."""
    b_e = one_minus_exp(-2 * tl.abs(b_x))
    b_y = b_e / (2 - b_e)
    return tl.where(b_x < 0, -b_y, b_y)


@triton.jit
def log_decay(b_x, root, m_x, LOGITS: tl.constexpr):
    """The clamped log-decay from what memory holds: log-decays, or logits in the mixer. Where masked, 0: no decay.

    `root` is the mixer's factor on logsigmoid(logits): its decay_scale over the gate's temperature.

    It clamps by comparisons, since minimum and maximum would turn a NaN into a valid gate.
    """
    b_g = b_x
    if LOGITS:
        b_g = log_sigmoid(b_x) * root
    b_g = tl.where(b_g < FLOOR, FLOOR, tl.where(b_g > 0, 0.0, b_g))
    return tl.where(m_x, b_g, 0.0)


@triton.jit
def log_decay_gradient(b_dg, b_x, root, LOGITS: tl.constexpr):
    """The gradient of what memory holds, from that of the clamped log-decay; it is zero at the ends and beyond them."""
    if LOGITS:
        m_clamped = log_sigmoid(b_x) * root <= FLOOR
        b_e = tl.exp(-tl.abs(b_x))
        b_dg *= root * tl.where(b_x > 0, b_e, 1.0) / (1 + b_e)  # times sigmoid(-x)
    else:
        m_clamped = (b_x <= FLOOR) | (b_x >= 0)
    return tl.where(m_clamped, 0.0, b_dg)


@triton.jit
def chunk_tokens(i_c, start, stop, tokens, rows, cols, reverse, COLUMN: tl.constexpr, BT: tl.constexpr):
    """Row-major tokens [BT] (int64) of chunk `i_c` of the segment [start, stop) in scan sequence, and their mask.

    A scan order is this map and nothing else. `stop` is start plus whole chunks, so that both directions share chunks.
    """
    o_c = i_c * BT + tl.arange(0, BT)
    o_t = tl.where(reverse, stop - 1 - o_c, start + o_c)
    m_t = o_t < tokens
    if COLUMN:
        o_t = (o_t % rows) * cols + o_t // rows
    return o_t.to(tl.int64), m_t


@triton.jit
def load(p_base, o_t, stride, o_x, m_x):
    """[BT, channels] in float32, 0 where masked."""
    return tl.load(p_base + o_t[:, None] * stride + o_x[None, :], mask=m_x, other=0.0).to(tl.float32)


@triton.jit
def decays(b_g, BT: tl.constexpr):
    """Log-decays of a chunk [BT, KP]: from its start, from its middle, to its end; and of all of it, [KP].

    exp(middle_t) * exp(-middle_s) is the decay from s to t. Half a chunk at the floor bounds both exponents.
    """
    o_r = tl.arange(0, BT)[:, None]
    b_start = tl.cumsum(b_g, 0)
    b_all = tl.sum(b_g, 0)
    b_half = tl.sum(tl.where(o_r < BT // 2, b_g, 0.0), 0)
    return b_start, b_start - b_half[None, :], b_all[None, :] - b_start, b_all


@triton.jit
def dot(b_x, b_y, PRECISION: tl.constexpr):
    """Matrix product with float32 sums. The operands are never fp16: rescaled q and k leave its range."""
    if PRECISION == "bf16":
        b_product = tl.dot(b_x.to(tl.bfloat16), b_y.to(tl.bfloat16))
    elif PRECISION == "ieee" and b_x.shape[1] > 32:
        # Exact products keep rows and columns of their operands in registers: half of them at a time fit.
        M: tl.constexpr = b_x.shape[0]
        N: tl.constexpr = b_y.shape[1]
        L: tl.constexpr = b_x.shape[1] // 2
        b_x0, b_x1 = tl.split(tl.permute(tl.reshape(b_x, [M, 2, L]), (0, 2, 1)))
        b_y0, b_y1 = tl.split(tl.permute(tl.reshape(b_y, [2, L, N]), (1, 2, 0)))
        b_product = tl.dot(b_x0, b_y0, input_precision="ieee")
        b_product = tl.dot(b_x1, b_y1, b_product, input_precision="ieee")
    else:
        b_product = tl.dot(b_x, b_y, input_precision=PRECISION)
    return b_product
