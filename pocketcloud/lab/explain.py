"""`--dry-run`: what each Step of a plan would run, as commands and XML that also work by hand."""

from __future__ import annotations

import shlex
from dataclasses import replace

from pocketcloud.apply.memory import why_cold
from pocketcloud.apply.world import World
from pocketcloud.hypervisor.firewall import fence_script
from pocketcloud.model.machine import NetworkSpec
from pocketcloud.model.names import joined
from pocketcloud.plan.drafting import volume_name
from pocketcloud.plan.steps import (
    CloneVolumes,
    CommitRecord,
    CreateVolume,
    DefineMachine,
    EndRestoring,
    EnsureNetwork,
    KeepNvram,
    KillMachine,
    Plan,
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


def explain(plan: Plan, world: World) -> dict[str, tuple[str, ...]]:
    """By step id, the lines a person would type for it. Lines that begin with `#` say what no command does."""
    seen = replace(world, record=plan.record or world.record)
    return {step.id: tuple(_lines(step, seen)) for step in plan.steps}


def _network_lines(step: EnsureNetwork | SettleFence | RemoveNetwork, world: World) -> list[str]:
    if isinstance(step, RemoveNetwork):
        name = joined(world.kit.name, world.instance, step.network)
        return [f"virsh net-destroy {name}", f"virsh net-undefine {name}"]
    network = world.network(step.network)
    if isinstance(step, SettleFence):
        return _fence_lines(network)
    define = _virsh_xml("net-define", world.hypervisor.network_xml(network), f"virsh net-start {network.name}")
    return define if network.fenced is None else [*_fence_lines(network), *define]


def _fence_lines(network: NetworkSpec) -> list[str]:
    if network.fenced is None:
        return [f"# the fence around {network.bridge}, where one is there, is taken down"]
    return ["nft -f - <<'END'", *fence_script(network.bridge, network.range, network.fenced).splitlines(), "END"]


def _lines(step: Step, world: World) -> list[str]:
    domain = shlex.quote(world.domain(step.machine)) if step.machine else ""
    match step:
        case CloneVolumes() | PrepareVolumes():
            return [line for c in step.clones for line in world.storage.explain("clone", c.name, source=c.source, size=c.size)]
        case CreateVolume():
            return list(world.storage.explain("create", step.name, size=step.size))
        case RemoveVolumes():
            return [line for name in step.names for line in world.storage.explain("remove", name)]
        case EnsureNetwork() | SettleFence() | RemoveNetwork():
            return _network_lines(step, world)
        case DefineMachine():
            return _virsh_xml("define", world.hypervisor.machine_xml(world.spec(step.machine)))
        case StartMachine() | WakeMachine():
            disks = world.machine(step.machine).disks.values()
            ready = [line for volume in disks for line in world.storage.explain("activate", volume)]
            return [*ready, *_start_lines(step, world, domain)]
        case StopMachine():
            return [f"virsh shutdown {domain}  # and after {step.within:.0f} s: virsh destroy {domain}"]
        case ResumeMachine():
            return [f"virsh resume {domain}"]
        case KillMachine():
            freeze = [f"virsh domfsfreeze {domain}  # its file systems made whole, where an agent answers"] if step.flush else []
            return [*freeze, f"virsh destroy {domain}"]
        case UndefineMachine():
            return [f"virsh destroy {domain}", f"virsh undefine --managed-save --keep-nvram {domain}"]
        case _:
            return _file_lines(step, world)


def _start_lines(step: StartMachine | WakeMachine, world: World, domain: str) -> list[str]:
    cold = [f"virsh start --force-boot {domain}"]
    if isinstance(step, StartMachine):
        return cold
    if why := why_cold(world, step.machine, step.memory, whole=False):
        return [f"# its memory is not used: {why}", *cold]
    file = shlex.quote(str(world.files.memory_file(step.memory.file)))
    return [
        f"# if sha256sum of {file} is {step.memory.sha256}, else a cold start",
        f"virsh restore {file}  # with the new disks",
        f"virsh domfsthaw {domain}",
        f"virsh domtime {domain} --now",
    ]


def _virsh_xml(verb: str, xml: str, *more: str) -> list[str]:
    return [f"virsh {verb} /dev/stdin <<'XML'", *xml.strip().splitlines(), "XML", *more]


def _file_lines(step: Step, world: World) -> list[str]:
    files = world.files
    match step:
        case ServeCache():
            return world.cache.explain([world.network(name) for name in step.networks]) if world.cache else []
        case CommitRecord() | EndRestoring():
            return [f"# write {files.record}"]
        case WriteSeed():
            return [
                f"# write the host key {files.host_key(step.machine)} if it is missing, and the seed {files.seed(step.machine)}"
            ]
        case SetNvram():
            live = shlex.quote(str(files.nvram(step.machine)))
            return [
                f"cp --sparse=always {shlex.quote(str(files.nvram(step.machine).parent / step.source))} {live}"
                if step.source
                else f"rm -f {live}"
            ]
        case KeepNvram():
            variables = files.nvram(step.machine)
            return [shlex.join(["cp", "--sparse=always", str(variables), str(variables.parent / step.target)])]
        case Provision():
            definition = world.machine(step.machine).definition
            first = [f"# over ssh, as root: install {' '.join(definition.packages)}"] if definition.packages else []
            return [*first, *(f"# over ssh, as root: {action.title}" for action in definition.provision)]
        case WaitReady():
            return [f"# wait for {_demands(world, step.machine)}"]
        case TakeSnapshot():
            return _snapshot_lines(step, world)
        case RemoveFiles():
            return (
                [f"# remove what is {step.machine}'s in {files.folder}"]
                if step.machine
                else [f"rm -r {shlex.quote(str(files.folder))}"]
            )
        case _:
            raise TypeError(f"a step without an explanation: {type(step).__name__}")


def _demands(world: World, machine: str) -> str:
    ready = world.machine(machine).definition.ready
    parts = [f"port {ready.tcp}"] if ready.tcp else []
    parts += [f"`{ready.command}` to succeed"] if ready.command else []
    parts += [f"{ready.console!r} on the console"] if ready.console else []
    return " and ".join(parts) or "ssh"


def _snapshot_lines(step: TakeSnapshot, world: World) -> list[str]:
    lines = []
    for machine in step.machines:
        domain, memory = world.domain(machine), world.files.memory(machine)
        if machine in step.memory:
            memory = world.files.kept_memory(machine, step.name, step.generation)
        lines += [f"virsh domfsfreeze {domain}", f"virsh save {domain} {shlex.quote(str(memory))}"]
        for disk, volume in world.machine(machine).disks.items():
            live = volume_name(world.instance, machine, disk, step.generation)
            lines += world.storage.explain("clone", live, source=volume)
        lines += [
            f"# write {world.files.record}",
            f"virsh restore {shlex.quote(str(memory))}  # with the new disks",
            f"virsh domfsthaw {domain}",
        ]
    return lines
