"""Who is at the other end: libp2p's TLS certificates, made and verified.

A peer makes a throw-away key and certificate, and puts into the certificate an extension in which its
identity key signs the throw-away key (libp2p specification, "libp2p TLS Handshake"). TLS proves that the
other end holds the throw-away key; this module proves whose it is.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import NameOID

from protocol.errors import BadSignature
from protocol.keys import load_key
from protocol.transport.peer_id import encode_key, peer_id

ALPN = "libp2p"
_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
_DOMAIN = b"libp2p-tls-handshake:"
_LIFE = timedelta(days=365)
# Clocks of volunteers' machines are wrong by hours at times; the certificate is made anew at every start anyway.
_CLOCK_SKEW = timedelta(days=2)
_MAX_EXTENSION_BYTES = 4096  # an RSA-8192 key and signature make about 2.1 KB
_MAX_RSA_BITS = 8192  # verifying grows with the square of the size
_MAX_RSA_EXPONENT = 2**32  # and with the length of the exponent, which is 65,537 everywhere


def make_certificate(identity: Ed25519PrivateKey) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A self-signed certificate that says it belongs to `identity`, and the key it certifies."""
    key = ec.generate_private_key(ec.SECP256R1())
    signature = identity.sign(_DOMAIN + _spki(key.public_key()))
    public = encode_key(identity.public_key())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "libp2p")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _LIFE)
        .add_extension(
            x509.UnrecognizedExtension(_EXTENSION, _der_sequence(public, signature)), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def verify_certificate(certificate: x509.Certificate, now: datetime | None = None) -> str:
    """The peer id that `certificate` proves.

    TLS itself has proved that the other end holds the certified key.

    Raises: BadSignature, if anything about it does not hold.
    """
    now = now or datetime.now(UTC)
    if (
        not certificate.not_valid_before_utc - _CLOCK_SKEW
        <= now
        <= certificate.not_valid_after_utc + _CLOCK_SKEW
    ):
        raise BadSignature("the peer's certificate is not valid now")
    try:
        certificate.verify_directly_issued_by(certificate)
        extensions = list(certificate.extensions)
        spki = _spki(certificate.public_key())
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise BadSignature("the peer's certificate is not signed by its own key") from error
    ours = [extension.value for extension in extensions if extension.oid == _EXTENSION]
    if any(
        extension.critical and extension.oid != _EXTENSION for extension in extensions if _unknown(extension)
    ):
        raise BadSignature("the peer's certificate has a critical extension that is not known")
    if len(ours) != 1 or not isinstance(ours[0], x509.UnrecognizedExtension):
        raise BadSignature("the peer's certificate does not say whose it is")
    public, signature = _parse_sequence(ours[0].value)
    _verify(public, signature, _DOMAIN + spki)
    return peer_id(public)


def prove_peer(certificate: x509.Certificate | None, alpn: str | None, expected: str | None) -> str:
    """Whose handshake this was. Raises: BadSignature, if nobody's, or not that of the `expected` peer."""
    if certificate is None:
        raise BadSignature("the peer has no certificate")
    if alpn != ALPN:
        raise BadSignature("the peer does not speak libp2p")
    peer = verify_certificate(certificate)
    if expected is not None and peer != expected:
        raise BadSignature(f"it is peer {peer} that answers, not {expected}")
    return peer


def _unknown(extension: x509.Extension[x509.ExtensionType]) -> bool:
    return isinstance(extension.value, x509.UnrecognizedExtension)


def _spki(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


def _verify(public: bytes, signature: bytes, data: bytes) -> None:
    """Check the signature of a key of any of libp2p's types (0 RSA, 1 Ed25519, 2 secp256k1, 3 ECDSA).

    A key has one encoding only, because the peer id is made from it.
    """
    kind, raw = _parse_public_key(public)
    try:
        if kind == 1:
            load_key(raw).verify(signature, data)
        elif kind == 2:
            _compressed(raw).verify(signature, data, ec.ECDSA(hashes.SHA256()))
        else:
            key = load_der_public_key(raw)
            if _spki(key) != raw:
                raise BadSignature("the peer's key is malformed")
            if kind == 0 and isinstance(key, rsa.RSAPublicKey) and _is_cheap(key):
                key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            elif kind == 3 and isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
            else:
                raise BadSignature("the peer's key is not of the type it says, or too large")
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise BadSignature("the peer's key did not sign its certificate") from error


def _compressed(raw: bytes) -> ec.EllipticCurvePublicKey:
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), raw)
    if key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint) != raw:
        raise BadSignature("the peer's key is malformed")
    return key


def _is_cheap(key: rsa.RSAPublicKey) -> bool:
    return 2048 <= key.key_size <= _MAX_RSA_BITS and key.public_numbers().e <= _MAX_RSA_EXPONENT


def _parse_public_key(data: bytes) -> tuple[int, bytes]:
    """Type and bytes out of libp2p's protobuf PublicKey, which has one encoding only."""
    if len(data) < 4 or data[0] != 0x08 or data[1] > 3 or data[2] != 0x12:
        raise BadSignature("the peer's key is malformed")
    size, start = data[3], 4
    if size & 0x80:
        if len(data) < 5 or not 0 < data[4] < 0x80:  # the shortest form, which has no 0 at its end
            raise BadSignature("the peer's key is malformed")
        size, start = size & 0x7F | data[4] << 7, 5
    if len(data) != start + size:
        raise BadSignature("the peer's key is malformed")
    return data[1], data[start:]


def _der_sequence(*octets: bytes) -> bytes:
    body = b"".join(b"\x04" + _der_length(len(data)) + data for data in octets)
    return b"\x30" + _der_length(len(body)) + body


def _der_length(size: int) -> bytes:
    if size < 0x80:
        return bytes((size,))
    encoded = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((0x80 | len(encoded),)) + encoded


def _parse_sequence(data: bytes) -> tuple[bytes, bytes]:
    """The two octet strings of the extension's ASN.1 sequence."""
    if len(data) > _MAX_EXTENSION_BYTES:
        raise BadSignature("the certificate's extension is too large")
    body, rest = _parse_der(data, 0x30)
    public, after = _parse_der(body, 0x04)
    signature, end = _parse_der(after, 0x04)
    if rest or end:
        raise BadSignature("the certificate's extension is malformed")
    return public, signature


def _parse_der(data: bytes, tag: int) -> tuple[bytes, bytes]:
    if len(data) < 2 or data[0] != tag:
        raise BadSignature("the certificate's extension is malformed")
    size, start = data[1], 2
    if size & 0x80:
        count = size & 0x7F
        start = 2 + count
        if count not in (1, 2) or len(data) < start:
            raise BadSignature("the certificate's extension is malformed")
        size = int.from_bytes(data[2:start], "big")
        if _der_length(size) != data[1:start]:  # DER: the shortest form
            raise BadSignature("the certificate's extension is malformed")
    if len(data) < start + size:
        raise BadSignature("the certificate's extension is malformed")
    return data[start : start + size], data[start + size :]
