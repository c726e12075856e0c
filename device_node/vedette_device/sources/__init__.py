"""Sources: what a gateway listens to.

A packet source (``PacketSource``) reads a capture file, a file that still grows, or a live interface; a sample source
(``SampleSource``) reads sensor rows. Both are polled: ``read()`` never waits for data. It returns a batch, an
*empty* batch when nothing has come yet, and ``None`` when nothing more will ever come.

A flow log (``FlowLog``) is read line by line (``LineFollower``) by one parser a format; registers are asked for
(``ModbusPoller``); host behaviour and log lines become named counts (``HostBehaviour``, ``LogLineCounts``, and in it
``BrokerSessions``), and any program may write its own (``CountLines``).
"""

from vedette_device.sources.capture_file import CaptureFile
from vedette_device.sources.count_lines import CountLines, TimedCount
from vedette_device.sources.counts import NamedCounts
from vedette_device.sources.csv_file import CsvFile
from vedette_device.sources.errors import (
    CaptureFormatError,
    CaptureTruncatedError,
    LinkTypeError,
    RowsError,
    SourceError,
)
from vedette_device.sources.flow_log import FlowLog
from vedette_device.sources.flow_record import FlowParser, FlowRecord, FlowState
from vedette_device.sources.host import HostBehaviour
from vedette_device.sources.interface import PacketSource, Position, SampleBatch, SampleSource
from vedette_device.sources.json_rows import JsonRows
from vedette_device.sources.line_follower import LineFollower, LinePosition
from vedette_device.sources.live import LiveInterface
from vedette_device.sources.log_lines import LogLineCounts
from vedette_device.sources.modbus import ModbusPoller
from vedette_device.sources.modbus_frames import Register
from vedette_device.sources.packets import PacketBatch
from vedette_device.sources.topics import ChannelTopic, SampleAligner, TopicDecoder

__all__ = [
    "CaptureFile",
    "CaptureFormatError",
    "CaptureTruncatedError",
    "ChannelTopic",
    "CountLines",
    "CsvFile",
    "FlowLog",
    "FlowParser",
    "FlowRecord",
    "FlowState",
    "HostBehaviour",
    "JsonRows",
    "LineFollower",
    "LinePosition",
    "LinkTypeError",
    "LiveInterface",
    "LogLineCounts",
    "ModbusPoller",
    "NamedCounts",
    "PacketBatch",
    "PacketSource",
    "Position",
    "Register",
    "RowsError",
    "SampleAligner",
    "SampleBatch",
    "SampleSource",
    "SourceError",
    "TimedCount",
    "TopicDecoder",
]
