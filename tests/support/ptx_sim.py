# ruff: noqa
"""Run Triton's *compiled* PTX on the CPU: a small lockstep SIMT simulator in numpy (one CTA at a time, all threads vectorised).
   from tests.support.ptx_sim import launch;  launch(r.ptx, grid, [tensor, tensor, 5, ...], num_warps=4, shared=r.shared)
Covers what Triton 3.6-3.9 emits for elementwise / reduction / mma.sync kernels for sm_80 (compile with target sm_80 to use it), plus
wgmma with B in shared memory (K- or MN-major, 32/64/128-byte swizzle) and A in registers or shared memory for sm_90.
Not modelled: TMA, mbarrier, clusters, tcgen05, approximations of div.full / ex2 (computed exactly), races between threads, timing.
Every global access is bounds-checked against the argument tensors.  Shared memory starts as 0xFF (NaN).
lazy=True: cp.async and wgmma take effect as late as the wait instructions allow (operands and addresses' contents are read then), instead of
at issue; running both ways catches missing waits and buffers or registers reused too early.
order: the sequence in which the CTAs run (they run one after another, whole).
Sim.unfenced counts wgmma reads of shared memory written through the generic proxy (st.shared, cp.async) with no fence.proxy.async in between
(meaningful with lazy=True); the values are still right here, the hardware does not promise them."""
import ctypes, re, numpy as np, torch
U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
SMEM_BASE = 0x400

class PtxError(Exception): pass
def f32(x): return x.view(np.float32)
def bf2f(x): return (x.astype(U32) << U32(16)).view(np.float32)
def f2bf(x, rz=False):
    b = np.ascontiguousarray(x, np.float32).view(U32)
    r = (b >> U32(16)) if rz else ((b + U32(0x7FFF) + ((b >> U32(16)) & U32(1))) >> U32(16))
    return np.where(np.isnan(x), U32(0x7FFF), r).astype(U16)
def h2f(x): return x.view(np.float16).astype(np.float64)
def f2h(x): return np.ascontiguousarray(x.astype(np.float16)).view(U16)
def lo(x): return (x & U32(0xFFFF)).astype(U16)
def hi(x): return (x >> U32(16)).astype(U16)
def pk(a, b): return a.astype(U32) | (b.astype(U32) << U32(16))
_fp8 = {}
def fp8_enc(x, kind):       # RNE + satfinite
    t = torch.from_numpy(np.ascontiguousarray(x, np.float32)); m = 448.0 if kind == "e4m3" else 57344.0
    t = torch.where(torch.isnan(t), t, t.clamp(-m, m)).to(torch.float8_e4m3fn if kind == "e4m3" else torch.float8_e5m2)
    return t.view(torch.uint8).numpy()
def fp8_dec(b, kind):
    return torch.from_numpy(np.ascontiguousarray(b)).view(torch.float8_e4m3fn if kind == "e4m3" else torch.float8_e5m2).to(torch.float32).numpy()

