"""Packings against their definitions, element by element, both ways."""
import pytest
import torch

from tritonq import QTensor, pack, unpack
from tritonq.errors import InvalidProblemError, UnsupportedError
from tritonq.formats.packing import ORDERS, pack_row, unpack_row

ROW_ORDERS = [(order, bits) for order in ("low_first", "high_first", "gptq_int32") for bits in (2, 3, 4, 8)]
OTHER_ORDERS = [("split_half", 2), ("split_half", 4), ("split_half", 8), ("awq", 4), ("ggml", 4), ("row_pair", 4)]
LENGTHS = (0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 64, 100)


def bits_of(packed: torch.Tensor) -> list[int]:
    """Bits of a row of bytes or of little-endian words, bit 0 first."""
    data = packed.contiguous().view(torch.uint8).tolist()
    return [(byte >> i) & 1 for byte in data for i in range(8)]


def number(bits: list[int]) -> int:
    return sum(bit << i for i, bit in enumerate(bits))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("order, bits", ROW_ORDERS + OTHER_ORDERS)
def test_round_trip(order, bits, length):
    codes = torch.randint(0, 2**bits, (5, length), dtype=torch.uint8)
    packed = pack(codes, bits, order)
    assert packed.dtype == (torch.int32 if order in ("awq", "gptq_int32") else torch.uint8)
    count = 5 if order == "row_pair" else length
    assert torch.equal(unpack(packed, bits, count, order), codes)
    assert torch.equal(pack(unpack(packed, bits, count, order), bits, order), packed)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_low_first_is_a_bit_stream(bits):
    codes = torch.randint(0, 2**bits, (41,))
    stream = bits_of(pack(codes, bits))
    assert len(stream) == 8 * -(-41 * bits // 8)
    assert [number(stream[i * bits : (i + 1) * bits]) for i in range(41)] == codes.tolist()
    words = bits_of(pack(codes, bits, "gptq_int32"))
    assert len(words) % 32 == 0 and words[: len(stream)] == stream and not any(words[41 * bits :])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_high_first_fills_bytes_from_the_top(bits):
    codes = torch.randint(0, 2**bits, (24,))
    text = "".join(f"{byte:08b}" for byte in pack(codes, bits, "high_first").tolist())
    assert [int(text[i * bits : (i + 1) * bits], 2) for i in range(24)] == codes.tolist()


def test_four_bit_orders_by_definition():
    codes = torch.randint(0, 16, (4, 64), dtype=torch.uint8)
    assert torch.equal(pack(codes, 4, "high_first"), codes[:, 0::2] << 4 | codes[:, 1::2])
    assert torch.equal(pack(codes, 4, "split_half"), codes[:, :32] | codes[:, 32:] << 4)
    assert torch.equal(pack(codes, 4, "row_pair"), codes[0::2] | codes[1::2] << 4)
    blocks = codes.view(4, 2, 2, 16)
    assert torch.equal(pack(codes, 4, "ggml"), (blocks[:, :, 0] | blocks[:, :, 1] << 4).flatten(1))
    words = pack(codes, 4, "awq").long() & 0xFFFFFFFF
    nibbles = torch.stack([words >> 4 * p & 15 for p in range(8)], -1)
    assert torch.equal(nibbles, codes.view(4, 8, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].long())


def test_two_bit_split_half_is_in_quarters():
    codes = torch.randint(0, 4, (3, 20), dtype=torch.uint8)
    quarters = codes.view(3, 4, 5)
    assert torch.equal(pack(codes, 2, "split_half"), sum(quarters[:, i] << 2 * i for i in range(4)))


def test_negative_codes_are_twos_complement():
    assert unpack(pack(torch.tensor([-8, -1, 0, 7]), 4), 4, 4).tolist() == [8, 15, 0, 7]
    assert unpack(pack(torch.tensor([-4, -1, 3]), 3), 3, 3).tolist() == [4, 7, 3]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_dtype_and_strides(dtype):
    codes = torch.randint(0, 16, (10, 6)).to(dtype)
    assert torch.equal(pack(codes.T, 4), pack(codes.T.contiguous(), 4))
    packed = pack(codes, 4)
    assert torch.equal(unpack(packed.T.contiguous().T, 4, 6).to(dtype), codes)


def test_batched_and_empty():
    codes = torch.randint(0, 8, (2, 3, 10), dtype=torch.uint8)
    assert torch.equal(pack(codes, 3), torch.stack([pack(c, 3) for c in codes]))
    assert pack(torch.empty(3, 0, dtype=torch.uint8), 4).shape == (3, 0)
    assert unpack(torch.empty(0, 4, dtype=torch.uint8), 2, 13).shape == (0, 13)


def test_sixteen_bit_rows():
    codes = torch.randint(0, 65536, (3, 5), dtype=torch.int32)
    packed = pack_row(codes, 16)
    assert packed.shape == (3, 10) and torch.equal(unpack_row(packed, 16, 5), codes)
    assert torch.equal(packed[:, 0::2].int() | packed[:, 1::2].int() << 8, codes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_unsigned_codes_are_integers(dtype):
    codes = torch.arange(16).view(2, 8)
    assert torch.equal(pack(codes.to(dtype), 4), pack(codes, 4))
    q = QTensor.from_codes("uint4.tensor", codes.to(dtype), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.uint8), dtype=torch.float32)
    assert torch.equal(q.codes(), codes.to(torch.uint8))


BYTES = torch.zeros(2, 8, dtype=torch.uint8)
REFUSED = [
    (lambda: pack(torch.tensor([16]), 4), InvalidProblemError, "code 16 does not fit in 4 bits; codes must lie in -8..15"),
    (lambda: pack(torch.tensor([-5]), 3), InvalidProblemError, "code -5 does not fit in 3 bits; codes must lie in -4..7"),
    (lambda: pack(torch.tensor([1.0]), 4), InvalidProblemError, "codes must be an integer tensor, got torch.float32"),
    (lambda: pack(torch.tensor([True]), 4), InvalidProblemError, "integer tensor, got torch.bool"),
    (lambda: pack(torch.tensor([16], dtype=torch.uint16), 4), InvalidProblemError, "code 16 does not fit in 4 bits"),
    (lambda: pack(torch.tensor([2**64 - 1], dtype=torch.uint64), 4), InvalidProblemError, "code 18446744073709551615 fits no format"),
    (lambda: pack([1, 2], 4), InvalidProblemError, "codes must be an integer tensor, got list"),
    (lambda: pack(torch.tensor(1), 4), InvalidProblemError, "codes has 0 dimensions"),
    (lambda: pack(torch.tensor([1]), 5), InvalidProblemError, "bits=5 cannot be packed; bits must be 2, 3, 4 or 8"),
    (lambda: pack(torch.tensor([1]), "4"), InvalidProblemError, "bits='4' cannot be packed"),
    (lambda: pack(torch.tensor([1]), 4, "marlin"), InvalidProblemError, f"unknown order 'marlin'; known orders: {', '.join(ORDERS)}"),
    (lambda: pack(torch.tensor([1]), 4, ["awq"]), InvalidProblemError, "unknown order ['awq']"),
    (lambda: pack(torch.tensor([1]), 3, "awq"), UnsupportedError, "order 'awq' is not defined for 3-bit codes"),
    (lambda: pack(torch.tensor([1]), 3, "split_half"), UnsupportedError, "order 'split_half' is not defined for 3-bit codes"),
    (lambda: pack(torch.tensor([1]), 4, "row_pair"), InvalidProblemError, "order 'row_pair' needs at least 2"),
    (lambda: unpack(BYTES, 4, 17), InvalidProblemError, "length 17 is not in 0..16"),
    (lambda: unpack(BYTES, 4, -1), InvalidProblemError, "length -1 is not in 0..16"),
    (lambda: unpack(BYTES, 4, 2.0), InvalidProblemError, "length 2.0 is not in 0..16"),
    (lambda: unpack(BYTES, 4, 4, "awq"), InvalidProblemError, "order 'awq' packs into torch.int32, got torch.uint8"),
    (lambda: unpack(BYTES.int(), 4, 4), InvalidProblemError, "order 'low_first' packs into torch.uint8, got torch.int32"),
    (lambda: unpack(BYTES, 4, 4, "ggml"), InvalidProblemError, "order 'ggml' needs a multiple of 16"),
]


@pytest.mark.parametrize("call, error, text", REFUSED, ids=[text[:40] for _, _, text in REFUSED])
def test_refused(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value) and "\n" not in str(caught.value)
