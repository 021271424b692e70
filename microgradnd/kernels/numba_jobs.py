"""Parts of a call on several threads, without Python: compiled code offers them, and compiled code waits for them.

A worker has a row of numbers on a board, in memory that all threads see. The first says in which state it is. Whoever
calls a kernel writes into the rows of as many workers as there are parts but one where the function is, its arguments
and the edges of the part, offers it, does the last part itself, and then every part that nobody has begun: nobody is
waited for who sleeps. A worker that has done a part turns for a while, since the next call is often only microseconds
away, and then sleeps in Python.

Numba keeps compiled kernels on disk and does not see that this file has changed: delete ``__pycache__`` then.
"""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import int64, njit, types, void
from numba.core import cgutils
from numba.extending import intrinsic

ASLEEP, READY, OFFERED, TAKEN = range(4)  # the states of a worker
STATE, FUNCTION, ARGUMENTS, BEGIN, END, FAILED = range(0, 48, 8)  # where in its row, in bytes
OWNED, PATIENCE = 0, 8  # in the first row, that of the callers
ROW = 128  # bytes: two lines of the cache, which processors fetch together

INT, BYTES = ir.IntType(64), ir.IntType(8).as_pointer()
PART = ir.FunctionType(INT, [INT, INT, BYTES])  # (begin, end, arguments): 0, or 1 if it has failed

# What gives the core to whoever else wants it: OpenBLAS's threads, or those of other programs.
give_way = types.ExternalFunction("sched_yield" if os.name == "posix" else "SwitchToThread", types.int32())


def _place(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, INT.as_pointer())


@intrinsic
def read(typingctx, address):
    """The number there, after whatever its writer has written before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> Any:
        return builder.load_atomic(_place(builder, arguments[0]), "seq_cst", 8)

    return int64(int64), generate


@intrinsic
def write(typingctx, address, number):
    """Put a number there: who reads it sees whatever has been written before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> Any:
        builder.store_atomic(arguments[1], _place(builder, arguments[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return void(int64, int64), generate


@intrinsic
def change(typingctx, address, old, new):
    """Put a number there if the old one is there; whether it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> Any:
        place, old, new = _place(builder, arguments[0]), *arguments[1:]
        return builder.extract_value(builder.cmpxchg(place, old, new, "seq_cst", "seq_cst"), 1)

    return types.boolean(int64, int64, int64), generate


@intrinsic
def pause(typingctx):
    """Leave the core to its other thread for a moment, where the processor knows how."""

    def generate(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> Any:
        if builder.module.triple.startswith("x86_64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return void(), generate


@intrinsic
def job(typingctx, kernel, arguments):
    """Addresses of ``kernel`` as a PART and of its arguments after the first two, which live as long as the caller."""
    kinds = (int64, int64, *arguments.types)
    kernel.dispatcher.compile(kinds)
    result = kernel.dispatcher.overloads[kinds]

    def generate(context: Any, builder: Any, signature: Any, values: tuple[Any, ...]) -> Any:
        place = cgutils.alloca_once_value(builder, values[1])
        context.add_linking_libs([result.library])
        part = ir.Function(builder.module, PART, builder.module.get_unique_name("part"))
        part.linkage = "internal"
        inside = ir.IRBuilder(part.append_basic_block())
        begin, end, address = part.args
        given = cgutils.unpack_tuple(inside, inside.load(inside.bitcast(address, place.type)))
        call = context.call_internal_no_propagate
        status, _ = call(inside, result.fndesc, result.signature, [begin, end, *given])
        inside.ret(inside.zext(status.is_error, INT))
        addresses = [builder.ptrtoint(x, INT) for x in (part, place)]
        return context.make_tuple(builder, signature.return_type, addresses)

    return types.UniTuple(int64, 2)(kernel, arguments), generate


@intrinsic
def do(typingctx, function, arguments, begin, end):
    """Call a PART; whether it has failed."""

    def generate(context: Any, builder: Any, signature: Any, values: tuple[Any, ...]) -> Any:
        function, arguments, begin, end = values
        place = builder.inttoptr(function, PART.as_pointer())
        return builder.call(place, [begin, end, builder.inttoptr(arguments, BYTES)])

    return int64(int64, int64, int64, int64), generate


@njit
def wait_a_moment(turn):
    """The next turn: every so often somebody else may have the core."""
    pause()
    if turn % 16 == 15:
        give_way()
    return turn + 1


@njit
def share(function, arguments, count, parts, board):
    """Do range(count) in parts, on as many threads; by this one alone if somebody else has them. 0, unless one fails.

    A part that fails does not keep the others from being done.
    """
    owned = parts > 1 and change(board + OWNED, 0, 1)
    others = parts - 1 if owned else 0
    for i in range(others):
        row = board + ROW * (i + 1)
        write(row + FUNCTION, function)
        write(row + ARGUMENTS, arguments)
        write(row + BEGIN, count * i // parts)
        write(row + END, count * (i + 1) // parts)
        write(row + STATE, OFFERED)
    failed = do(function, arguments, count * others // parts, count)
    for i in range(others):
        row = board + ROW * (i + 1)
        if change(row + STATE, OFFERED, ASLEEP):  # whether it slept or was about to look; if not, it turns once more
            failed |= do(function, arguments, read(row + BEGIN), read(row + END))
        else:
            turn = 0
            while read(row + STATE) == TAKEN:
                turn = wait_a_moment(turn)
            failed |= read(row + FAILED)
    if owned:
        write(board + OWNED, 0)
    return failed


def serve(board, number):
    """Do the parts that are offered to worker ``number``, until none has come for a while."""
    row, turn = board + ROW * number, 0
    change(row + STATE, ASLEEP, READY)
    while True:
        state = read(row + STATE)
        if state == OFFERED and change(row + STATE, OFFERED, TAKEN):
            write(row + FAILED, do(read(row + FUNCTION), read(row + ARGUMENTS), read(row + BEGIN), read(row + END)))
            write(row + STATE, READY)
            turn = 0
        elif turn >= read(board + PATIENCE) and (state == ASLEEP or change(row + STATE, READY, ASLEEP)):
            return
        turn = wait_a_moment(turn)
