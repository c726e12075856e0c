"""Sources: what a gateway listens to.

A packet source (``PacketSource``) reads a capture file, a file that still grows, or a live interface; a sample source
(``SampleSource``) reads sensor rows. Both are polled: ``read()`` never waits for data. It returns a batch, an
*empty* batch when nothing has come yet, and ``None`` when nothing more will ever come.
"""

from vedette_device.sources.capture_file import CaptureFile
from vedette_device.sources.csv_file import CsvFile
from vedette_device.sources.errors import (
    CaptureFormatError,
    CaptureTruncatedError,
    LinkTypeError,
    RowsError,
    SourceError,
)
from vedette_device.sources.interface import PacketSource, Position, SampleBatch, SampleSource
from vedette_device.sources.live import LiveInterface
from vedette_device.sources.packets import PacketBatch
from vedette_device.sources.topics import ChannelTopic, SampleAligner, TopicDecoder

__all__ = [
    "CaptureFile",
    "CaptureFormatError",
    "CaptureTruncatedError",
    "ChannelTopic",
    "CsvFile",
    "LinkTypeError",
    "LiveInterface",
    "PacketBatch",
    "PacketSource",
    "Position",
    "RowsError",
    "SampleAligner",
    "SampleBatch",
    "SampleSource",
    "SourceError",
    "TopicDecoder",
]