class Sim:
    def __init__(self, ptx):
        self.code, self.labels, self.params = [], {}, []
        hdr = ptx[ptx.index(".entry"):]; self.params = re.findall(r"\.param\s+\.(\w+)[^,\n)]*?(\w+_param_\d+)", hdr[:hdr.index(")")])
        body = hdr[hdr.index("{") + 1:]
        body = re.sub(r"//[^\n]*", "", body); body = re.sub(r"\.loc\s[^\n]*", "", body)
        body = re.sub(r"\.pragma[^;]*;", "", body)
        tok = re.compile(r"\s*(?:(\$?[A-Za-z_][\w$]*):(?!:)|(\{(?=\s*(?:\.reg|\n|[a-z@])))|(\})|([^;{}]*(?:\{[^}]*\}[^;{}]*)*;))", re.S)
        i = 0
        while i < len(body):
            m = tok.match(body, i)
            if not m: break
            i = m.end()
            if m[1]: self.labels[m[1]] = len(self.code)
            elif m[4]:
                s = " ".join(m[4][:-1].split())
                if not s or s.startswith((".reg", ".shared", ".section", ".b8", ".b32", ".b64", ".local")): continue
                self.code.append(self.decode(s))
            if body[i:].lstrip().startswith(".section"): break
        self.code.append((None, "ret", [], "ret"))
    @staticmethod
    def decode(s):
        p = None
        m = re.match(r"@(!?)(%\w+)\s+(.*)", s)
        if m: p, s = (m[2], m[1] == "!"), m[3]
        op, _, rest = s.partition(" "); op = op.replace("::cta", "").replace("::cluster", "")
        ops, depth, cur = [], 0, ""
        for ch in rest:
            if ch in "{[": depth += 1
            if ch in "}]": depth -= 1
            if ch == "," and depth == 0: ops.append(cur.strip()); cur = ""
            else: cur += ch
        if cur.strip(): ops.append(cur.strip())
        return p, op, ops, s

    def launch(self, grid, args, num_warps, shared, max_steps=10**7, lazy=False, order=None):
        self.lazy = lazy; self.unfenced = 0
        self.nt = num_warps * 32; self.bufs = []; vals = []
        for i, a in enumerate(args):
            if isinstance(a, torch.Tensor):
                n = (sum((s - 1) * st for s, st in zip(a.shape, a.stride())) + 1) * a.element_size() if a.numel() else 0
                b = np.ctypeslib.as_array((ctypes.c_uint8 * n).from_address(a.data_ptr())) if n else np.zeros(0, U8)
                base = ((i + 1) << 40) + a.data_ptr() % 256; self.bufs.append((base, b)); vals.append(base)
            else: vals.append(a)
        vals += [0] * (len(self.params) - len(vals))
        self.pvals = {n: v for (t, n), v in zip(self.params, vals)}
        grid = tuple(grid) + (1,) * (3 - len(grid)); self.grid = grid; self.steps = 0
        ctas = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
        for i in (range(len(ctas)) if order is None else order(len(ctas))): self.run_cta(ctas[i], shared, max_steps)

    # ------------------------------------------------------------------ operands
    def rd(self, o):
        if o[0] == "%":
            if o in self.R: return self.R[o]
            n = self.nt; t = np.arange(n, dtype=U32)
            sp = {"%tid.x": t, "%tid.y": t * 0, "%tid.z": t * 0, "%laneid": t & U32(31), "%warpid": t >> U32(5), "%ntid.x": np.full(n, n, U32),
                  "%ctaid.x": np.full(n, self.cta[0], U32), "%ctaid.y": np.full(n, self.cta[1], U32), "%ctaid.z": np.full(n, self.cta[2], U32),
                  "%nctaid.x": np.full(n, self.grid[0], U32), "%nctaid.y": np.full(n, self.grid[1], U32), "%nctaid.z": np.full(n, self.grid[2], U32)}
            if o in sp: return sp[o]
            w = re.fullmatch(r"%(rs|rd|r|p|f|fd)\d+", o)       # LLVM may read an IMPLICIT_DEF register: value irrelevant
            if w: return np.zeros(n, {"rs": U16, "rd": U64, "r": U32, "p": bool, "f": U32, "fd": U64}[w[1]])
            raise PtxError(f"read of unset register {o}")
        return o
    def val(self, o, bits):
        """operand as uint array of the given width"""
        dt = {16: U16, 32: U32, 64: U64, 8: U8, 1: bool}[bits]
        v = self.rd(o)
        if isinstance(v, np.ndarray):
            return v if v.dtype == dt else v.astype(dt)
        if v == "global_smem": c = SMEM_BASE
        elif re.fullmatch(r"0[fF][0-9a-fA-F]{8}", v): c = int(v[2:], 16)
        elif re.fullmatch(r"0[dD][0-9a-fA-F]{16}", v): c = int(v[2:], 16)
        elif re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", v): c = int(v.rstrip("U"), 0)
        elif v in self.R: return self.R[v].astype(dt)
        else: raise PtxError(f"operand {v}")
        return np.full(self.nt, c & ((1 << bits) - 1), dt) if bits > 1 else np.full(self.nt, bool(c))
    def wr(self, o, v, m):
        if o == "_": return
        old = self.R.get(o)
        if m is True or old is None or old.dtype != v.dtype: 
            self.R[o] = v.copy() if m is True or old is None else np.where(m, v, old.astype(v.dtype))
        else: self.R[o] = np.where(m, v, old)
    @staticmethod
    def vec(o): return [x.strip() for x in o[1:-1].split(",")] if o[0] == "{" else [o]
    def addr(self, o):
        s = o.strip("[] ").strip(); m = re.fullmatch(r"(%?[\w$.]+)\s*(?:\+\s*(-?\w+))?", s)
        b = self.val(m[1], 64) if m[1] in self.R or m[1].startswith("%") else self.val(m[1], 64)
        return b + U64(int(m[2], 0) & 0xFFFFFFFFFFFFFFFF) if m[2] else b
    # ------------------------------------------------------------------ memory
    def gaccess(self, a, n, m, store=None):
        """gather/scatter n bytes per active thread; returns [nt, n] uint8"""
        out = np.zeros((self.nt, n), U8); mm = np.full(self.nt, True) if m is True else m
        if not mm.any(): return out
        done = np.zeros(self.nt, bool)
        for base, b in self.bufs:
            off = (a - U64(base)).astype(np.int64); ok = mm & (off >= 0) & (off + n <= len(b)) & ((a >> U64(40)) == U64(base >> 40))
            if ok.any():
                idx = off[ok][:, None] + np.arange(n)
                if store is None: out[ok] = b[idx]
                else: b[idx] = store[ok]
                done |= ok
        if (mm & ~done).any():
            t = int(np.nonzero(mm & ~done)[0][0]); raise PtxError(f"global {'store' if store is not None else 'load'} out of bounds: CTA {self.cta} thread {t} addr {int(a[t]):#x} ({int((mm & ~done).sum())} threads)")
        return out
    def saccess(self, a, n, m, store=None):
        out = np.zeros((self.nt, n), U8); mm = np.full(self.nt, True) if m is True else m
        off = a.astype(np.int64) - SMEM_BASE
        if not mm.any(): return out
        if (off[mm] < 0).any() or (off[mm] + n > len(self.smem)).any(): raise PtxError("shared access out of bounds")
        idx = off[mm][:, None] + np.arange(n)
        if store is None: out[mm] = self.smem[idx]
        else: self.smem[idx] = store[mm]; self.dirty[idx] = True
        return out

    def run_cta(self, cta, shared, max_steps):
        self.cta = cta; self.R = {}; self.smem = np.full(max(shared, 16) + 1024, 255, U8); self.cpq = [[]]; self.wgq = [[]]; self.dirty = np.zeros(len(self.smem), bool)
        pc = np.zeros(self.nt, np.int64); END = len(self.code)
        while True:
            cur = int(pc.min())
            if cur >= END: return
            act = pc == cur; full = bool(act.all())
            p, op, o, src = self.code[cur]
            m = True if full else act
            if p is not None:
                pv = self.R[p[0]]; pv = ~pv if p[1] else pv
                m = pv if full else (act & pv)
            self.steps += 1
            if self.steps > max_steps: raise PtxError("step limit")
            if op.startswith("bra"):
                t = self.labels[o[0]]; pc = np.where(act, cur + 1, pc)
                pc = np.where(act if m is True else m, t, pc); continue
            if op in ("ret", "exit"):
                pc = np.where(act, cur + 1, pc); pc = np.where(act if m is True else m, END, pc); continue
            pc = np.where(act, cur + 1, pc) if not full else pc + 1
            if m is not True and not m.any(): continue
            try: self.step(op, o, m)
            except PtxError: raise
            except Exception as e: raise PtxError(f"{src}: {type(e).__name__}: {e}") from e

    # ------------------------------------------------------------------ one instruction
    def step(self, op, o, m):
        q = op.split("."); k = q[0]; W, V = self.wr, self.val
        ty = q[-1]; b = int(re.sub(r"\D", "", ty) or 0) if re.fullmatch(r"[bsuf]\d+", ty) else {"bf16": 16, "f16x2": 32, "bf16x2": 32, "pred": 1}.get(ty, 0)
        S = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
        sg = ty[0] == "s"
        def I(x):                                   # integer view honouring signedness
            v = V(x, b); return v.view(S[b]) if sg else v
        def F(x):                                   # float operand as float64/32 array
            if ty == "f32": return f32(V(x, 32))
            if ty == "f64": return V(x, 64).view(np.float64)
            if ty == "f16": return h2f(V(x, 16))
            if ty == "bf16": return bf2f(V(x, 16)).astype(np.float64)
        def FW(d, r):
            with np.errstate(all="ignore"):
                if ty == "f32": v = np.ascontiguousarray(r.astype(np.float32)).view(U32)
                elif ty == "f64": v = np.ascontiguousarray(r.astype(np.float64)).view(U64)
                elif ty == "f16": v = f2h(r)
                else: v = f2bf(r.astype(np.float32))
            W(d, v, m)
        fl = ty in ("f32", "f64", "f16", "bf16"); x2 = ty in ("f16x2", "bf16x2")
        if ty == "f32x2" and k in ("add", "sub", "mul", "fma"):             # sm_100 and later: two fp32 in one 64-bit register
            v = [np.ascontiguousarray(V(s, 64)).view(np.float32).reshape(-1, 2).astype(np.float64) for s in o[1:]]
            r = v[0] + v[1] if k == "add" else v[0] - v[1] if k == "sub" else v[0] * v[1] if k == "mul" else v[0] * v[1] + v[2]
            W(o[0], np.ascontiguousarray(r.astype(np.float32)).view(U64).reshape(-1), m); return
        def X2(fn, *src):
            d = (lambda v: h2f(v)) if ty == "f16x2" else (lambda v: bf2f(v).astype(np.float64))
            e = f2h if ty == "f16x2" else (lambda r: f2bf(r.astype(np.float32)))
            a = [V(s, 32) for s in src]
            with np.errstate(all="ignore"): W(o[0], pk(e(fn(*[d(lo(x)) for x in a])), e(fn(*[d(hi(x)) for x in a]))), m)
        np.seterr(over="ignore", invalid="ignore", divide="ignore")
        if k == "ld" and q[1] == "param":
            n = o[1].strip("[]"); v = self.pvals[n]; 
            if isinstance(v, float): v = int(np.float32(v).view(U32))
            W(o[0], np.full(self.nt, v & ((1 << b) - 1), {32: U32, 64: U64, 16: U16, 8: U16}[b]), True); return
        if k == "mov":
            d, s = o
            if d[0] == "{":
                ds = self.vec(d); v = V(s, 32 if len(ds) == 2 and b == 32 else (64 if b == 64 else b)); w = (b // len(ds))
                for i, x in enumerate(ds): W(x, ((v >> v.dtype.type(w * i)) & v.dtype.type((1 << w) - 1)).astype({8: U16, 16: U16, 32: U32}[w]), m)
            elif s[0] == "{":
                ss = self.vec(s); w = b // len(ss); dt = {32: U32, 64: U64}[b]; acc = np.zeros(self.nt, dt)
                for i, x in enumerate(ss): acc |= (V(x, max(w, 16)).astype(dt) & dt((1 << w) - 1)) << dt(w * i)
                W(d, acc, m)
            else: W(d, V(s, b), m)
            return
        if k in ("add", "sub", "mul", "mad", "fma") and not (fl or x2):
            if "wide" in q:
                a, c = I(o[1]), I(o[2]); wd = np.int64 if sg else U64
                if b == 16: wd = np.int32 if sg else U32
                r = a.astype(wd) * c.astype(wd)
                if k == "mad": r = r + self.val(o[3], b * 2).view(wd) if sg else r + self.val(o[3], b * 2)
                W(o[0], r.view(U64 if b == 32 else U32), m); return
            a, c = I(o[1]), I(o[2])
            if k == "add": r = a + c
            elif k == "sub": r = a - c
            elif "hi" in q: r = ((a.astype(np.int64 if sg else U64) * c.astype(np.int64 if sg else U64)) >> (np.int64(b) if sg else U64(b))).astype(a.dtype)
            else:
                r = a * c
                if k == "mad": r = r + I(o[3])
            W(o[0], r.view({16: U16, 32: U32, 64: U64}[b]), m); return
        if fl and k in ("add", "sub", "mul", "fma", "div", "min", "max", "neg", "abs", "sqrt", "rsqrt", "ex2", "lg2", "rcp", "sin", "cos", "tanh"):
            x = [F(s) for s in o[1:]]
            if k == "add": r = x[0] + x[1]
            elif k == "sub": r = x[0] - x[1]
            elif k == "mul": r = x[0] * x[1]
            elif k == "fma":
                if ty == "f32":
                    p = x[0].astype(np.float64) * x[1].astype(np.float64); c = x[2].astype(np.float64); s = p + c; bb = s - p; e = (p - (s - bb)) + (c - bb)
                    i = s.view(np.int64); fix = (e != 0) & ((i & 1) == 0) & np.isfinite(s); r = np.where(fix, i + np.where((e > 0) == (s > 0), 1, -1), i).view(np.float64)
                else: r = x[0] * x[1] + x[2]
            elif k == "div": r = x[0] / x[1]
            elif k in ("min", "max"):
                f = {("min", False): np.fmin, ("max", False): np.fmax, ("min", True): np.minimum, ("max", True): np.maximum}[(k, "NaN" in q)]
                if "xorsign" in q:
                    a, c = x; r = np.copysign(f(np.abs(a), np.abs(c)), np.where(np.signbit(a) ^ np.signbit(c), -1.0, 1.0))
                else: r = f(x[0], x[1])
            elif k == "neg": r = -x[0]
            elif k == "abs": r = np.abs(x[0])
            else: r = {"sqrt": np.sqrt, "rsqrt": lambda v: 1 / np.sqrt(v), "ex2": np.exp2, "lg2": np.log2, "rcp": lambda v: 1 / v, "sin": np.sin, "cos": np.cos, "tanh": np.tanh}[k](x[0])
            FW(o[0], r); return
        if x2 and k != "cvt":
            X2({"add": lambda a, c: a + c, "sub": lambda a, c: a - c, "mul": lambda a, c: a * c, "fma": lambda a, c, d: a * c + d, "neg": lambda a: -a, "abs": np.abs, "min": np.fmin, "max": np.fmax}[k], *o[1:]); return
        if k in ("and", "or", "xor", "not") and b:
            a = V(o[1], b); r = ~a if k == "not" else {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[k](a, V(o[2], b)); W(o[0], r, m); return
        if k in ("shl", "shr"):
            a = V(o[1], b); s = V(o[2], 32).astype(np.int64); big = s >= b; s = np.minimum(s, b - 1)
            if k == "shl": r = np.where(big, a.dtype.type(0), a << s.astype(a.dtype))
            elif sg: r = (a.view(S[b]) >> s.astype(S[b])).view(a.dtype)
            else: r = np.where(big, a.dtype.type(0), a >> s.astype(a.dtype))
            W(o[0], r, m); return
        if k in ("min", "max"):
            W(o[0], {"min": np.minimum, "max": np.maximum}[k](I(o[1]), I(o[2])).view({16: U16, 32: U32, 64: U64}[b]), m); return
        if k == "neg": W(o[0], (-V(o[1], b).view(S[b])).view({16: U16, 32: U32, 64: U64}[b]), m); return
        if k == "abs": W(o[0], np.abs(V(o[1], b).view(S[b])).view({16: U16, 32: U32, 64: U64}[b]), m); return
        if k in ("div", "rem"):
            a, c = I(o[1]), I(o[2]); c = np.where(c == 0, a.dtype.type(1), c); t = np.trunc(a.astype(np.float64) / c).astype(a.dtype); t = (a - np.fmod(a, c)) // c
            W(o[0], (t if k == "div" else np.fmod(a, c)).view({16: U16, 32: U32, 64: U64}[b]), m); return
        if k == "bfe":
            a = V(o[1], b); s = V(o[2], 32).astype(a.dtype); l = V(o[3], 32).astype(a.dtype); r = (a >> s) & ((a.dtype.type(1) << l) - a.dtype.type(1))
            if sg: sh = (a.dtype.type(b) - l); r = ((r << sh).view(S[b]) >> sh.view(S[b])).view(a.dtype)
            W(o[0], r, m); return
        if k == "bfi":
            a, c = V(o[1], b), V(o[2], b); s, l = V(o[3], 32).astype(a.dtype), V(o[4], 32).astype(a.dtype); mk = ((a.dtype.type(1) << l) - a.dtype.type(1)) << s
            W(o[0], (c & ~mk) | ((a << s) & mk), m); return
        if k in ("prmt", "lop3"):
            from tests.support import ptx_inline
            a, c, d = V(o[1], 32), V(o[2], 32), V(o[3], 32); W(o[0], ptx_inline.prmt(a, c, d) if k == "prmt" else ptx_inline.lop3(a, c, d, int(o[4], 0)), m); return
        if k == "selp": W(o[0], np.where(self.R[o[3]], V(o[1], b), V(o[2], b)), m); return
        if k == "setp":
            cmp = q[1]
            if fl: a, c = F(o[1]), F(o[2])
            elif ty[0] == "b": a, c = V(o[1], b), V(o[2], b)
            else: a, c = I(o[1]), I(o[2])
            r = {"eq": a == c, "ne": a != c, "lt": a < c, "le": a <= c, "gt": a > c, "ge": a >= c, "equ": (a == c) | np.isnan(a) | np.isnan(c) if fl else a == c, "neu": (a != c) if fl else a != c,
                 "ltu": ~(a >= c), "leu": ~(a > c), "gtu": ~(a <= c), "geu": ~(a < c), "lo": a < c, "ls": a <= c, "hi": a > c, "hs": a >= c}.get(cmp)
            if cmp == "num": r = ~(np.isnan(a) | np.isnan(c))
            if cmp == "nan": r = np.isnan(a) | np.isnan(c)
            if cmp == "ne" and fl: r = (a != c) & ~np.isnan(a) & ~np.isnan(c)
            if len(q) > 3 and q[2] in ("and", "or"):
                s = self.R[o[3].lstrip("!")]; s = ~s if o[3][0] == "!" else s; r = r & s if q[2] == "and" else r | s
            W(o[0].split("|")[0], r, m); return
        if k == "cvt": return self.cvt(q, o, m)
        if k in ("ld", "st") and ("global" in q or "shared" in q):
            n = b // 8; v = self.vec(o[0] if k == "ld" else o[1]); a = self.addr(o[1] if k == "ld" else o[0]); acc = self.gaccess if "global" in q else self.saccess
            if k == "ld":
                r = acc(a, n * len(v), m); dt = {8: U16, 16: U16, 32: U32, 64: U64}[b]
                for i, x in enumerate(v): W(x, np.ascontiguousarray(r[:, i * n:(i + 1) * n]).view({8: U8, 16: U16, 32: U32, 64: U64}[b])[:, 0].astype(dt), m)
            else:
                s = np.concatenate([np.ascontiguousarray(V(x, max(b, 8)).astype({8: U8, 16: U16, 32: U32, 64: U64}[b]))[:, None].view(U8).reshape(self.nt, n) for x in v], 1); acc(a, n * len(v), m, s)
            return
        if k == "cp":
            if op.startswith(("cp.async.ca", "cp.async.cg")):
                d, s, n = self.addr(o[0]), self.addr(o[1]), int(o[2], 0); sz = V(o[3], 32).astype(np.int64) if len(o) > 3 else np.full(self.nt, n)
                mm = np.full(self.nt, True) if m is True else m; data = np.zeros((self.nt, n), U8)
                for c in np.unique(sz[mm]):
                    if c: data[:, :c] = np.where((mm & (sz == c))[:, None], self.gaccess(s, int(c), mm & (sz == c)), data[:, :c])
                if self.lazy: self.cpq[-1].append((d.copy(), n, mm.copy(), data))
                else: self.saccess(d, n, mm, data)
            elif op.startswith("cp.async.commit_group"): self.cpq.append([])
            elif op.startswith("cp.async.wait"):
                keep = 1 + (int(o[0], 0) if "wait_group" in op else 0)
                while len(self.cpq) > keep:
                    for c in self.cpq.pop(0): self.saccess(*c)
                if "wait_all" in op:
                    for c in self.cpq[-1]: self.saccess(*c)
                    self.cpq[-1] = []
            elif op.startswith("cp.async.bulk"): raise PtxError("TMA is not modelled")
            return
        if op.startswith("wgmma.commit"): self.wgq.append([]); return
        if op.startswith("wgmma.wait"):
            while len(self.wgq) > 1 + int(o[0], 0):
                for c in self.wgq.pop(0): self.wgmma(*c)
            return
        if op.startswith("fence.proxy.async"): self.dirty[:] = False
        if k in ("bar", "barrier", "membar", "fence", "griddepcontrol", "setmaxnreg", "prefetch", "discard", "applypriority") or op.startswith("wgmma.fence"): return
        if k == "shfl":
            v = V(o[1], 32).reshape(-1, 32); l = np.arange(32); d = o[0].split("|")[0]; n = V(o[2], 32).reshape(-1, 32)[:, 0].astype(int)
            src = {"bfly": lambda j: l ^ j, "up": lambda j: np.where(l - j >= 0, l - j, l), "down": lambda j: np.where(l + j < 32, l + j, l)}
            r = np.stack([v[w][src[q[2]](n[w])] if q[2] in src else v[w][V(o[2], 32).reshape(-1, 32)[w] & U32(31)] for w in range(v.shape[0])]).reshape(-1); W(d, r, m); return
        if k == "popc": W(o[0], np.array([bin(int(z)).count("1") for z in V(o[1], b)], U32), m); return
        if k == "vote":
            pr = self.rd(o[1].lstrip("!")); pr = (~pr if o[1][0] == "!" else pr) & (np.full(self.nt, True) if m is True else m); v = pr.reshape(-1, 32)
            if "ballot" in q: W(o[0], np.repeat((v.astype(U64) << np.arange(32, dtype=U64)).sum(1).astype(U32), 32), m)
            else: W(o[0], np.repeat(v.any(1) if "any" in q else v.all(1), 32), m)
            return
        if k == "stmatrix":
            nm = {"x1": 1, "x2": 2, "x4": 4}[[x for x in q if x in ("x1", "x2", "x4")][0]]; tr = "trans" in q; a = self.addr(o[0]).reshape(-1, 32); v = [V(r, 32).reshape(-1, 32) for r in self.vec(o[1])]; l = np.arange(32)
            for w in range(self.nt // 32):
                for i in range(nm):
                    mat = np.zeros((8, 8), U16); e0, e1 = lo(v[i][w]), hi(v[i][w])
                    if not tr: mat[l // 4, 2 * (l % 4)] = e0; mat[l // 4, 2 * (l % 4) + 1] = e1
                    else: mat[2 * (l % 4), l // 4] = e0; mat[2 * (l % 4) + 1, l // 4] = e1
                    for r in range(8):
                        off = int(a[w, 8 * i + r]) - SMEM_BASE; self.smem[off:off + 16] = mat[r].view(U8)
            return
        if k == "redux":
            v = V(o[1], 32).reshape(-1, 32); f = {"add": lambda x: x.sum(1, dtype=U32), "or": lambda x: np.bitwise_or.reduce(x, 1), "and": lambda x: np.bitwise_and.reduce(x, 1), "xor": lambda x: np.bitwise_xor.reduce(x, 1),
                "max": lambda x: (x.view(np.int32) if sg else x).max(1).view(U32), "min": lambda x: (x.view(np.int32) if sg else x).min(1).view(U32)}[q[2]]
            W(o[0], np.repeat(f(v), 32), m); return
        if k == "atom" and "cas" in q:
            a, c, x = self.addr(o[1]), V(o[2], b), V(o[3], b); mm = np.full(self.nt, True) if m is True else m; n = b // 8; gac = self.saccess if "shared" in q else self.gaccess; old = np.zeros(self.nt, c.dtype)
            for t in np.nonzero(mm)[0]:
                one = np.zeros(self.nt, bool); one[t] = True; cur = gac(a, n, one)[t].view(c.dtype)[0]; old[t] = cur
                if cur == c[t]: st = np.zeros((self.nt, n), U8); st[t] = np.array([x[t]]).view(U8); gac(a, n, one, st)
            W(o[0], old, m); return
        if k == "ldmatrix":
            nm = {"x1": 1, "x2": 2, "x4": 4}[[x for x in q if x in ("x1", "x2", "x4")][0]]; tr = "trans" in q; a = self.addr(o[1]).reshape(-1, 32); d = self.vec(o[0]); out = np.zeros((nm, self.nt // 32, 32), U32); l = np.arange(32)
            for w in range(self.nt // 32):
                for i in range(nm):
                    off = a[w, 8 * i:8 * i + 8].astype(np.int64) - SMEM_BASE; mat = np.stack([self.smem[x:x + 16].view(U16) for x in off])
                    e0, e1 = (mat[l // 4, 2 * (l % 4)], mat[l // 4, 2 * (l % 4) + 1]) if not tr else (mat[2 * (l % 4), l // 4], mat[2 * (l % 4) + 1, l // 4]); out[i, w] = pk(e0, e1)
            for i in range(nm): W(d[i], out[i].reshape(-1), m)
            return
        if k == "mma": return self.mma(q, o, m)
        if op.startswith("wgmma.mma_async"):
            if self.lazy: self.wgq[-1].append((q, o, m)); return
            return self.wgmma(q, o, m)
        if k == "atom" and "exch" in q:
            a, x = self.addr(o[1]), V(o[2], b); mm = np.full(self.nt, True) if m is True else m; n = b // 8; gac = self.saccess if "shared" in q else self.gaccess; old = np.zeros(self.nt, x.dtype)
            for t in np.nonzero(mm)[0]:
                one = np.zeros(self.nt, bool); one[t] = True; old[t] = gac(a, n, one)[t].view(x.dtype)[0]; st = np.zeros((self.nt, n), U8); st[t] = np.array([x[t]]).view(U8); gac(a, n, one, st)
            W(o[0], old, m); return
        if k in ("atom", "red"):
            off = 1 if k == "atom" else 0; a = self.addr(o[off]); gac = self.saccess if "shared" in q else self.gaccess; v = self.vec(o[off + 1]); mm = np.full(self.nt, True) if m is True else m; n = b // 8
            if "add" in q and (fl or ty in ("u32", "s32", "u64")):
                for t in np.nonzero(mm)[0]:
                    one = np.zeros(self.nt, bool); one[t] = True
                    for i, x in enumerate(v):
                        cur = gac(a + U64(i * n), n, one)[t].view({16: U16, 32: U32, 64: U64}[b])[0:1]; y = V(x, b)[t:t + 1]
                        s = {"f32": lambda: (cur.view(np.float32) + y.view(np.float32)).view(U32), "f16": lambda: f2h(h2f(cur) + h2f(y)), "bf16": lambda: f2bf(bf2f(cur) + bf2f(y))}.get(ty, lambda: cur + y)()
                        st = np.zeros((self.nt, n), U8); st[t] = np.ascontiguousarray(s).view(U8); gac(a + U64(i * n), n, one, st)
                        if k == "atom":
                            d = self.vec(o[0])[i]; old = self.R.get(d, np.zeros(self.nt, cur.dtype)).copy(); old = old.astype(cur.dtype); old[t] = cur[0]; self.R[d] = old
                return
        raise PtxError(f"unsupported instruction {op} {o}")

    def cvt(self, q, o, m):
        V, W = self.val, self.wr; ts = [x for x in q[1:] if re.fullmatch(r"[su]\d+|b?f\d+(x2)?|e4m3x2|e5m2x2", x)]; d, s = ts[0], ts[1]; rnd = [x for x in q if x in ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi")]
        bits = lambda t: {"bf16": 16, "f16x2": 32, "bf16x2": 32, "e4m3x2": 16, "e5m2x2": 16}.get(t) or int(re.sub(r"\D", "", t))
        if d in ("bf16x2", "f16x2") and s == "f32":
            a, c = f32(V(o[1], 32)), f32(V(o[2], 32)); e = f2h if d == "f16x2" else (lambda v: f2bf(v, "rz" in q)); W(o[0], pk(e(c), e(a)), m); return
        if d in ("e4m3x2", "e5m2x2"):
            kd = d[:4]
            if s == "f32": a, c = f32(V(o[1], 32)), f32(V(o[2], 32))
            else: v = V(o[1], 32); dec = (lambda z: h2f(z).astype(np.float32)) if s == "f16x2" else bf2f; a, c = dec(hi(v)), dec(lo(v))
            W(o[0], fp8_enc(c, kd).astype(U16) | (fp8_enc(a, kd).astype(U16) << U16(8)), m); return
        if s in ("e4m3x2", "e5m2x2"):
            v = V(o[1], 16); a, c = fp8_dec((v & U16(255)).astype(U8), s[:4]), fp8_dec((v >> U16(8)).astype(U8), s[:4]); e = f2h if d == "f16x2" else f2bf; W(o[0], pk(e(a), e(c)), m); return
        sb = bits(s); x = V(o[1], max(sb, 16) if sb >= 8 else 16)
        if s[0] == "f" or s == "bf16": fv = {"f32": lambda: f32(x).astype(np.float64), "f64": lambda: x.view(np.float64), "f16": lambda: h2f(x), "bf16": lambda: bf2f(x).astype(np.float64)}[s]()
        else:
            iv = x.astype({8: U8, 16: U16, 32: U32, 64: U64}[sb]); iv = iv.view({8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}[sb]) if s[0] == "s" else iv; fv = None
        db = bits(d)
        if d[0] == "f" or d == "bf16":
            r = fv if fv is not None else iv.astype(np.float64)
            if rnd and rnd[0] in ("rni", "rzi", "rmi", "rpi"): r = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rnd[0]](r)
            if d == "f32": out = np.ascontiguousarray((r if fv is not None else iv).astype(np.float32)).view(U32)
            elif d == "f64": out = np.ascontiguousarray(r).view(U64)
            elif d == "f16": out = f2h(r)
            else: out = f2bf(r.astype(np.float32), "rz" in q)
        else:
            sgd = d[0] == "s"
            if fv is not None:
                r = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rnd[0]](fv); lo_, hi_ = (-(1 << db - 1), (1 << db - 1) - 1) if sgd else (0, (1 << db) - 1)
                r = np.where(np.isnan(r), 0, np.clip(r, lo_, hi_)); out = r.astype(np.int64)
            else:
                out = iv.astype(np.int64)
                if "sat" in q: out = np.clip(out, *((-(1 << db - 1), (1 << db - 1) - 1) if sgd else (0, (1 << db) - 1)))
            dt = {8: U16, 16: U16, 32: U32, 64: U64}[db]
            if db == 8: out = (out.astype(np.int8) if sgd else out.astype(U8)).astype(np.int16)
            out = out.astype(dt)
        W(o[0], out, m)

    # ------------------------------------------------------------------ tensor cores
    def frag(self, regs, dt):      # list of regs -> array [warps, lane, nreg, elems] float64 / int
        v = np.stack([self.val(r, 32) for r in regs], -1).reshape(self.nt // 32, 32, len(regs))
        if dt in ("f16", "bf16"):
            a = np.stack([lo(v), hi(v)], -1); return (h2f(np.ascontiguousarray(a)) if dt == "f16" else bf2f(a).astype(np.float64))
        if dt in ("s8", "u8"): return np.ascontiguousarray(v)[..., None].view(np.int8 if dt == "s8" else U8).astype(np.int64)
        return np.ascontiguousarray(v)[..., None].view(np.float32).astype(np.float64)      # tf32 / f32
    def mma(self, q, o, m):
        sh = [x for x in q if re.fullmatch(r"m\d+n\d+k\d+", x)][0]; Mx, Nx, Kx = map(int, re.findall(r"\d+", sh)); tys = q[-4:]; nw = self.nt // 32; l = np.arange(32); g, t = l // 4, l % 4
        A, Bm = self.frag(self.vec(o[1]), tys[1]), self.frag(self.vec(o[2]), tys[2]); cr = self.vec(o[3]); e = A.shape[-1]
        a = np.zeros((nw, 16, Kx)); bb = np.zeros((nw, Kx, 8))
        for r in range(A.shape[2]):
            for i in range(e): a[:, g + 8 * (r % 2), t * e + i + (4 * e) * (r // 2)] = A[:, :, r, i]
        for r in range(Bm.shape[2]):
            for i in range(e): bb[:, t * e + i + (4 * e) * r, g] = Bm[:, :, r, i]
        d = a @ bb; C = np.stack([self.val(r, 32) for r in cr], -1).reshape(nw, 32, 4)
        for r in range(4):
            add = d[:, g + 8 * (r // 2), 2 * t + r % 2]; c = np.ascontiguousarray(C[:, :, r])
            res = (c.view(np.float32).astype(np.float64) + add).astype(np.float32).view(U32) if tys[0] == "f32" else (c.view(np.int32).astype(np.int64) + add.astype(np.int64)).astype(np.int32).view(U32)
            self.wr(self.vec(o[0])[r], np.ascontiguousarray(res).reshape(-1), m)
    def smem_tile(self, desc, rows, K, major, es=2):      # [rows, K] elements of es bytes from a wgmma descriptor (one warpgroup)
        start = (desc & 0x3FFF) << 4; lbo = ((desc >> 16) & 0x3FFF) << 4; sbo = ((desc >> 32) & 0x3FFF) << 4; sw = (desc >> 62) & 3; wb = {1: 128, 2: 64, 3: 32, 0: 16}[sw]
        r, k = np.meshgrid(np.arange(rows), np.arange(K), indexing="ij")
        if major == 0: off = (r // 8) * sbo + (r % 8) * wb + (k * es % wb) + (k * es // wb) * lbo
        else:
            per = wb // es; off = (r // per) * lbo + (r % per) * es + (k % 8) * wb + (k // 8) * sbo
        ad = start + off
        if sw: ad = ad ^ (((ad >> 7) & {1: 7, 2: 3, 3: 1}[sw]) << 4)
        ad = ad - SMEM_BASE
        if self.dirty[ad].any(): self.unfenced += 1
        return self.smem[ad] if es == 1 else np.stack([self.smem[ad], self.smem[ad + 1]], -1).view(U16)[..., 0]
    def wgmma(self, q, o, m):
        sh = [x for x in q if re.fullmatch(r"m\d+n\d+k\d+", x)][0]; Mx, Nx, Kx = map(int, re.findall(r"\d+", sh)); ty = q[-1]; d = self.vec(o[0]); es = 1 if ty in ("s8", "u8") else 2
        dec = {"f16": lambda u: h2f(np.ascontiguousarray(u)), "bf16": lambda u: bf2f(u).astype(np.float64), "s8": lambda u: np.ascontiguousarray(u).view(np.int8).astype(np.float64), "u8": lambda u: u.astype(np.float64)}[ty]
        nwg = self.nt // 128; l = np.arange(32); g, t = l // 4, l % 4; per = 4 // es; integer = es == 1
        aregs = self.vec(o[1]) if o[1][0] == "{" else None; bd = self.val(o[2], 64); flags = o[3:]; sd = flags[0]
        scale_d = self.R[sd] if sd.startswith("%") else np.full(self.nt, int(sd) != 0)
        imm = [int(x) for x in flags[1:]]; tb = imm[-1] if len(imm) >= 3 else 0; ta = imm[-2] if len(imm) >= 4 else 0
        C = np.stack([self.val(r, 32) if r in self.R else np.zeros(self.nt, U32) for r in d], -1).reshape(nwg, 4, 32, len(d)).view(np.int32 if integer else np.float32).astype(np.float64); out = np.zeros_like(C)
        if aregs: A = self.frag(aregs, ty).astype(np.float64).reshape(nwg, 4, 32, 4, per)
        for w in range(nwg):
            Bt = dec(self.smem_tile(int(bd[w * 128]), Nx, Kx, tb, es))                        # [N, K]
            if aregs:
                a = np.zeros((64, Kx))
                for wp in range(4):
                    for r in range(4):
                        for e in range(per): a[16 * wp + g + 8 * (r % 2), per * t + e + 4 * per * (r // 2)] = A[w, wp, :, r, e]
            else: a = dec(self.smem_tile(int(self.val(o[1], 64)[w * 128]), 64, Kx, ta, es))
            D = a @ Bt.T
            for wp in range(4):
                for j in range(len(d)):
                    out[w, wp, :, j] = D[16 * wp + g + 8 * ((j % 4) // 2), 8 * (j // 4) + 2 * t + j % 2]
        keep = scale_d.reshape(nwg, 4, 32)[..., None]
        v = np.where(keep, C, 0) + out
        res = np.ascontiguousarray(v.astype(np.int64).astype(np.int32) if integer else v.astype(np.float32)).view(U32).reshape(self.nt, len(d))
        for j, r in enumerate(d): self.wr(r, np.ascontiguousarray(res[:, j]), m)

def launch(ptx, grid, args, num_warps=4, shared=0, **kw):
    s = Sim(ptx); s.launch(grid, args, num_warps, shared, **kw); launch.unfenced = s.unfenced; return s.steps
