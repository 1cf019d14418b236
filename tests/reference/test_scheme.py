"""The grammar of schemes: parse and str are inverses, equality, sizes, and what is refused in which words."""
import itertools
import pickle

import pytest
import torch

from tests.support.schemes import SCHEMES
from tritonq import Scheme
from tritonq.errors import InvalidProblemError
from tritonq.formats import FORMATS, SCALE_FORMATS
from tritonq.scheme import ALIASES, OPTIONS, PRESETS, scheme_names

GRANULARITIES = ("tensor", "channel", "column", "token", "g1", "g32", "g96", "g1000", "b1x1", "b128x128", "b3x5")
EVERY_OPTION = [*OPTIONS, *(fmt.option for fmt in SCALE_FORMATS.values())]


def spellings() -> list[str]:
    """Every format x granularity x pair of options in both orders; parse refuses some of them."""
    pairs = [(), *((a,) for a in EVERY_OPTION), *itertools.permutations(EVERY_OPTION, 2)]
    scaled = [name for name, fmt in FORMATS.items() if fmt.max_abs]
    mixed = [".".join((name, *place, *options)) for name in scaled for place in ((), *((g,) for g in GRANULARITIES)) for options in pairs]
    return [*scheme_names(), *ALIASES, *SCHEMES, *mixed]


def parsed() -> list[Scheme]:
    found = []
    for text in spellings():
        try:
            found.append((text, Scheme.parse(text)))
        except InvalidProblemError:
            continue
    return found


def test_str_and_parse_are_inverses():
    accepted = parsed()
    assert len(accepted) > 5000
    for text, scheme in accepted:
        assert str(scheme) == text and Scheme.parse(scheme) is scheme
        canonical = str(Scheme(**{name: getattr(scheme, name) for name in ("format", "granularity", "scale", "options")}))
        if scheme.recipe is None:
            assert Scheme.parse(canonical) == scheme, (text, canonical)
            assert hash(Scheme.parse(canonical)) == hash(scheme)


@pytest.mark.parametrize("text", [*scheme_names(), *ALIASES, "int4.g64.full.s16", "uint4.fz.b4x32"])
def test_pickle(text):
    scheme = Scheme.parse(text)
    again = pickle.loads(pickle.dumps(scheme))
    assert again == scheme and str(again) == text and again.format is scheme.format


EQUAL = [("nf4", "nf4.g64"), ("int8", "int8.channel"), ("int4.full.s16", "int4.g128.s16.full"), ("mxfp4", "MXFP4"), ("mxfp8", "MXFP8"),
         ("nvfp4", "NVFP4"), ("W4A16", "A16W4"), ("W4A16", "int4.g128.full"), ("W8A8", "int8.channel.full"),
         ("W8A16", "int8.g128.full"), ("W4A16_ASYM", "uint4.g128"),
         ("FP8", "fp8_e4m3.tensor"), ("FP8_BLOCK", "fp8_e4m3.b128x128")]  # fmt: skip
DIFFERENT = [("nf4", "nf4.g32"), ("int4", "int4.full"), ("mxfp4", "fp4_e2m1.g32.se8m0"), ("nvfp4", "fp4_e2m1.g16.se4m3"), ("int4", "uint4")]


@pytest.mark.parametrize("a, b", EQUAL)
def test_equal_by_meaning_not_by_spelling(a, b):
    assert Scheme.parse(a) == Scheme.parse(b) and hash(Scheme.parse(a)) == hash(Scheme.parse(b))


@pytest.mark.parametrize("a, b", DIFFERENT)
def test_different(a, b):
    assert Scheme.parse(a) != Scheme.parse(b)


BITS = [("nf4", 4.5), ("nf4.dq", 4.127), ("int4", 4.25), ("uint4.g32", 5.25), ("uint4.g32.fz.s16", 5.0), ("mxfp4", 4.25), ("mxfp8", 8.25),
        ("nvfp4", 4.5), ("int3.g32.s16", 3.5), ("int8", 8.0), ("fp16", 16.0), ("int4.b128x128", 4 + 32 / 16384)]  # fmt: skip


@pytest.mark.parametrize("text, bits", BITS)
def test_bits_per_weight(text, bits):
    assert Scheme.parse(text).bits_per_weight() == pytest.approx(bits, abs=1e-3)


