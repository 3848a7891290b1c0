"""What libvirt raises: explained to users, or passed over where an object's absence is what is wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType

import libvirt

from pocketcloud.hypervisor import complaints

# Codes of an agent that is not there or does not answer.
NO_AGENT = {
    getattr(libvirt, name)
    for name in (
        "VIR_ERR_AGENT_UNRESPONSIVE",
        "VIR_ERR_AGENT_UNSYNCED",
        "VIR_ERR_AGENT_COMMAND_TIMEOUT",  # from libvirt 11.2 on
        "VIR_ERR_OPERATION_UNSUPPORTED",
        "VIR_ERR_OPERATION_INVALID",
    )
    if hasattr(libvirt, name)
}

# Codes of an agent that answered that it could not do what it was asked.
AGENT_FAILED = {
    getattr(libvirt, name)
    for name in ("VIR_ERR_INTERNAL_ERROR", "VIR_ERR_AGENT_COMMAND_FAILED")  # the second from libvirt 11.2 on
    if hasattr(libvirt, name)
}


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as complaint:
        code, text = complaint.get_error_code() or 0, complaint.get_error_message() or str(complaint)
        raise complaints.explain(code, text, doing) from None


class absence:  # noqa: N801 - reads as contextlib's suppress does
    """Leave the block quietly where libvirt says that the object is not there (any more), in one of these codes."""

    def __init__(self, *codes: int) -> None:
        self._codes = codes

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> bool:
        return isinstance(error, libvirt.libvirtError) and error.get_error_code() in self._codes
