"""Work items on the actors of a Ray cluster."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, cast

from eepolicy.errors import Caught, EepolicyError
from eepolicy.workers.base import Item, Noted, Result, Workers

#: how often an item whose actor was lost runs again
MAX_RETRIES = 20
#: seconds without a result after which a warning names the actors that have not started
WAIT = 30.0


def connect(address: str) -> str | None:
    """Connect this process to a Ray cluster, unless it is connected.

    Args:
        address: address of the cluster, as `ray.init` takes it, or `"local"` to start one on this
            machine.

    Returns:
        Address of the dashboard; None if the cluster has none.

    Raises:
        EepolicyError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _import_ray()
    if not ray.is_initialized():
        try:
            with _same_sigterm():
                ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise EepolicyError(f"no Ray cluster at {address!r}: {error}") from error
    url = ray._private.worker.get_dashboard_url()
    return f"http://{url}" if url else None


@contextmanager
def _same_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, which Ray replaces for good.

    Forked processes inherit Ray's handler, and a pool of such processes cannot end them.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _import_ray() -> Any:
    """The package.

    Raises:
        EepolicyError: it is not installed.
    """
    try:
        import ray
        import ray.util
    except ImportError as error:
        raise EepolicyError("Ray is not installed: pip install 'eepolicy[ray]'") from error
    return ray


class _Actor:
    """Holds the function from item to result."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._make = make
        self._work: Callable[[Any], Any] | None = None

    def run(self, number: int, item: Any) -> tuple[int, Any, Exception | None]:
        """Run an item: its number, its result, and the exception that it raised."""
        with Caught() as caught, Noted(item):
            self._work = self._work or self._make()
            return number, self._work(item), None
        return number, None, caught.error  # the calling process raises it, with its own type


class RayWorkers(Workers[Item, Result]):
    """Runs items on Ray actors, one item at a time on each.

    Ray places the actors, starts lost ones again and repeats their items.  The nodes need the same
    packages and the same paths of models as the calling process.

    Args:
        make: makes the function from item to result, in each actor at its first item.  It is sent
            to the actors.
        size: number of actors; None for as many as the cluster's CPUs and GPUs allow.
        address: address of the cluster, as `ray.init` takes it, or `"local"` to start one on this
            machine.
        gpus: GPUs of each actor.

    Raises:
        EepolicyError: Ray is not installed, there is no cluster at the address, or the cluster has
            too few CPUs or GPUs.
    """

    def __init__(
        self,
        make: Callable[[], Callable[[Item], Result]],
        size: int | None = None,
        *,
        address: str = "local",
        gpus: float = 0,
    ) -> None:
        self._ray = ray = _import_ray()
        self._owns_cluster = not ray.is_initialized()
        self._items: dict[int, Item] = {}
        self._number = 0  # of items so far
        self._has_warned = False
        with ExitStack() as stack:
            if self._owns_cluster:
                stack.callback(ray.shutdown)
            connect(address)
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.size = number_of_actors(nodes, size, gpus)
            actor = ray.remote(_Actor).options(
                num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=MAX_RETRIES
            )
            self._actors = [actor.remote(make) for _ in range(self.size)]
            self._started = [actor.__ray_ready__.remote() for actor in self._actors]
            self._pool = ray.util.ActorPool(self._actors)
            stack.pop_all()  # the cluster stays until the workers end

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._owns_cluster:
            self._ray.shutdown()  # ends the actors
            return
        for actor in self._actors:  # the next workers on this cluster need their CPUs and GPUs
            self._ray.kill(actor)

    def __len__(self) -> int:
        return len(self._items)

    def submit(self, item: Item) -> None:
        """Hand in an item."""
        number = self._number
        self._number += 1
        self._items[number] = item
        self._pool.submit(lambda actor, numbered: actor.run.remote(*numbered), (number, item))

    def completed(self) -> Iterator[Result]:
        """Results that actors have finished since the last call."""
        while len(self):
            try:
                yield self._next(timeout=0)
            except TimeoutError:
                return

    def next(self) -> Result:
        """Wait for a result."""
        while True:
            try:
                return self._next(timeout=None if self._has_warned else WAIT)
            except TimeoutError:
                self._warn_of_a_busy_cluster()

    def _warn_of_a_busy_cluster(self) -> None:
        """Warn if an actor has not started: others use the CPUs or GPUs that it waits for."""
        _, waiting = self._ray.wait(self._started, num_returns=self.size, timeout=0)
        if waiting:
            self._has_warned = True
            free = self._ray.available_resources()
            warnings.warn(
                f"{len(waiting)} of {self.size} Ray workers wait for a place on the cluster, of "
                f"which {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free; they "
                "start when other jobs end",
                stacklevel=3,
            )

    def _next(self, timeout: float | None) -> Result:
        """The next result.

        Raises:
            TimeoutError: no result came in time.
        """
        try:
            number, result, error = self._pool.get_next_unordered(timeout)
        except self._ray.exceptions.RayError as error:
            raise EepolicyError(f"a Ray worker could not start, or was lost: {error}") from error
        del self._items[number]
        if error is not None:
            raise error
        return cast(Result, result)


def number_of_actors(nodes: Sequence[Mapping[str, float]], wanted: int | None, gpus: float) -> int:
    """The number of actors, which all have to fit: those that do not would get items and never run.

    Args:
        nodes: number of each resource of each node.
        wanted: number that the user asks for; None for as many as fit.
        gpus: GPUs of an actor.  A fraction shares one GPU.

    Raises:
        EepolicyError: fewer fit, or none.

    Examples:
        >>> number_of_actors([{"CPU": 8, "GPU": 2}, {"CPU": 1, "GPU": 2}], None, 0.4)
        5
    """
    fit = 0
    for node in nodes:
        devices, cpus = int(node.get("GPU", 0)), int(node.get("CPU", 0))
        if 0 < gpus < 1:
            cpus = min(cpus, devices * int(1 / gpus + 1e-9))
        elif gpus:
            cpus = min(cpus, int(devices / gpus))
        fit += cpus
    if fit < (wanted or 1):
        each = f"{gpus:g} GPUs and a CPU" if gpus else "a CPU"
        raise EepolicyError(
            f"the Ray cluster has room for {fit} workers with {each} each"
            f"{f'; got {wanted}' if wanted else ''}: give fewer workers, or start more nodes; they "
            f"have {[*map(dict, nodes)]}"
        )
    return wanted or fit
