"""What `swarm doctor` makes of what it has seen: findings, each with the next step. Pure."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from protocol.errors import ConfigError
from protocol.messages import DialReply
from protocol.plain import plain
from protocol.records import Announcement
from protocol.transport.addresses import Address, parse_address, sound_addresses
from swarm.cli.words import count, describe_size, name_of
from swarm.coverage import Coverage

State = Literal["ok", "note", "wrong"]

# Less free memory than this holds no layer of any real model; less than that few.
LEAST_MEMORY: Final = 256 << 20
SMALL_MEMORY: Final = 2 << 30
# Weights from peers are written to the disk before they are used, and a node leaves the disk so much.
LEAST_DISK: Final = 2 << 30
# A node has a descriptor for each file of weights, and a few beside; connections share the one socket.
LEAST_FILES: Final = 256
# Nodes left out that are named.
NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `step` is what to do about it, empty where there is nothing to do."""

    about: str
    state: State
    text: str
    step: str = ""

    def fields(self) -> dict[str, str]:
        """For --json."""
        return {"about": self.about, "state": self.state, "text": self.text, "step": self.step}


def ok(about: str, text: str) -> Finding:
    """As it should be."""
    return Finding(about, "ok", text)


def of_packages(python: str, missing: Mapping[str, str], extras: Mapping[str, bool]) -> Iterable[Finding]:
    """`missing`: what the client needs, and what is there instead; `extras`: whether each can be used."""
    if missing:
        named = ", ".join(f"{name} ({why})" for name, why in sorted(missing.items()))
        step = "./scripts/setup in a checkout, else: pip install --force-reinstall inference-swarm"
        yield Finding("packages", "wrong", f"Python {python}; not as they should be: {named}", step)
    else:
        yield ok("packages", f"Python {python}; all that a client needs")
    for extra, what in (("node", "serving layers"), ("http", "serving an API")):
        if not extras[extra]:
            step = f'pip install "inference-swarm[{extra}]"'
            yield Finding("packages", "note", f"what {what} needs is not installed", step)


def of_kernels(isa: str | None, why: str, torch: bool, processor: Sequence[str]) -> Finding:
    """`isa`: the kernels in use; None, where there are none, and `why`."""
    if isa is not None:
        return ok("kernels", f"native {isa}; this processor has {', '.join(processor) or 'nothing special'}")
    if torch:
        step = "install a C compiler, and: python -m node.native.build"
        return Finding("kernels", "note", f"torch computes, slower than ours would: {why}", step)
    step = 'install a C compiler, and: python -m node.native.build; or: pip install "inference-swarm[torch]"'
    return Finding("kernels", "wrong", f"nothing here computes layers: {why}", step)


def of_memory(free: int, for_weights: int) -> Finding:
    """Bytes."""
    text = f"{describe_size(free)} free, of it {describe_size(for_weights)} for weights"
    if free < LEAST_MEMORY:
        return Finding("memory", "wrong", text, "end other programs, or use this machine as a client only")
    if free < SMALL_MEMORY:
        return Finding("memory", "note", text, "serve few layers, with --quant int4: `swarm plan MODEL`")
    return ok("memory", text)


def of_disk(folder: str, free: int, writable: bool) -> Finding:
    """Where weights from peers and clients' files are kept."""
    text = f"{describe_size(free)} free in {folder}"
    if not writable:
        return Finding(
            "disk", "wrong", f"{folder} cannot be written", f"chown -R $USER {shlex.quote(folder)}"
        )
    if free < LEAST_DISK:
        return Finding("disk", "wrong", text, "swarm models rm NAME, or another disk with --cache-dir")
    return ok("disk", text)


def of_files(limit: int) -> Finding:
    """Descriptors that a process may have open."""
    if limit < LEAST_FILES:
        return Finding("open files", "wrong", f"{limit} at most", f"ulimit -n {4 * LEAST_FILES}")
    return ok("open files", f"{limit} at most")


def of_socket(error: str | None, buffer: int, wanted: int) -> Finding:
    """A UDP socket on every interface: whether one can be had and says something to itself, its buffer in bytes."""
    if error is not None:
        step = "allow UDP in this machine's firewall or container"
        return Finding("udp", "wrong", f"no datagram passes on this machine: {error}", step)
    if buffer < wanted // 4:
        step = f"sysctl -w net.core.rmem_max={wanted} net.core.wmem_max={wanted}"
        text = (
            f"the system gives a socket {describe_size(buffer)} of buffer, {describe_size(wanted)} are wanted"
        )
        return Finding("udp", "note", text, step)
    return ok("udp", f"datagrams pass on this machine; {describe_size(buffer)} of buffer")


def of_doors(addrs: Sequence[str], whence: str) -> Iterable[Finding]:
    """Where a swarm is said to be; `whence` names who says so."""
    for addr in addrs:
        try:
            if parse_address(addr).peer is None:
                raise ConfigError(f"the address {addr} does not end in /p2p/<peer id>")
        except ConfigError as error:
            yield Finding("config", "wrong", str(error), f"correct {whence}; every node prints its addresses")


