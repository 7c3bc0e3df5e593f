"""A peer is who its certificate proves it to be, in both directions, and nobody else."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import suppress

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from protocol.errors import BadSignature, Unreachable
from protocol.transport.peer_id import peer_id_of, public_key
from protocol.transport.quic.endpoint import Endpoint
from protocol.transport.quic.identity import make_certificate, verify_certificate
from tests.protocol.samples import SMALL_ORDER
from tests.protocol.transport.quic_support import HOST, dialling, serving
from tests.support.waiting import eventually

EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
VICTIM = Ed25519PrivateKey.generate()
Made = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def der(tag: int, body: bytes) -> bytes:
    """`body` with its tag and the shortest length."""
    size = len(body)
    length = bytes((size,)) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")
    if 0x80 <= size < 0x100:
        length = bytes((0x81, size))
    return bytes((tag,)) + length + body


def forge(
    signer: Ed25519PrivateKey = VICTIM,
    claimed: Ed25519PrivateKey = VICTIM,
    *,
    signature: bytes | None = None,
    public: bytes | None = None,
    sign: Callable[[bytes], bytes] | None = None,
    domain: bytes = b"libp2p-tls-handshake:",
    extensions: int = 1,
    value: bytes | None = None,
    other_issuer: bool = False,
    expired: bool = False,
    critical_unknown: bool = False,
) -> Made:
    """A certificate that claims to be `claimed`'s; with the defaults it is a good one."""
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signature = (sign or signer.sign)(domain + spki) if signature is None else signature
    public = b"\x08\x01\x12\x20" + claimed.public_key().public_bytes_raw() if public is None else public
    value = der(0x30, der(0x04, public) + der(0x04, signature)) if value is None else value
    name = x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    end = now - datetime.timedelta(days=30) if expired else now + datetime.timedelta(days=30)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(end)
    )
    if extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(EXTENSION, value), critical=True)
    if critical_unknown:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"")
        builder = builder.add_extension(unknown, critical=True)
    signing_key = ec.generate_private_key(ec.SECP256R1()) if other_issuer else key
    return builder.sign(signing_key, hashes.SHA256()), key


FORGERIES = {
    "junk signature": lambda: forge(signature=bytes(64)),
    "short signature": lambda: forge(signature=b"x"),
    "another's key": lambda: forge(signer=Ed25519PrivateKey.generate()),
    "another domain": lambda: forge(domain=b"libp2p-something-else:"),
    "no extension": lambda: forge(extensions=0),
    "empty extension": lambda: forge(value=b""),
    "truncated extension": lambda: forge(value=b"\x30\x7f\x04\x24"),
    "not self-signed": lambda: forge(other_issuer=True),
    "expired": lambda: forge(expired=True),
    "unknown critical extension": lambda: forge(critical_unknown=True),
}


def key_message(kind: int, raw: bytes) -> bytes:
    """libp2p's protobuf PublicKey."""
    size = len(raw)
    length = bytes((size,)) if size < 0x80 else bytes((size & 0x7F | 0x80, size >> 7))
    return bytes((0x08, kind, 0x12)) + length + raw


SPKI = PublicFormat.SubjectPublicKeyInfo
RSA = rsa.generate_private_key(65_537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
K256 = ec.generate_private_key(ec.SECP256K1())


def sign_rsa(data: bytes) -> bytes:
    """As libp2p's RSA keys do."""
    return RSA.sign(data, padding.PKCS1v15(), hashes.SHA256())


def sign_ec(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    """As libp2p's keys on curves do."""
    return lambda data: key.sign(data, ec.ECDSA(hashes.SHA256()))


P256_COMPRESSED = der(
    0x30,
    der(0x30, bytes.fromhex("06072a8648ce3d020106082a8648ce3d030107"))
    + der(0x03, b"\0" + P256.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)),
)
# Each kind of key, in the encoding that its peer id is made from and in another that means the same key.
ENCODINGS: dict[str, tuple[Callable[[bytes], bytes], bytes, bytes]] = {
    "ed25519, a longer length": (
        VICTIM.sign,
        key_message(1, VICTIM.public_key().public_bytes_raw()),
        b"\x08\x01\x12\xa0\x00" + VICTIM.public_key().public_bytes_raw(),
    ),
    "rsa, PKCS 1": (
        sign_rsa,
        key_message(0, RSA.public_key().public_bytes(Encoding.DER, SPKI)),
        key_message(0, RSA.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)),
    ),
    "ecdsa, a compressed point": (
        sign_ec(P256),
        key_message(3, P256.public_key().public_bytes(Encoding.DER, SPKI)),
        key_message(3, P256_COMPRESSED),
    ),
    "secp256k1, an uncompressed point": (
        sign_ec(K256),
        key_message(2, K256.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)),
        key_message(2, K256.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)),
    ),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_key_has_one_name(name: str) -> None:
    """Of two encodings of a key one is refused: a peer id is made from the encoding."""
    sign, usual, other = ENCODINGS[name]
    assert verify_certificate(forge(public=usual, sign=sign)[0])
    with pytest.raises(BadSignature):
        verify_certificate(forge(public=other, sign=sign)[0])


