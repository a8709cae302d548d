"""Rollouts over many devices: waves, limits, resuming. The devices here are a function; tests/e2e has real ones."""

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk import fleet
from edgesdk.deploying import Deployment
from edgesdk.device import Stage
from edgesdk.errors import FleetError
from edgesdk.fleet import Member, Plan, Rollout
from edgesdk.progress import Progress
from tests.bundles import write_bundle


class Devices:
    """What each would answer; who was asked, in which order, and how many at once at most."""

    def __init__(self, broken: tuple[str, ...] = (), seconds: float = 0) -> None:
        self.broken, self.seconds = set(broken), seconds
        self.asked: list[str] = []
        self.at_once = self._now = 0
        self._lock = threading.Lock()

    def attempt(self, member: Member, bundle: Path, progress: Progress) -> Deployment:
        with self._lock:
            self.asked.append(member.host)
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        progress("push", 1, 2)
        time.sleep(self.seconds)
        with self._lock:
            self._now -= 1
        if member.host in self.broken:
            return Deployment(host=member.host, outcome="failed", error={"message": f"{bundle.name} is not liked", "hint": "mend it"})
        return Deployment(host=member.host, outcome="active", digest="sha256:1")


def members(count: int) -> tuple[Member, ...]:
    return tuple(Member(host=f"d{number}") for number in range(count))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("fleet") / "toy")


def rolled_out(devices: Devices, count: int, bundle: Path, plan: Plan, state: Path | None = None) -> dict[str, int]:
    return fleet.summary(list(Rollout(members(count), bundle, plan, state=state, attempt=devices.attempt).run()))


def test_some_broken_ones_do_not_stop_the_others(bundle: Path) -> None:
    devices = Devices(("d3", "d7"), seconds=0.01)
    assert rolled_out(devices, 50, bundle, Plan(parallel=16)) == {"active": 48, "failed": 2}
    assert sorted(devices.asked) == sorted(member.host for member in members(50))
    assert 2 <= devices.at_once <= 16


def test_the_others_come_only_if_the_canaries_work(bundle: Path) -> None:
    devices = Devices(("d1",))
    assert rolled_out(devices, 40, bundle, Plan(canary="5%", parallel=1)) == {"active": 1, "failed": 1, "skipped": 38}
    assert devices.asked == ["d0", "d1"]
    devices = Devices()
    assert rolled_out(devices, 40, bundle, Plan(canary="2")) == {"active": 40}
    assert set(devices.asked[:2]) == {"d0", "d1"}


def test_too_many_failures_stop_it(bundle: Path) -> None:
    devices = Devices(("d0", "d1", "d2"))
    assert rolled_out(devices, 20, bundle, Plan(parallel=1, max_failures=1)) == {"failed": 2, "skipped": 18}
    assert devices.asked == ["d0", "d1"]


