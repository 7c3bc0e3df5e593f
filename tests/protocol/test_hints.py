"""What the DHT may hold: announcements, each under its own peer's key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Malformed, RemoteProtocolError
from protocol.hints import RecordRule, model_key, record_key
from protocol.records import sign_record
from tests.protocol.samples import DIGEST, IDENTITY, NOW, OTHER, announcement

RULE = RecordRule(lambda: NOW)
OLD = sign_record(IDENTITY, announcement(sequence=5)).data
NEW = sign_record(IDENTITY, announcement(sequence=6)).data
EXPIRED = sign_record(IDENTITY, announcement(sequence=7, issued=NOW - 60, expires=NOW)).data


def test_an_announcement_stands_under_its_own_peers_key() -> None:
    """And under no other: nobody can put his own in another's place."""
    RULE.validate(record_key(IDENTITY.peer), OLD)
    for key in (record_key(OTHER.peer), model_key(DIGEST), "", IDENTITY.peer):
        with pytest.raises(Malformed):
            RULE.validate(key, OLD)


def test_what_has_expired_is_not_valid() -> None:
    """By the clock at the time of asking."""
    now = [NOW]
    rule = RecordRule(lambda: now[0])
    rule.validate(record_key(IDENTITY.peer), OLD)
    now[0] = announcement().expires
    with pytest.raises(Malformed):
        rule.validate(record_key(IDENTITY.peer), OLD)


@given(st.binary(max_size=200))
def test_rubbish_is_refused_and_never_newer(value: bytes) -> None:
    """The DHT shows us strangers' bytes; both methods take any."""
    with pytest.raises(RemoteProtocolError):
        RULE.validate(record_key(IDENTITY.peer), value)
    assert not RULE.newer(value, OLD)
    assert RULE.newer(OLD, value)


def test_the_later_statement_wins() -> None:
    """What is not valid any more is older than all; nothing is newer than itself."""
    assert RULE.newer(NEW, OLD)
    assert not RULE.newer(OLD, NEW)
    assert not RULE.newer(OLD, OLD)
    assert not RULE.newer(EXPIRED, OLD)
    assert RULE.newer(OLD, EXPIRED)


def test_keys_are_short_and_differ() -> None:
    """Some DHT nodes take keys of at most 50 bytes."""
    assert len(record_key(IDENTITY.peer)) == 47
    assert record_key(IDENTITY.peer) != record_key(OTHER.peer)
    assert model_key(DIGEST) == DIGEST.hex()
