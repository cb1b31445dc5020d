"""The processes that train together: this one, rank 0, starts the others, and is the only one that writes."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch
import torch.distributed as distributed

from moe_asr.errors import InputError, JobError

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """The value of every rank, in order; all have to ask."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


@contextmanager
def companions(count: int, gpu: bool, work: Callable[..., None], *args: Any) -> Iterator[None]:
    """Runs ``work(*args)`` in count - 1 new processes beside the body, all of them torch's default group.

    New ones are spawned, not forked, which neither CUDA nor OpenMP's threads would survive; nor do they repeat the
    command, which may be one point of a grid, or a notebook. The first to fail ends them all: an InputError of a
    companion is raised here, and any other failure of one is noted on the error that it led to. The threads of this
    process are shared by all.
    """
    if count == 1:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // count))
    store = distributed.TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    others: list[tuple[Any, Connection]] = []
    try:
        for rank in range(1, count):
            here, there = context.Pipe(duplex=False)
            joins = (there, store.port, rank, count, gpu, torch.get_num_threads())
            process = context.Process(target=_companion, args=(*joins, work, args))
            process.start()
            there.close()
            others.append((process, here))
        try:
            for rank, (_, here) in enumerate(others, start=1):
                if not here.poll(None) or _word(here) is None:
                    raise JobError(f"Process {rank} of {count} could not start.")
            with _group(store, 0, count, gpu):
                yield
            for process, _ in others:
                process.join()
        except Exception as error:
            _explain(error, [here for _, here in others])
            raise
        if failed := [(rank, p.exitcode) for rank, (p, _) in enumerate(others, start=1) if p.exitcode != 0]:
            raise JobError(f"Process {failed[0][0]} of {count} ended with exit code {failed[0][1]}.")
    finally:
        torch.set_num_threads(threads)
        for process, _ in others:
            process.kill()
            process.join()


def _explain(error: Exception, pipes: Sequence[Connection]) -> None:
    """Raises the InputError of a companion, if that came first; else notes what they said."""
    words = [word for word in map(_word, pipes) if word is not None]
    refused = [word for word in words if isinstance(word, InputError)]
    if refused and not isinstance(error, InputError):
        raise refused[0] from error
    for word in words:
        error.add_note(str(word))


def _word(pipe: Connection) -> Any:
    """What a companion said last; None if nothing, or if it is gone."""
    try:
        return pipe.recv() if pipe.poll() else None
    except EOFError:
        return None


@contextmanager
def _group(store: distributed.Store, rank: int, count: int, gpu: bool) -> Iterator[None]:
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"  # Python objects go over the CPU
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _companion(
    pipe: Connection,
    port: int,
    rank: int,
    count: int,
    gpu: bool,
    threads: int,
    work: Callable[..., None],
    args: Sequence[Any],
) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0, which ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe.send("ready")
    store = distributed.TCPStore("127.0.0.1", port, count, is_master=False)
    with _group(store, rank, count, gpu):
        try:
            work(*args)
        except Exception as error:  # told before the group breaks, by which rank 0 notices
            refused = isinstance(error, InputError)
            pipe.send(error if refused else f"Process {rank} of {count} failed:\n{traceback.format_exc()}")
            raise SystemExit(1) from None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
