"""Gather and write rows of a token sequence.

`rows` is an int64 index, either `[K]` (the same rows for the whole batch) or `[B, K]` (rows per image).
"""

from __future__ import annotations

from torch import Tensor


def gather_rows(x: Tensor, rows: Tensor, dim: int = 1) -> Tensor:
    """Rows `rows` of `x` along `dim`; a batch of 1 is expanded where `rows` differ per image."""
    if rows.ndim == 1:
        return x.index_select(dim, rows)
    index = _index_along(x.expand(rows.shape[0], *x.shape[1:]), rows, dim)
    return x.expand(rows.shape[0], *x.shape[1:]).gather(dim, index)


def write_rows_(target: Tensor, rows: Tensor, source: Tensor, dim: int = 1) -> Tensor:
    """Write `source` into rows `rows` of `target` along `dim`, in place; returns `target`."""
    if rows.ndim == 1:
        return target.index_copy_(dim, rows, source)
    return target.scatter_(dim, _index_along(source, rows, dim), source)


def repeat_rows(rows: Tensor, conds: int) -> Tensor:
    """Rows of a batch made of `conds` equal chunks, each holding the same images."""
    return rows if rows.ndim == 1 else rows.repeat(conds, 1)


def _index_along(x: Tensor, rows: Tensor, dim: int) -> Tensor:
    shape = [1] * x.ndim
    shape[0], shape[dim] = rows.shape
    size = list(x.shape)
    size[dim] = rows.shape[1]
    return rows.view(shape).expand(size)
