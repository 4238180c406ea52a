"""A factory for fixtures: everything that a test makes with it is closed after the test, the last one first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, Protocol, TypeVar


class Closable(Protocol):
    def close(self) -> Any: ...


Arguments = ParamSpec("Arguments")
Made = TypeVar("Made", bound=Closable)


@contextmanager
def factory(
    make: Callable[Arguments, Made], dispose: Callable[[Made], object] | None = None
) -> Iterator[Callable[Arguments, Made]]:
    """`make`, with `dispose` of each result at the end of the block; without it, its close()."""
    with ExitStack() as stack:

        def make_one(*arguments: Arguments.args, **options: Arguments.kwargs) -> Made:
            made = make(*arguments, **options)
            stack.callback(dispose or type(made).close, made)
            return made

        yield make_one
