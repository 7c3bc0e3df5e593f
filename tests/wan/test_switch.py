"""The switch's decisions, without devices, root or time: frames go in, and come due later or never."""

import random

import pytest

from tests.wan.switch import QUEUE_S, Conditions, Fabric

HOSTS = [bytes([2, 0, 0, 0, 0, port]) for port in range(3)]
EVERYBODY = b"\xff" * 6


def frame(source: int, target: bytes, size_bytes: int = 1000) -> bytes:
    """An Ethernet frame from a host."""
    return (target + HOSTS[source]).ljust(size_bytes, b"\x00")


def fabric(conditions: Conditions | None = None) -> Fabric:
    """Three hosts whose addresses the switch has learned."""
    made = Fabric(3, conditions or Conditions(), random.Random(7))
    for port in range(3):
        made.offer(-10.0, port, frame(port, EVERYBODY))
    list(made.due(-1.0))
    return made


def arrivals(made: Fabric, now: float) -> list[int]:
    """The ports at which frames have arrived by `now`."""
    return [port for port, _ in made.due(now)]


def test_a_frame_takes_half_the_round_trip() -> None:
    """It is due rtt/2 after it was sent, not before, and only at its destination."""
    made = fabric(Conditions(rtt_ms=80))
    made.offer(1.0, 0, frame(0, HOSTS[2]))
    assert made.next_at == pytest.approx(1.04)
    assert arrivals(made, 1.039) == []
    assert arrivals(made, 1.041) == [2]
    assert made.next_at is None


def test_unknown_and_group_addresses_go_to_everybody_else() -> None:
    """A broadcast, and a destination never heard from, reach all but the sender."""
    made = Fabric(3, Conditions(), random.Random(7))
    for target in (EVERYBODY, HOSTS[1]):
        made.offer(0.0, 0, frame(0, target))
        assert arrivals(made, 0.0) == [1, 2]


def test_rate_is_shared_by_what_a_host_sends() -> None:
    """At 8 Mbit/s a frame of 1000 bytes holds the uplink for 1 ms, whoever it is for, then the downlink."""
    made = fabric(Conditions(mbit=8))
    for target in (1, 2, 1):
        made.offer(0.0, 0, frame(0, HOSTS[target]))
    assert arrivals(made, 0.0021) == [1]
    assert arrivals(made, 0.0031) == [2]
    assert arrivals(made, 0.0041) == [1]


def test_a_full_queue_drops() -> None:
    """A link holds QUEUE_S of backlog, and what comes beyond that is lost."""
    made = fabric(Conditions(mbit=8))
    for _ in range(2000):
        made.offer(0.0, 0, frame(0, HOSTS[1]))
    assert len(arrivals(made, 60.0)) == pytest.approx(QUEUE_S * 1000, abs=2)


def test_loss_takes_the_share_it_is_told() -> None:
    """Of 5000 frames at 20 % loss about 1000 are missing (four standard deviations: 113)."""
    made = fabric(Conditions(loss=0.2))
    for _ in range(5000):
        made.offer(0.0, 0, frame(0, HOSTS[1]))
    assert len(arrivals(made, 0.0)) == pytest.approx(4000, abs=113)


def test_a_cut_host_reaches_nobody_and_heals() -> None:
    """`cut 2` takes frames from and to host 2, those under way as well; `heal 2` lets new ones pass."""
    made = fabric(Conditions(rtt_ms=100))
    made.offer(0.0, 0, frame(0, HOSTS[1]))
    made.command(["cut", "2"])
    made.offer(0.0, 1, frame(1, HOSTS[2]))
    made.offer(0.0, 2, frame(2, HOSTS[0]))
    assert arrivals(made, 1.0) == [0]
    made.command(["heal", "2"])
    made.offer(1.0, 0, frame(0, HOSTS[1]))
    assert arrivals(made, 2.0) == [1]


def test_a_cut_pair_still_reaches_the_third() -> None:
    """`cut 1 2` separates these two alone, so that a third can be the bridge."""
    made = fabric()
    made.command(["cut", "1", "2"])
    for source, target in ((0, 1), (1, 0), (0, 2), (2, 1)):
        made.offer(0.0, source, frame(source, HOSTS[target]))
    assert arrivals(made, 0.0) == [2, 1]


@pytest.mark.parametrize(
    "line", ["", "cut", "cut 0", "cut 4", "cut 1 1", "heal 1 2 3", "loss 2", "rtt -1", "rtt x", "quit"]
)
def test_a_senseless_command_changes_nothing(line: str) -> None:
    """It raises ValueError and leaves the network as it was."""
    made = fabric(Conditions(rtt_ms=10))
    with pytest.raises(ValueError):
        made.command(line.split())
    assert made.conditions == Conditions(rtt_ms=10)
    assert made.cut == set()
