"""Parts of a call on several threads, without Python: compiled code offers them, and compiled code waits for them.

A board in memory has a row of numbers for each worker, the first of which is the worker's state, and a row for callers.
Who has the board, one caller at a time (the others do their work alone), writes into a worker's row what is to be done
and offers it, does the last part itself, and then each part that nobody has begun: nobody waits for a thread that
sleeps. A worker looks into its row for a while, since the next call is often only microseconds away, and then sleeps
in Python. The states and who changes them, all but (1) by compare and swap:

    ASLEEP  -> READY      the worker, when it begins to look, and where its part was taken back
    READY   -> ASLEEP     the worker, when it has looked for long enough
    any     -> OFFERED    the caller (1), who has seen that no part is TAKEN any more
    OFFERED -> TAKEN      the worker, which reads the rest of its row only now
    OFFERED -> ASLEEP     the caller, who does the part itself
    TAKEN   -> READY      the worker, when the part is done (1)

ASLEEP means that a bell has to be rung for the worker before it can be counted on; it may be awake all the same.
"""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import int64, types, void
from numba.core import cgutils
from numba.extending import intrinsic

from .numba_compiler import inner

ASLEEP, READY, OFFERED, TAKEN = range(4)  # the states of a worker
STATE, FUNCTION, ARGUMENTS, BEGIN, END, FAILED, PATIENCE = range(0, 56, 8)  # where in its row, in bytes
OWNED = 0  # in the first row, that of callers: whether somebody has the board
CALL_FUNCTION, CALL_COUNT, CALL_ARGUMENTS = range(0, 24, 8)  # where in a call that is kept, in bytes
KEPT = 128  # bytes for each argument: an array of 5 axes has 15 numbers
ROW = 128  # bytes: two lines of the cache, which processors fetch together

INT, BYTES = ir.IntType(64), ir.IntType(8).as_pointer()
PART = ir.FunctionType(INT, [INT, INT, BYTES])  # (begin, end, arguments): 0, or 1 if it has failed

# It gives the core to whoever else wants it: OpenBLAS's threads, or those of other programs.
yield_core = types.ExternalFunction("sched_yield" if os.name == "posix" else "SwitchToThread", types.int32())


def _place(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, INT.as_pointer())


@intrinsic
def load(typingctx, address):
    """The number there, after whatever its writer has written before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> Any:
        return builder.load_atomic(_place(builder, arguments[0]), "seq_cst", 8)

    return int64(int64), generate


@intrinsic
def store(typingctx, address, number):
    """Put a number there: who reads it sees whatever has been written before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> Any:
        builder.store_atomic(arguments[1], _place(builder, arguments[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return void(int64, int64), generate


@intrinsic
def compare_and_swap(typingctx, address, old, new):
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
    """Addresses of ``kernel`` as a PART and of its arguments after the first two.

    These lie in the memory of the function that calls this one: until share returns.
    """
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
def keep(typingctx, place, function, count, arguments):
    """Leave a call of a PART, with its count and arguments, at an address, to be done later: arrays have to be held."""
    kinds = arguments.types

    def generate(context: Any, builder: Any, signature: Any, values: tuple[Any, ...]) -> Any:
        place, function, count, given = values
        kept = []
        for kind, x in zip(kinds, cgutils.unpack_tuple(builder, given), strict=True):
            if isinstance(kind, types.Array):
                array = context.make_array(kind)(context, builder, x)
                for owner in ("meminfo", "parent"):  # whose references end when this function returns
                    setattr(array, owner, cgutils.get_null_value(getattr(array, owner).type))
                x = array._getvalue()
            kept.append(x)
        whole = context.make_tuple(builder, arguments, kept)
        if context.get_abi_sizeof(whole.type) > KEPT * len(kinds):
            raise NotImplementedError("arguments of a kernel take more memory than is made for them")
        for x, offset in ((function, CALL_FUNCTION), (count, CALL_COUNT), (whole, CALL_ARGUMENTS)):
            target = builder.add(place, ir.Constant(INT, offset))
            builder.store(x, builder.inttoptr(target, x.type.as_pointer()), align=8)
        return context.get_dummy_value()

    return void(int64, int64, int64, arguments), generate


@intrinsic
def do(typingctx, function, arguments, begin, end):
    """Call a PART; whether it has failed."""

    def generate(context: Any, builder: Any, signature: Any, values: tuple[Any, ...]) -> Any:
        function, arguments, begin, end = values
        place = builder.inttoptr(function, PART.as_pointer())
        return builder.call(place, [begin, end, builder.inttoptr(arguments, BYTES)])

    return int64(int64, int64, int64, int64), generate


@inner
def spin(turn):
    """Wait a moment; the number of the next turn. Every so often somebody else may have the core."""
    pause()
    if turn % 16 == 15:
        yield_core()
    return turn + 1


@inner
def share(function, arguments, count, parts, board):
    """Do range(count) in parts, on as many threads; by this one alone where somebody else has the board.

    0, or 1 if a part has failed, which does not keep the others from being done.
    """
    owned = parts > 1 and compare_and_swap(board + OWNED, 0, 1)
    others = parts - 1 if owned else 0
    for i in range(others):
        row = board + ROW * (i + 1)
        store(row + FUNCTION, function)
        store(row + ARGUMENTS, arguments)
        store(row + BEGIN, count * i // parts)
        store(row + END, count * (i + 1) // parts)
        store(row + STATE, OFFERED)
    failed = do(function, arguments, count * others // parts, count)
    for i in range(others):
        row = board + ROW * (i + 1)
        if compare_and_swap(row + STATE, OFFERED, ASLEEP):  # nobody has begun it; the next call rings
            failed |= do(function, arguments, load(row + BEGIN), load(row + END))
        else:
            turn = 0
            while load(row + STATE) == TAKEN:
                turn = spin(turn)
            failed |= load(row + FAILED)
    if owned:
        store(board + OWNED, 0)
    return failed


def serve(board, number):
    """Do the parts that are offered to worker ``number``, until none has come for a while."""
    row, turn = board + ROW * number, 0
    while True:
        state = load(row + STATE)
        if state == OFFERED:
            if compare_and_swap(row + STATE, OFFERED, TAKEN):
                failed = do(load(row + FUNCTION), load(row + ARGUMENTS), load(row + BEGIN), load(row + END))
                store(row + FAILED, failed)
                store(row + STATE, READY)
                turn = 0
        elif turn >= load(row + PATIENCE):
            if state == ASLEEP or compare_and_swap(row + STATE, READY, ASLEEP):
                return
        elif state == ASLEEP:
            compare_and_swap(row + STATE, ASLEEP, READY)
        turn = spin(turn)
