"""What each kind of Step does: one verb of one room."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from pocketcloud import guest_packages
from pocketcloud.apply.memory import renew, set_clock, wake
from pocketcloud.apply.readiness import paused, thaw, wait_login, wait_ready, watched
from pocketcloud.apply.snapshot import take_snapshot
from pocketcloud.apply.world import World
from pocketcloud.errors import NoSpace, NotFound, PocketcloudError
from pocketcloud.events import Note, StepProgress
from pocketcloud.files import copy_whole, write_whole
from pocketcloud.guest import Guest
from pocketcloud.keys import new_key, read_key, read_public, write_private
from pocketcloud.model.lab import ProvisionStep
from pocketcloud.model.names import Name
from pocketcloud.model.record import Record, Stage
from pocketcloud.plan.steps import (
    CloneVolumes,
    CommitRecord,
    CreateVolume,
    DefineMachine,
    EndRestoring,
    EnsureNetwork,
    KeepNvram,
    KillMachine,
    PrepareVolumes,
    Provision,
    RemoveFiles,
    RemoveNetwork,
    RemoveVolumes,
    ResumeMachine,
    ServeCache,
    SetNvram,
    SettleFence,
    StartMachine,
    Step,
    StopMachine,
    TakeSnapshot,
    UndefineMachine,
    WaitReady,
    WakeMachine,
    WriteSeed,
)
from pocketcloud.records import remove_instance, remove_machine
from pocketcloud.seed import Seed, SeedNic, write_seed
from pocketcloud.specs import lab_domain, machine_address
from pocketcloud.ssh_config import SshHost, known_hosts_line, ssh_config

# How much of a failed command's output its error carries.
_LAST_LINES = 12
_LINE = 60


class ProvisioningFailed(PocketcloudError):
    """A step under `provision:` failed in the guest; the machine is made anew by the next `up`."""

    exit_code = 8


def effect_of(world: World) -> Callable[[Step], None]:
    """The function that carries out a step in `world`."""

    def effect(step: Step) -> None:
        _EFFECTS[type(step)](world, step)

    return effect


def _clone(world: World, step: CloneVolumes) -> None:
    world.files.make()
    world.storage.clone_all(step.clones, reserve=step.reserve)
    # All at once as well: what one machine's start would do for itself costs as much as for all.
    world.storage.activate(*(clone.name for clone in step.clones))


def _create(world: World, step: CreateVolume) -> None:
    world.files.make()
    world.storage.create(step.name, step.size, marks=step.marks)


def _prepare(world: World, step: PrepareVolumes) -> None:
    try:
        world.storage.prepare(step.clones)
    except NoSpace as full:
        world.emit(Note(f"nothing is prepared for the next reset, which will take longer: {full.message}", warn=True))


def _seed(world: World, step: WriteSeed) -> None:
    """The host key is made once and outlives resets and rebuilds, so that nobody's known_hosts ever complains.

    The seed is written before the record is committed, so it takes its machine's networks from the plan's record.
    """
    world.files.make()
    path = world.files.host_key(step.machine)
    try:
        key = read_key(path, step.machine)
    except NotFound:
        key = new_key(f"{step.machine}.{lab_domain(world.instance)}")
        write_private(path, key)
    authorized = tuple(dict.fromkeys((world.kit_key().public, *world.authorized)))
    nics = tuple(SeedNic(mac) for mac in step.macs)
    # The generation in the instance id makes cloud-init see a machine made anew as new.
    identity = f"{world.instance}.{step.machine}.{step.generation}"
    port = world.cache.port if world.cache else 0
    seed = Seed(identity, step.machine, lab_domain(world.instance), key, authorized, nics, cache_port=port, outer=step.outer)
    write_seed(world.files.seed(step.machine), seed)


def _commit(world: World, step: CommitRecord) -> None:
    """The record last: once it is there, no later command has a reason to write what goes with it."""
    world.files.make()
    _write_ssh_config(world, step.record)
    world.set_record(step.record)


def _write_ssh_config(world: World, record: Record) -> None:
    """What `lab ssh` and `lab ssh-config` use; it follows from the record, and is written anew with it."""
    files, hosts, known = world.files, [], ""
    for name in record.machines:
        address = machine_address(record, name)
        if address is None:
            continue
        with suppress(NotFound):
            known += known_hosts_line(name, address, read_public(files.host_key(name)))
            hosts.append(SshHost(name, address, "root", 22, world.kit.path / "keys" / "id_ed25519", files.known_hosts))
    write_whole(files.known_hosts, known)
    write_whole(files.ssh_config, ssh_config(hosts))


def _network(world: World, step: EnsureNetwork) -> None:
    world.hypervisor.ensure_network(world.network(step.network))


def _serve_cache(world: World, step: ServeCache) -> None:
    if world.cache is None:
        raise LookupError("the plan serves a cache, and there is none to serve")
    world.cache.serve([world.network(name) for name in step.networks])


def _set_nvram(world: World, step: SetNvram) -> None:
    live = world.files.nvram(step.machine)
    kept = live.parent / step.source
    if step.source and not kept.exists():
        world.emit(
            Note(f"{step.machine} begins with new UEFI variables: {kept}, which were kept with its state, is gone", warn=True)
        )
    # An empty file is kept of a machine that had none yet: it begins with new ones.
    if step.source and kept.exists() and kept.stat().st_size:
        copy_whole(kept, live, 0o600)
    else:
        live.unlink(missing_ok=True)


def _keep_nvram(world: World, step: KeepNvram) -> None:
    live, kept = world.files.nvram(step.machine), world.files.nvram(step.machine).parent / step.target
    if live.exists():
        copy_whole(live, kept, 0o600)
    else:
        write_whole(kept, b"", 0o600)


def _kill(world: World, step: KillMachine) -> None:
    domain = world.domain(step.machine)
    if step.flush:
        # Its disks are kept: what the guest has not written yet is worth a moment. One that does not answer loses as much
        # as in a power cut, which its file systems can do with.
        with suppress(PocketcloudError):
            world.hypervisor.freeze(domain)
    world.hypervisor.kill(domain)


def _define(world: World, step: DefineMachine) -> None:
    world.hypervisor.define(world.spec(step.machine))


def _start(world: World, step: StartMachine) -> None:
    restoring = world.machine(step.machine).restoring
    if restoring and restoring.woken:
        world.change_machine(step.machine, restoring=replace(restoring, woken=False))
    # What an interrupted snapshot left; memory is never brought back onto disks that have moved on.
    world.files.memory(step.machine).unlink(missing_ok=True)
    world.storage.activate(*world.machine(step.machine).disks.values())
    world.hypervisor.start(world.domain(step.machine))


def _wake(world: World, step: WakeMachine) -> None:
    if not wake(world, step.machine, step.memory, step.id):
        _start(world, StartMachine(id=step.id, reason=step.reason, machine=step.machine))


# A request that failed is made again as soon as the machine goes on.
_PAUSED_AGAIN_SECONDS = 1.0


def _resume(world: World, step: ResumeMachine) -> None:
    domain = world.domain(step.machine)
    world.hypervisor.resume(domain)
    # If what it waited for is still missing, it is paused again within moments.
    until = time.monotonic() + _PAUSED_AGAIN_SECONDS
    while time.monotonic() < until and not world.stop.wait(0.1):
        found = world.hypervisor.domain(domain)
        if found is not None and found.waits:
            raise paused(world, step.machine, found.reason)
    # It may have been stopped while its file systems were being frozen.
    world.hypervisor.thaw(domain)


def _stop(world: World, step: StopMachine) -> None:
    domain = world.domain(step.machine)
    if not world.hypervisor.shutdown(domain, step.within):
        world.emit(StepProgress(step.id, -1, f"still on after {step.within:.0f} s; powering off", step.machine))
        world.hypervisor.kill(domain)


def _provision(world: World, step: Provision) -> None:
    """Commits that it begins before it does, and that it ended after: what is found in between was interrupted. Nobody knows how
    long commands take: they end with the machine, or with ours."""
    definition = world.machine(step.machine).definition
    with wait_login(world, step.machine, step.id, first=True) as guest, watched(world, step.machine, "provisioned") as watch:
        world.change_machine(step.machine, stage=Stage.PROVISIONING)
        total = len(definition.provision) + 1
        if definition.packages:
            said = f"installing {', '.join(definition.packages)}"
            world.emit(StepProgress(step.id, 0.0, said if len(said) <= _LINE else f"{said[:_LINE]}...", step.machine))
            _install(world, guest, step.machine, definition.packages, watch.stop)
        for index, action in enumerate(definition.provision, start=1):
            world.emit(StepProgress(step.id, index / total, action.title, step.machine))
            _act(world, guest, step.machine, index - 1, action, watch.stop)
        guest.run("sync", stop=watch.stop)
    world.change_machine(step.machine, stage=Stage.PROVISIONED)


def _install(world: World, guest: Guest, machine: str, packages: Sequence[str], stop: threading.Event) -> None:
    for path, content in guest_packages.files(packages):
        guest.write(path, content, 0o644, stop=stop)
    done = guest.run(guest_packages.COMMAND, stop=stop)
    if done.code != 0:
        # apt says why on one stream, dnf on the other.
        said = (done.out + b"\n" + done.err).decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        kept = f"pocketcloud cache add --lab {world.instance} keeps them in the kit, for a computer without a network; "
        raise ProvisioningFailed(
            "\n  ".join([f"{machine}: its packages ({', '.join(packages)}) were not installed", *said]),
            hint=f"{kept if world.cache else ''}look: pocketcloud lab ssh {world.instance} {machine};"
            f" the next up makes {machine} anew",
        )


def _act(world: World, guest: Guest, machine: str, index: int, action: ProvisionStep, stop: threading.Event) -> None:
    if action.write is not None:
        guest.write(action.write, (action.content or "").encode(), int(action.mode, 8), stop=stop)
        return
    done = guest.run(f"sh -ec {shlex.quote(action.run or '')}", stop=stop)
    if done.code != 0:
        said = (done.err or done.out).decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        raise ProvisioningFailed(
            "\n  ".join([f"{machine}: provision[{index}] ({action.title}) ended with exit code {done.code}", *said]),
            hint=f"look: pocketcloud lab ssh {world.instance} {machine}; mend the lab file; the next up makes {machine} anew",
        )


def _wait_ready(world: World, step: WaitReady) -> None:
    # An interrupted command may have brought it back from memory with its file systems still frozen.
    thawed = False
    with suppress(PocketcloudError):
        thawed = world.hypervisor.thaw(world.domain(step.machine))
    restoring = world.machine(step.machine).restoring
    if restoring and restoring.woken and step.machine not in world.woken:
        # The command that woke it has ended since.
        set_clock(world, step.machine)
    renewed = partial(renew, world, step.machine) if step.machine in world.woken else None
    wait_ready(world, step.machine, step.id, first=step.first, renew=renewed)
    if not thawed:
        thaw(world, step.machine, ready=True)
    if step.first and world.machine(step.machine).stage is not Stage.PROVISIONED:
        world.change_machine(step.machine, stage=Stage.PROVISIONED)
    if (waits := world.machine(step.machine).restoring) and not waits.ready:
        # Should another that is brought back with it not become ready, it is known of this one.
        world.change_machine(step.machine, restoring=replace(waits, ready=True))


def _end_restoring(world: World, step: EndRestoring) -> None:
    world.commit(lambda record: record.brought_back(step.machines))


def _snapshot(world: World, step: TakeSnapshot) -> None:
    machines, memory = ([Name(machine) for machine in names] for names in (step.machines, step.memory))
    take_snapshot(world, Name(step.name), machines, step.generation, step.id, protected=step.protected, memory=memory)


def _remove_files(world: World, step: RemoveFiles) -> None:
    if step.machine:
        remove_machine(world.files, step.machine)
    else:
        remove_instance(world.files)
        world.record = None


_EFFECTS: dict[type[Step], Callable[[World, Any], None]] = {
    CloneVolumes: _clone,
    CreateVolume: _create,
    WriteSeed: _seed,
    CommitRecord: _commit,
    EnsureNetwork: _network,
    ServeCache: _serve_cache,
    SetNvram: _set_nvram,
    DefineMachine: _define,
    StartMachine: _start,
    WakeMachine: _wake,
    StopMachine: _stop,
    Provision: _provision,
    WaitReady: _wait_ready,
    TakeSnapshot: _snapshot,
    RemoveFiles: _remove_files,
    ResumeMachine: _resume,
    KillMachine: _kill,
    KeepNvram: _keep_nvram,
    EndRestoring: _end_restoring,
    UndefineMachine: lambda world, step: world.hypervisor.undefine(world.domain(step.machine)),
    SettleFence: lambda world, step: world.hypervisor.settle_fence(world.network(step.network)),
    RemoveNetwork: lambda world, step: world.hypervisor.remove_network(world.domain(step.network)),
    RemoveVolumes: lambda world, step: world.storage.remove(*step.names),
    PrepareVolumes: _prepare,
}
