from __future__ import annotations

import threading

import numpy as np

from precision_lab.analysis.counting import give_back, take_zeros


def test_what_was_given_back_is_taken_again_by_one() -> None:
    first = take_zeros("test", (2, 3), np.int64)
    assert first.shape == (2, 3)
    assert first.dtype == np.int64
    assert not first.any()
    give_back("test", first)
    assert take_zeros("another", (2, 3), np.int64) is not first
    assert take_zeros("test", (2, 3), np.int64) is first
    assert take_zeros("test", (2, 3), np.int64) is not first  # one at a time, or two would count in it


def test_every_thread_has_its_own() -> None:
    mine = take_zeros("threads", 4, np.uint32)
    give_back("threads", mine)
    others: list[object] = []
    thread = threading.Thread(target=lambda: others.append(take_zeros("threads", 4, np.uint32)))
    thread.start()
    thread.join()
    assert others[0] is not mine
    assert take_zeros("threads", 4, np.uint32) is mine
