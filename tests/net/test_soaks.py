"""The soaks of `scripts/soak`, a minute of each."""

from __future__ import annotations

import pytest

from scripts.soak import fuzz, kills, sessions

pytestmark = [pytest.mark.net, pytest.mark.timeout(240)]

KILLS = 12
FRAMES = 20_000
CLIENT_FRAMES = 200
SESSIONS = 600


def test_no_answer_is_wrong_or_missing_while_nodes_die() -> None:
    """Every answer is the undisturbed one, by whatever route, and none fails, for there always is one."""
    log = kills.run(KILLS, seed=1)
    print(log.summary())
    assert log.wrong == []
    assert [given.failure for given in log.failed] == []
    assert log.tracebacks == []
    assert log.kills >= KILLS
    assert log.summary()["reroutes"] > 0, "no fault met an answer"


def test_frames_that_nobody_would_send_break_nothing() -> None:
    """Neither node nor client crashes, answers are right, no traceback is printed, and memory comes back."""
    result = fuzz.run(FRAMES, CLIENT_FRAMES, seed=1)
    print(result.summary())
    assert result.wrong == []
    assert result.tracebacks == []
    assert result.sound
    assert result.frames >= FRAMES
    assert set(result.states) == {"idle", "opening", "open", "attached", "map", "model", "weights"}


def test_sessions_that_come_and_go_leave_no_memory_behind() -> None:
    """Nodes hold after hundreds what they held after the first of them."""
    log = sessions.run(SESSIONS, seed=1)
    print(log.memory_mib)
    assert log.tracebacks == []
    assert log.sound
    assert log.sessions >= SESSIONS
    assert log.forks > SESSIONS / 10
