"""What a pool promises, and that a place to compute which keeps the promise is one class: the records do not tell it from ours."""

import os
import signal
import threading
import time

import pytest

from purebench.plan import grid as plan
from purebench.records import store as records
from purebench.running import pools, progress, runner


def run(out, defenses=("none", "one-shot")):
    attacks = ("null", "noise", "transfer:from=(reverse-sde:steps=2),attack=(noise)")
    request = plan.Request(
        defenses=defenses, attacks=attacks, threats=("Linf:0.2",), dataset="digits", images=30, evals=1
    )
    outcome = runner.run(plan.build(request), runner.Settings(out, device="cpu", rows=40), progress.Reporter())
    files = {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for name in (records.IMAGES, records.ADVERSARIAL)
        for path in out.glob(f"*/{name}")
    }
    return outcome, files


class LastFirst:
    """Takes three tasks at a time and gives their results back in the reverse order, sometimes after a while without news."""

    def __init__(self, device, memory, report):
        self.inner = pools.Here(device, memory, report)
        self.facts, self.given, self.waited, self.stopped = {}, [], False, 0

    def free(self):
        return len(self.given) < 3

    def busy(self):
        return bool(self.given)

    def give(self, task, rows):
        assert self.free()
        self.given.append((task, rows))

    def results(self):
        assert self.busy()
        self.waited = not self.waited
        if self.waited:
            return
        self.facts = self.inner.facts
        while self.given:
            self.inner.give(*self.given.pop())
            yield from self.inner.results()

    def stop(self):
        self.stopped += 1


def test_another_pool_is_one_class_and_the_records_are_the_same(tmp_path, monkeypatch):
    outcome, files = run(tmp_path / "ours")
    made = []
    monkeypatch.setattr(pools, "start", lambda workers, *rest: made.append(LastFirst(*rest)) or made[-1])
    other, same = run(tmp_path / "theirs")
    assert same == files
    assert (sorted(other.done), other.images) == (sorted(outcome.done), outcome.images)
    assert (len(other.done), other.failed, other.skipped) == (7, {}, [])
    assert [pool.stopped for pool in made] == [1]


def test_a_task_that_fails_anywhere_fails_its_cell_alone_and_the_pool_is_stopped(tmp_path, monkeypatch):
    class Loses(LastFirst):
        def results(self):
            for task, result in super().results():
                yield task, "the machine is gone" if task.cell.attack.name == "noise" else result

    made = []
    monkeypatch.setattr(pools, "start", lambda workers, *rest: made.append(Loses(*rest)) or made[-1])
    outcome, _ = run(tmp_path, ("none",))
    # The transfer's source is a noise cell too: it fails, and the transfer with it.
    assert sorted(outcome.failed.values())[0].startswith("its source")
    assert sorted(outcome.failed.values())[1:] == ["the machine is gone"] * 2
    assert len(outcome.done) == 1
    assert [pool.stopped for pool in made] == [1]


@pytest.mark.parametrize("other", [False, True], ids=["alone", "another thread"])
def test_ctrl_c_waits_for_the_end_whichever_thread_gets_it(other):
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    if other:  # as torch has one: the system may hand the signal to it
        thread.start()
    reached = []

    def interrupted():
        with pools.ctrl_c_waits():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            reached.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        over.set()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_ctrl_c_nothing_is_raised_and_the_thread_does_not_matter():
    entered = []

    def inside():
        with pools.ctrl_c_waits():
            entered.append(threading.current_thread())

    inside()
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert entered == [threading.main_thread(), thread]
