"""The builder `layer`: a thin clone of another base, with packages, patches and steps of its own on top.

What is added is added in a throw-away guest that starts from the clone (customize.py), because the parent's file system is
mounted nowhere else. The parent's volume is not touched: a layer holds only what differs from it.
"""

from __future__ import annotations

from collections.abc import Iterator

from pocketcloud.bases import customize
from pocketcloud.bases.recipe import Measured, Order
from pocketcloud.errors import NotFound
from pocketcloud.model.base import Arch, Base, Firmware, LayerDefinition

RECIPE = 1
"""The version of what this module does: raised when a layer would come out differently."""

_CLONED = 0.05


class Layer:
    """See Recipe. The order's `parent` is the base that it stands on."""

    def inputs(self, definition: LayerDefinition, arch: Arch) -> Iterator[tuple[str, bytes]]:  # noqa: ARG002 - the same for all
        """See Recipe.inputs; the parent is added by builder.py."""
        yield "layer", str(RECIPE).encode()
        if customize.wanted(definition):
            yield from customize.parts()

    def firmware(self, definition: LayerDefinition, arch: Arch) -> Firmware:  # noqa: ARG002 - the same for all
        """See Recipe.firmware: builder.py takes the parent's."""
        return Firmware.EFI

    def check(self, order: Order[LayerDefinition]) -> None:
        """See Recipe.check."""
        parent = _parent(order)
        if all(volume.name != parent.volume for volume in order.storage.volumes()):
            raise NotFound(
                f"base {order.definition.base} is a layer on {parent.name}, whose volume is missing",
                hint=f"pocketcloud base build {parent.name} --arch {order.arch}",
            )
        if customize.wanted(order.definition):
            customize.check(order)

    def make(self, order: Order[LayerDefinition], volume: str) -> str:
        """See Recipe.make."""
        parent, storage = _parent(order), order.storage
        size = next(found.size for found in storage.volumes() if found.name == parent.volume)
        order.tell(f"cloning {parent.name}", 0.0)
        storage.clone(parent.volume, volume, max(size, order.definition.size))
        if customize.wanted(order.definition):
            path, form = storage.place(volume)
            storage.activate(volume)
            order.measured(Measured(customize.customize(order, path, form, parent.firmware, _CLONED)))
        storage.seal(volume)
        return f"a layer on {parent.volume}, customized in a guest (recipe {customize.RECIPE})"


def _parent(order: Order[LayerDefinition]) -> Base:
    if order.parent is None:
        raise LookupError(f"layer {order.definition.base} was ordered without its parent")
    return order.parent