def of_dials(port: int, replies: Sequence[DialReply], own_hosts: Collection[str], peers: int) -> Finding:
    """Whether nodes reach a UDP port of this machine; `own_hosts` are the addresses of its interfaces."""
    if not replies:
        step = "ask by a node of this version: swarm doctor --join ADDRESS"
        return Finding("reach", "note", f"none of {count(peers, 'node')} dials back", step)
    seen = sorted({reply.host for reply in replies if _is_address(reply.host)})
    at = f"UDP port {port}, of this machine as it is seen at {', '.join(seen) or 'no address'}"
    reached = sum(reply.reached for reply in replies)
    if reached:
        text = f"{reached} of {count(len(replies), 'node')} asked reached {at}"
        if not seen or set(seen) & set(own_hosts):
            return ok("reach", text)
        step = f"start nodes with --announce {Address.of(seen[0], port)}"
        return Finding("reach", "note", f"{text}: behind a router, that is where others find it", step)
    why = plain(replies[0].why)
    if seen and not set(seen) & set(own_hosts):
        step = f"forward UDP port {port} to this machine, then: swarm doctor --listen /ip4/0.0.0.0/udp/{port}/quic-v1"
    else:
        step = f"let UDP port {port} in through this machine's firewall"
    return Finding("reach", "wrong", f"nobody reached {at}: {why}; nodes here would serve few", step)


def of_clock(complaint: str, answered: int) -> Finding:
    """What those who answered say of this machine's clock."""
    if complaint.startswith("this machine"):
        return Finding("clock", "wrong", complaint, "timedatectl set-ntp true")
    if complaint:
        return Finding("clock", "note", complaint, "its owner has to set it; you need do nothing")
    return ok("clock", f"agrees with {count(answered, 'node')}")


def of_nodes(coverages: Sequence[Coverage], disputes: Mapping[bytes, str], door: str) -> Iterable[Finding]:
    """Who serves what, who is left out and why, and what nobody serves."""
    if not coverages:
        yield Finding(
            "model", "wrong", "nobody serves a model here", f"swarm node --model MODEL --join {door}"
        )
    for model in coverages:
        answering = sum(node.peer in model.rtt_ms for node in model.nodes)
        of = f"{model.name} on {count(answering, 'node')}"
        for hole in model.missing:
            yield Finding("model", "wrong", f"{of}: {model.hole(hole)}", model.fill(hole, door))
        if not model.missing:
            yield ok("model", f"{of}: every layer is served")
        yield from _left_out(model)
        if (dispute := disputes.get(model.one.digest)) is not None:
            step = f"--weights {model.weights} pins those in use" if model.weights else "--weights DIGEST"
            yield Finding("weights", "note", dispute, step)


def of_own_node(running: bool, own: Announcement | None, others: Sequence[Announcement]) -> Finding | None:
    """A node of this machine, as others see it: None if none runs."""
    if not running:
        return None
    if own is None:
        step = "start it with --join and an address of this swarm"
        return Finding("own node", "wrong", "a node runs here, and this swarm has not heard of it", step)
    text = f"{name_of(own.peer)} {own.state}, announced at {_places(own)}"
    if _only_near([own]) and others and not _only_near(others):
        step = "forward its UDP port, and start it with --announce /ip4/PUBLIC-ADDRESS/udp/PORT/quic-v1"
        return Finding("own node", "wrong", f"{text}: only this network reaches that", step)
    met = sum(any(link.peer == own.peer for link in node.links) for node in others)
    if others and not met:
        step = "let UDP in to its port: others may not reach it"
        return Finding(
            "own node", "note", f"{text}; none of {count(len(others), 'node')} says it met it", step
        )
    return ok("own node", f"{text}; met by {met} of {count(len(others), 'node')}")


def _is_address(host: str) -> bool:
    """Whether what a stranger says is one."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _only_near(nodes: Sequence[Announcement]) -> bool:
    """Whether all their addresses are of one network: of those that are no strangers' nonsense."""
    for addr in sound_addresses(addr for node in nodes for addr in node.addrs):
        try:
            if ipaddress.ip_address(parse_address(addr).host.partition("%")[0]).is_global:
                return False
        except ValueError:  # a name, which somebody has given it for others
            return False
    return True


def _left_out(model: Coverage) -> Iterable[Finding]:
    silent = [node for node in model.nodes if node.peer not in model.rtt_ms]
    for node in silent[:NAMED]:
        text = f"{name_of(node.peer)} is left out: it does not answer from here ({_places(node)})"
        yield Finding("node", "note", text, "its owner: is it up, and is its UDP port open?")
    for node in [n for n in model.nodes if n.peer in model.rtt_ms and n.state != "serving"][:NAMED]:
        yield Finding("node", "note", f"{name_of(node.peer)} is {node.state}", "wait until it serves")


def _places(node: Announcement) -> str:
    return plain(", ".join(node.addrs)) if node.addrs else "no address"


def summary(findings: Sequence[Finding]) -> dict[str, Any]:
    """For --json: whether all is well, and everything that was found."""
    sound = not any(finding.state == "wrong" for finding in findings)
    return {"sound": sound, "findings": [finding.fields() for finding in findings]}
