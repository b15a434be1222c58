"""What a block takes and returns: its image and text streams, and what blocks add to them.

diffusers registers for every cacheable block class which argument and which output is the image
stream and which the text stream; everything here follows that registry.
"""

from __future__ import annotations

import inspect
from typing import Any

Streams = tuple[Any, Any]
"""Image tokens and text tokens (None where a block has one stream); batch × tokens × width."""


class Form:
    """How one block class takes and returns its streams."""

    def __init__(self, block: Any) -> None:
        from diffusers.hooks._helpers import TransformerBlockRegistry

        known = TransformerBlockRegistry.get(type(block))
        self._image = known.return_hidden_states_index
        self._text = known.return_encoder_hidden_states_index
        names = tuple(inspect.signature(type(block).forward).parameters)[1:]
        self._image_at = _place(known.hidden_states_argument_name, names)
        self._text_at = _place(known.encoder_hidden_states_argument_name, names)

    def inputs(self, args: Any, kwargs: Any) -> Streams:
        """Return the streams that the block was called with."""
        place, name = self._image_at
        image = args[place] if place < len(args) else kwargs[name]
        if self._text is None:
            return image, None
        place, name = self._text_at
        return image, args[place] if place < len(args) else kwargs[name]

    def unpack(self, output: Any) -> Streams:
        """Return the streams of a block's output."""
        if self._text is None:
            return (output[self._image] if isinstance(output, tuple) else output), None
        return output[self._image], output[self._text]

    def pack(self, streams: Streams) -> Any:
        """Return streams as the block would."""
        image, text = streams
        if self._text is None:
            return image
        output = [None, None]
        output[self._image], output[self._text] = image, text
        return tuple(output)


def _place(name: str, names: tuple[str, ...]) -> tuple[int, str]:
    # Z-Image's blocks are registered under a name that their first argument does not have.
    place = names.index(name) if name in names else 0
    return place, names[place]


def combine(streams: Streams, others: Streams, sign: int) -> Streams:
    """Return image and text streams plus (sign 1) or less (sign -1) others."""
    image = streams[0] + others[0] if sign > 0 else streams[0] - others[0]
    if streams[1] is None or others[1] is None:
        return image, None
    return image, (streams[1] + others[1] if sign > 0 else streams[1] - others[1])


class Stretch:
    """Blocks of a segment that have run, and what they have added without the model's additions.

    The model has added something where a block is not given the very tensors that the block before
    it returned; an addition in place would not be noticed.
    """

    def __init__(self, start: Streams) -> None:
        self._start = self.end = start
        self._before: Streams | None = None

    def given(self, streams: Streams) -> None:
        """Take what the next block is given."""
        if streams[0] is not self.end[0] or streams[1] is not self.end[1]:
            self._before, self._start = self.added(), streams

    def added(self) -> Streams:
        """Return what the blocks have added up to here."""
        since = combine(self.end, self._start, -1)
        return since if self._before is None else combine(self._before, since, 1)