def test_what_was_done_is_not_done_again(bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "fleet.state.json"
    devices = Devices(("d4",))
    rollout = Rollout(members(10), bundle, Plan(parallel=1), state=state, attempt=devices.attempt)
    for _, _ in zip(range(3), rollout.run(), strict=False):
        pass  # and then the power of the workstation fails
    assert rolled_out(devices, 10, bundle, Plan(parallel=2), state) == {"active": 9, "failed": 1}
    done_before = set(devices.asked[:3])
    assert not done_before & set(devices.asked[4:]), "one may have been on its way"
    devices.broken.clear()
    devices.asked.clear()
    assert rolled_out(devices, 10, bundle, Plan(), state) == {"active": 10}
    assert devices.asked == ["d4"]
    assert not state.exists(), "all is done: the next rollout begins anew"


def test_another_bundle_is_another_rollout(bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "fleet.state.json"
    rolled_out(Devices(("d0",)), 3, bundle, Plan(), state)
    devices = Devices()
    rolled_out(devices, 3, write_bundle(tmp_path / "newer", release=2, seed=1), Plan(), state)
    assert len(devices.asked) == 3


def test_a_state_that_cannot_be_read_is_said(bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "fleet.state.json"
    state.write_text("{}")
    with pytest.raises(FleetError, match="what an earlier rollout has done is not known"):
        Rollout(members(2), bundle, Plan(), state=state)


def test_our_own_mistake_is_not_a_devices(bundle: Path) -> None:
    def mistaken(*_: object) -> Deployment:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(Rollout(members(3), bundle, Plan(), attempt=mistaken).run())


FILE = """
[[devices]]
host = "a"
labels = ["hall-1", "camera"]
[[devices]]
host = "pi@10.0.0.2:2222"
labels = ["hall-2"]
as_profile = "x86-cpu"
bundle = "bundles/other"
"""


def test_a_file_and_what_is_chosen_of_it(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(FILE)
    found = fleet.load(tmp_path / "fleet.toml")
    assert (found[1].host, found[1].as_profile, found[1].bundle) == ("pi@10.0.0.2:2222", "x86-cpu", Path("bundles/other"))
    hosts = {tuple(wanted): [member.host for member in fleet.select(found, wanted)] for wanted in ([], ["hall-1"], ["hall-1,camera"], ["a", "hall-2"])}
    assert list(hosts.values()) == [["a", "pi@10.0.0.2:2222"], ["a"], ["a"], ["a", "pi@10.0.0.2:2222"]]
    with pytest.raises(FleetError, match="no device is hall-1,x") as caught:
        fleet.select(found, ["hall-1,x"])
    assert caught.value.hint == "labels are camera, hall-1, hall-2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no device"),
        ("[[devices]]\n", "devices.0.host"),
        ('[[devices]]\nhost = "a"\nprofile = "x"', "devices.0.profile: unknown key"),
        ('[[devices]]\nhost = "a"\n[[devices]]\nhost = "a"', "names `a` twice"),
        ('[[devices]]\nhost = "a"\nlabels = ["b c"]', "which is none"),
        ('[[devices]]\nhost = "a"\nallow = ["all"]', r"devices\.0\.allow\.0: input should be 'allow-slow'"),
        ("devices", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "fleet.toml").write_text(text)
    with pytest.raises(FleetError, match=message):
        fleet.load(tmp_path / "fleet.toml")
    with pytest.raises(FleetError, match="cannot be read"):
        fleet.load(tmp_path / "none.toml")


@given(st.integers(1, 1000), st.integers(0, 100))
def test_a_share_is_at_least_one_device(count: int, share: int) -> None:
    first = Plan(canary=f"{share}%").first(count)
    assert (first > 0) == (share > 0)
    assert first <= count


@pytest.mark.parametrize("canary", ["some", "-1", "101%", "1.5", ""])
def test_what_is_no_number_of_canaries(canary: str) -> None:
    with pytest.raises(FleetError, match="neither a number of devices nor a share"):
        Plan(canary=canary).first(10)


def test_a_state_that_cannot_be_kept_stops_no_rollout(bundle: Path, tmp_path: Path) -> None:
    rollout = Rollout(members(3), bundle, Plan(), state=tmp_path / "gone" / "fleet.state.json", attempt=Devices(()).attempt)
    assert sorted(one.host for one in rollout.run()) == ["d0", "d1", "d2"]
    assert "fleet.state.json` cannot be written: No such file" in rollout.unkept


def test_what_was_staged_is_not_taken_for_done_when_it_is_to_be_activated(bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "fleet.state.json"

    def left(stage: Stage | None) -> tuple[str, ...]:
        devices = Devices(("d1",))
        list(Rollout(members(3), bundle, Plan(stage=stage), state=state, attempt=devices.attempt).run())
        return tuple(sorted(devices.asked))

    later = Stage(datetime(2099, 1, 31, 3, tzinfo=UTC))
    assert left(Stage()) == ("d0", "d1", "d2")
    assert left(Stage()) == ("d1",)
    assert left(later) == ("d0", "d1", "d2")
    assert left(None) == ("d0", "d1", "d2")
    assert left(None) == ("d1",)