@pytest.mark.parametrize("point", SMALL_ORDER, ids=bytes.hex)
def test_a_key_that_anybody_can_sign_for_is_refused(point: bytes) -> None:
    """With a point of small order as key, a signature made of nothing holds for every message or for an eighth."""
    nothing = bytes((1, *bytes(63)))
    for _ in range(20):
        certificate, _key = forge(public=key_message(1, point), signature=nothing)
        with pytest.raises(BadSignature):
            verify_certificate(certificate)


def test_peer_ids_are_libp2ps() -> None:
    """Our derivation of peer ids is the one that libp2p uses."""
    for seed in range(20):
        raw = bytes([seed]) * 32
        expected = ID.from_pubkey(create_new_key_pair(raw).public_key).to_base58()
        key = Ed25519PrivateKey.from_private_bytes(raw).public_key()
        assert peer_id_of(key) == expected
        assert public_key(expected) == key.public_bytes_raw()


def test_a_good_certificate_proves_its_peer() -> None:
    """What we make we accept, and so is what another implementation may make (a critical extension)."""
    certificate, _ = make_certificate(VICTIM)
    assert verify_certificate(certificate) == peer_id_of(VICTIM.public_key())
    assert verify_certificate(forge()[0]) == peer_id_of(VICTIM.public_key())


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_certificate_is_refused(name: str) -> None:
    """Each way of claiming a key one does not have is a BadSignature."""
    certificate, _ = FORGERIES[name]()
    with pytest.raises(BadSignature):
        verify_certificate(certificate)


@given(st.binary(max_size=200))
def test_any_extension_gives_a_verdict(value: bytes) -> None:
    """Whatever the extension holds, the answer is BadSignature and no other exception."""
    certificate, _ = forge(value=value)
    with pytest.raises(BadSignature):
        verify_certificate(certificate)


@given(st.integers(min_value=0))
def test_each_flipped_bit_is_noticed(position: int) -> None:
    """No bit of key or signature is without meaning."""
    certificate, key = make_certificate(VICTIM)
    value = bytearray(
        next(e.value.value for e in certificate.extensions if isinstance(e.value, x509.UnrecognizedExtension))
    )
    position %= len(value) * 8
    value[position // 8] ^= 1 << position % 8
    spki = key.public_key()
    forged = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(certificate.issuer)
        .public_key(spki)
        .serial_number(1)
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
        .add_extension(x509.UnrecognizedExtension(EXTENSION, bytes(value)), critical=False)
        .sign(key, hashes.SHA256())
    )
    with suppress(BadSignature):
        assert verify_certificate(forged) != peer_id_of(VICTIM.public_key())


def use(endpoint: Endpoint, made: Made) -> None:
    """Make `endpoint` show a certificate of our choice."""
    endpoint._certificate, endpoint._key = made


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forger_who_listens_is_not_believed(name: str) -> None:
    """The dialler refuses, and hears Unreachable at once."""
    async with serving() as server, dialling() as dialler:
        use(server.endpoint, FORGERIES[name]())
        with trio.fail_after(2), pytest.raises(Unreachable):
            await dialler.dial(HOST, server.port, peer_id_of(VICTIM.public_key()))
        assert dialler.statistics()["connections"] == 0


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forger_who_dials_is_not_believed(name: str) -> None:
    """The listener refuses before it shows the connection to anybody."""
    async with serving() as server, dialling() as dialler:
        use(dialler, FORGERIES[name]())
        with suppress(Unreachable), trio.fail_after(2):
            connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
            await connection.closed.wait()
        await eventually(lambda: server.endpoint.statistics()["connections"] == 0)
        assert server.connections == []


async def test_a_dialler_without_a_certificate_is_refused() -> None:
    """Client certificates are not optional, though TLS lets a client send none."""
    async with serving() as server, dialling() as dialler:
        connection = dialler._start_dial(HOST, server.port, server.endpoint.peer)
        connection._core.tls.certificate = None
        connection._core.tls.certificate_private_key = None
        with trio.fail_after(5):
            await connection.closed.wait()
        assert server.connections == []


async def test_another_peer_than_expected_is_refused() -> None:
    """A good certificate of the wrong peer is no better than a forged one."""
    async with serving() as server, dialling() as dialler:
        with trio.fail_after(2), pytest.raises(Unreachable, match="not 12D3KooW"):
            await dialler.dial(HOST, server.port, peer_id_of(VICTIM.public_key()))
        connection = await dialler.dial(HOST, server.port)
        assert connection.peer == server.endpoint.peer