@pytest.mark.parametrize("text", SCHEMES)
def test_bits_per_weight_is_what_is_stored(text):
    import tritonq

    for shape in ((6, 45), (300, 64)):
        for dtype in (torch.float32, torch.bfloat16):
            q = tritonq.quantize(torch.randn(shape).to(dtype), text)
            assert Scheme.parse(text).bits_per_weight(*shape, dtype=dtype) == pytest.approx(q.bits_per_weight)
            assert q.nbytes * 8 == pytest.approx(q.bits_per_weight * shape[0] * shape[1])


def test_scale_storage_follows_the_input_only_for_integers():
    for dtype, option in ((torch.float16, "s16"), (torch.bfloat16, "sbf16"), (torch.float32, "s32"), (torch.float64, "s32")):
        assert Scheme.parse("int4").scale_format(dtype).option == option
        assert Scheme.parse("nf4").scale_format(dtype).option == "s32"
        assert Scheme.parse("fp8_e4m3").scale_format(dtype).option == "s32"
        assert Scheme.parse("int4.se4m3").scale_format(dtype).option == "se4m3"


KNOWN_PARTS = (
    "known granularities: tensor, channel, column, token, g<size>, b<rows>x<columns>; known options: full, narrow, fz, pow2, away, dq, s64"
)
REFUSED = [
    ("int5", "scheme 'int5': unknown format 'int5'; known formats and presets: " + ", ".join([*FORMATS, *PRESETS, *ALIASES])),
    ("", "unknown format ''"),
    (".g64", "unknown format ''"),
    ("INT4", "unknown format 'INT4'"),
    ("int4 .g64", "unknown format 'int4 '"),
    ("int4.foo", f"scheme 'int4.foo': unknown part 'foo'; {KNOWN_PARTS}"),
    ("int4.gx", "unknown part 'gx'"),
    ("int4.b3", "unknown part 'b3'"),
    ("int4.g-1", "unknown part 'g-1'"),
    ("int4.", "unknown part ''"),
    ("int4.none", "unknown part 'none'"),
    ("int4.g0", "granularity g0 has a size below 1; sizes start at 1"),
    ("int4.b0x3", "granularity b0x3 has a size below 1"),
    ("int8.g128.g64", "names two granularities, g128 and g64; keep one"),
    ("int4.g64.tensor", "names two granularities, g64 and tensor"),
    ("int4.full.full", "names the option 'full' twice"),
    ("int4.s16.s32", "names two scale formats; keep one of s64, s32, s16, sbf16, se8m0, se4m3"),
    ("uint4.full", "option 'full' is for signed integer formats (int8, int4, int3, int2), not uint4"),
    ("fp8_e4m3.full", "option 'full' is for signed integer formats"),
    ("uint4.fz.narrow", "option 'narrow' is for signed integer formats"),
    ("nf4.fz", "option 'fz' is for unsigned integer formats (uint8, uint4, uint3, uint2), not nf4"),
    ("nf4.away", "option 'away' is for integer formats; nf4 fixes its own tie rule"),
    ("fp16.g32", "fp16 is a plain cast without a scale and takes no granularity or option; use 'fp16'"),
    ("bf16.s16", "bf16 is a plain cast without a scale"),
    ("mxfp4.g64", "mxfp4 fixes its group size, scale and rounding, so 'g64' cannot be added; use 'mxfp4'"),
    ("W4A16.g64", "W4A16 fixes its group size"),
    ("int4.dq.s16", "option 'dq' stores scales in its own 8-bit code"),
    ("int4.dq.pow2", "leave out pow2 and the scale format"),
    (None, "a scheme is a Scheme or a text such as 'nf4.g64', got NoneType None"),
    (4, "got int 4"),
    (["int4"], "got list ['int4']"),
]


@pytest.mark.parametrize("text, rule", REFUSED, ids=str)
def test_refused(text, rule):
    with pytest.raises(InvalidProblemError) as caught:
        Scheme.parse(text)
    assert rule in str(caught.value) and "\n" not in str(caught.value)
    if isinstance(text, str):
        assert repr(text) in str(caught.value), "the text names what was asked"


def test_constructor_refuses_what_parse_refuses():
    int4 = Scheme.parse("int4")
    with pytest.raises(InvalidProblemError, match="unknown option 'nope'; known options: full"):
        Scheme(format=int4.format, granularity=int4.granularity, options=frozenset({"nope"}))
    with pytest.raises(InvalidProblemError, match="unknown scale format 'fp7'; known scale formats: fp64, fp32"):
        Scheme(format=int4.format, granularity=int4.granularity, scale="fp7")
    with pytest.raises(InvalidProblemError, match="int4 needs a granularity, such as 'g128'"):
        Scheme(format=int4.format, granularity=Scheme.parse("fp16").granularity)
