"""Work done in a thread of its own, in order, a bounded amount of it waiting."""

import queue
import threading
from collections.abc import Callable

Work = Callable[[], None]


class Background:
    """Runs what it is given, one after the other. What fails is raised to whoever gives it more, or waits."""

    def __init__(self, max_waiting: int) -> None:
        self._queue: queue.Queue[Work | None] = queue.Queue(max_waiting)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Add work; waits while as much as allowed is waiting. Raises what earlier work raised."""
        self._require_success()
        self._queue.put(work)

    def wait(self) -> None:
        """Until all work is done. Raises what it raised."""
        self._queue.join()
        self._require_success()

    def close(self) -> None:
        """End the thread when the work is done, or at once after an error, which is not raised any more."""
        self._queue.put(None)
        self._thread.join()

    def _require_success(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                if self._error is None:  # what comes after an error would leave a gap
                    work()
            except BaseException as error:
                self._error = error
            finally:
                self._queue.task_done()
