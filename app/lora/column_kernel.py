"""The kernel of column_writer.py, which says what it computes and gives it its grid."""
# mypy: ignore-errors
# ruff: noqa: N803 - constants of a kernel are written in capitals

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["first_column"])  # or it is compiled anew while somebody waits
def write_columns(
    matrices_ptr, parts_ptr, data_ptr, first_column, ALIGNED: tl.constexpr, N: tl.constexpr
):
    """Writes a part of one row of one of the bank's matrices."""
    matrix, row = tl.program_id(0), tl.program_id(1)
    target = tl.load(matrices_ptr + 3 * matrix).to(tl.pointer_type(data_ptr.dtype.element_ty))
    stride = tl.load(matrices_ptr + 3 * matrix + 1)
    length = tl.load(matrices_ptr + 3 * matrix + 2)
    begin = tl.load(parts_ptr + 2 * matrix) + row * length
    place = (first_column + row) * stride
    if ALIGNED:
        target = tl.multiple_of(target, 16)
        place = tl.multiple_of(place, 8)
        begin = tl.multiple_of(begin, 8)
        length = tl.multiple_of(length, 8)
    i = tl.program_id(2) * N + tl.arange(0, N)
    own_length = tl.where(row < tl.load(parts_ptr + 2 * matrix + 1), length, 0)
    values = tl.load(data_ptr + begin + i, mask=i < own_length, other=0)
    tl.store(target + place + i, values, mask=i < length)
