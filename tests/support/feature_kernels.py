"""One small kernel per Triton feature that a quantization library leans on; ``feature_checks`` runs them against torch."""
import triton
import triton.language as tl


@triton.jit
def cast(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty))


@triton.jit
def store_casts(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i))


@triton.jit
def binary(x, y, out, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i), tl.load(y + i)
    if OP == "add":
        r = a + b
    elif OP == "mul":
        r = a * b
    elif OP == "max":
        r = tl.maximum(a, b)
    elif OP == "min":
        r = tl.minimum(a, b)
    elif OP == "div_rn":
        r = tl.div_rn(a, b)
    elif OP == "divide":
        r = a / b
    elif OP == "greater":
        r = tl.where(a > b, a, b)
    elif OP == "floor_divide":
        r = a // b
    tl.store(out + i, r)


@triton.jit
def fma(x, y, z, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.fma(tl.load(x + i), tl.load(y + i), tl.load(z + i)))


@triton.jit
def multiply_add(x, y, z, out, BLOCK: tl.constexpr):
    """Two roundings, unless the compiler contracts it."""
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i) * tl.load(y + i) + tl.load(z + i))


@triton.jit
def reciprocal_sqrt(x, out, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    tl.store(out + i, tl.sqrt_rn(v) if OP == "sqrt_rn" else tl.div_rn(tl.full((BLOCK,), 1.0, tl.float32), v))


@triton.jit
def round_magic(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, (tl.load(x + i) + 12582912.0) - 12582912.0)


@triton.jit
def round_asm(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.inline_asm_elementwise("cvt.rni.f32.f32 $0, $1;", "=f,f", [tl.load(x + i)], dtype=tl.float32, is_pure=True, pack=1)
    tl.store(out + i, v)


@triton.jit
def nibbles_to_half(x, out, BLOCK: tl.constexpr):
    """int32 with nibbles at bits 0 and 16 -> two fp16 1024 + n in one word."""
    i = tl.arange(0, BLOCK)
    text: tl.constexpr = "lop3.b32 $0, $1, 0x000f000f, 0x64006400, 0xea;"
    tl.store(out + i, tl.inline_asm_elementwise(text, "=r,r", [tl.load(x + i)], dtype=tl.int32, is_pure=True, pack=1))


@triton.jit
def byte_shuffle(x, y, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    text: tl.constexpr = "prmt.b32 $0, $1, $2, 0x7250;"
    tl.store(out + i, tl.inline_asm_elementwise(text, "=r,r,r", [tl.load(x + i), tl.load(y + i)], dtype=tl.int32, is_pure=True, pack=1))


@triton.jit
def pack_nibbles(q, out, ROWS: tl.constexpr, COLS: tl.constexpr):
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLS)[None, :]
    low, high = tl.split(tl.reshape(tl.load(q + r * COLS + c).to(tl.int32) & 0xF, (ROWS, COLS // 2, 2)))
    tl.store(out + r * (COLS // 2) + tl.arange(0, COLS // 2)[None, :], (low | (high << 4)).to(tl.uint8))


@triton.jit
def unpack_nibbles(p, out, ROWS: tl.constexpr, COLS: tl.constexpr):
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLS // 2)[None, :]
    v = tl.load(p + r * (COLS // 2) + c)
    tl.store(out + r * COLS + tl.arange(0, COLS)[None, :], tl.reshape(tl.join(v & 0xF, v >> 4), (ROWS, COLS)))


@triton.jit
def shifts(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    tl.store(out + i, v >> 28)
    tl.store(out + BLOCK + i, (v.to(tl.uint32) >> 28).to(tl.int32))
    tl.store(out + 2 * BLOCK + i, (v << 28) >> 28)


@triton.jit
def gather(q, table, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.gather(tl.load(table + tl.arange(0, 16)), tl.load(q + i).to(tl.int32), 0))


@triton.jit
def group_reduce(x, out, OP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, GROUP: tl.constexpr):
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLS)[None, :]
    v = tl.reshape(tl.load(x + r * COLS + c), (ROWS, COLS // GROUP, GROUP))
    if OP == "absmax":
        v = tl.max(tl.abs(v), axis=2)
    elif OP == "min":
        v = tl.min(v, axis=2)
    else:
        v = tl.sum(v, axis=2)
    tl.store(out + r * (COLS // GROUP) + tl.arange(0, COLS // GROUP)[None, :], v.to(out.dtype.element_ty))


@triton.jit
def dot(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.load(a + m[:, None] * K + k[None, :])
    if TRANSPOSED:
        y = tl.trans(tl.load(b + n[:, None] * K + k[None, :]))
    else:
        y = tl.load(b + k[:, None] * N + n[None, :])
    acc = tl.zeros((M, N), out.dtype.element_ty)
    tl.store(out + m[:, None] * N + n[None, :], tl.dot(x, y, acc, input_precision=PRECISION, out_dtype=out.dtype.element_ty))


@triton.jit
def pipelined_dot(a, b, out, K, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr):
    """x [M, K] @ w [N, K].T in steps, through asynchronous copies."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BK)
    acc = tl.zeros((M, N), tl.float32)
    for start in range(0, K, BK):
        x = tl.load(a + m[:, None] * K + (start + k)[None, :])
        w = tl.load(b + n[:, None] * K + (start + k)[None, :])
        acc = tl.dot(x, tl.trans(w), acc)
    tl.store(out + m[:, None] * N + n[None, :], acc)


@triton.jit
def atomic(x, out, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i)
    if OP == "add":
        tl.atomic_add(out + (i % 8), v)
    elif OP == "max":
        tl.atomic_max(out + (i % 8), v)
    else:
        tl.atomic_min(out + (i % 8), v)


@triton.jit
def last_program_sums(x, partial, counter, out, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr):
    """Each program leaves a partial sum; whichever comes last adds them in fixed order."""
    i = tl.arange(0, BLOCK)
    pid = tl.program_id(0)
    tl.store(partial + pid * BLOCK + i, tl.load(x + pid * BLOCK + i) * 2)
    tl.debug_barrier()  # Triton before 3.9 puts none before the release
    if tl.atomic_add(counter, 1) == PROGRAMS - 1:
        total = tl.zeros((BLOCK,), tl.float32)
        for p in range(PROGRAMS):
            total += tl.load(partial + p * BLOCK + i)
        tl.store(out + i, total)


@triton.jit
def masked_copy(x, out, n, FILL: tl.constexpr, MASK_STORE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i, i < n, other=-7.0) if FILL else tl.load(x + i, i < n)
    if MASK_STORE:
        tl.store(out + i, v, i < n)
    else:
        tl.store(out + i, v)


@triton.jit
def unmasked_copy(x, out, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i))


@triton.jit
def row_copy(x, out, stride, row, BLOCK: tl.constexpr):
    """Reads x[row * stride + i]: overflows 32 bits where a row lies far out."""
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + (row * stride - row * stride) + i))


@triton.jit
def checked(x, n):
    tl.device_assert(n > 5, "n must exceed 5")
    tl.store(x, 1.0)


@triton.jit
def scalars(out, floats, i32_value, i64_value, f_value, one):
    tl.store(out, i32_value)
    tl.store(out + 1, i64_value)
    tl.store(out + 2, one)
    tl.store(floats, f_value)


@triton.jit
def loop_and_branch(x, out, n, MODE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    j = 0
    while j < n:
        acc += tl.load(x + j * BLOCK + i)
        j += 1
    if MODE == "negate":
        acc = -acc
    tl.store(out + i, acc)


@triton.jit
def twice(v):
    return v + v


@triton.jit
def apply(x, out, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, FUNCTION(tl.load(x + i)))
