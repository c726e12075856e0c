"""Settings of a device node; every key is in ``device_node/device.example.toml`` with its meaning."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from vedette_core.runtime.config import Section, Settings
from vedette_core.runtime.sections import BrokerSection, LogSection, MetricsSection
from vedette_schemas.topics import ID_PATTERN, TASK_PATTERN

Task = Annotated[str, Field(pattern=f"^{TASK_PATTERN}$")]


class IdentitySection(Section):
    """Who this node is.

    Attributes:
        bundle: folder that ``vedette ca issue`` made for it.
        trust_root: the releases' ``root.json``, given at enrolment and never taken from the network.
    """

    bundle: Path
    trust_root: Path


class SpoolSection(Section):
    """How much waits on disk while the broker or the aggregator is away.

    Attributes:
        messages_max: most messages; past it the least severe, oldest goes.
        bytes_max: most bytes.
        resend_s: seconds after which a message without a receipt is sent again.
    """

    messages_max: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    bytes_max: Annotated[int, Field(ge=4096)] = 64 * 1024 * 1024
    resend_s: Annotated[float, Field(ge=0.5, le=3600)] = 30.0


class ReplaySection(Section):
    """How a recorded file is replayed; a live source is not affected.

    Attributes:
        speed: event seconds a second; 0 is as fast as it can be read.
        wait_for_release: a file waits at the end of its calibration stretch until this release version is active, so
            that nothing goes by unscored; 0 does not wait.
    """

    speed: Annotated[float, Field(ge=0, le=1e7)] = 1.0
    wait_for_release: Annotated[int, Field(ge=0)] = 0


class AlertSection(Section):
    """When a detector speaks; see `vedette_device.detection_machine`.

    Attributes:
        magnitude_p: a window with a smaller p-value fires at once.
        magnitude_factor: so does one whose score is this many times the largest that was benign.
        sustained_p: the moving average of z is high above Φ⁻¹(1 − this) …
        sustained_margin: … and above the largest of the calibration stretch, plus this.
        sustained_windows: m of the rule «m of n windows».
        sustained_span: n of the rule «m of n windows».
        half_life_windows: half-life of the moving average, windows.
        clear_p: hysteresis: how far the average must fall before an alert clears.
        clear_windows: calm windows in a row that close an alert.
        cooldown_windows: windows after the close in which the same alert goes on instead of a new one.
        per_hour_max: most alerts that are opened an hour.
    """

    magnitude_p: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    magnitude_factor: Annotated[float, Field(gt=1, le=1000)] = 2.0
    sustained_p: Annotated[float, Field(gt=0, lt=1)] = 1e-2
    sustained_margin: Annotated[float, Field(ge=0, le=10)] = 0.5
    sustained_windows: Annotated[int, Field(ge=1, le=100)] = 3
    sustained_span: Annotated[int, Field(ge=1, le=100)] = 5
    half_life_windows: Annotated[float, Field(gt=0, le=1000)] = 2.0
    clear_p: Annotated[float, Field(gt=0, lt=1)] = 0.1
    clear_windows: Annotated[int, Field(ge=1, le=10_000)] = 6
    cooldown_windows: Annotated[int, Field(ge=0, le=10_000)] = 12
    per_hour_max: Annotated[int, Field(ge=1, le=10_000)] = 30


class NetworkSection(Section):
    """The network-flow detector.

    Attributes:
        task: federated task that its model belongs to.
        source: ``file`` (a finished capture), ``follow`` (a capture that still grows) or ``live`` (an interface).
        path: the capture, for ``file`` and ``follow``.
        interface: the interface, for ``live`` (needs CAP_NET_RAW).
        local_networks: addresses of the devices that are watched.
        training_windows: windows a detector learns from before it takes part.
        calibration_windows: windows behind them that fix its thresholds.
    """

    task: Task = "network"
    source: Literal["file", "follow", "live"]
    path: Path | None = None
    interface: Annotated[str, Field(max_length=15)] | None = None
    local_networks: Annotated[tuple[str, ...], Field(min_length=1, max_length=64)]
    training_windows: Annotated[int, Field(ge=32)] = 17_280
    calibration_windows: Annotated[int, Field(ge=20)] = 8_640
    replay: ReplaySection = ReplaySection()
    alerts: AlertSection = AlertSection()

    @field_validator("local_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ip_network(network)
        return value


class SensorTopicSection(Section):
    """Where one channel's readings come from.

    Attributes:
        channel: its name.
        topic: MQTT topic filter at the site's own broker.
        path: where in the JSON payload the number lies: ``$``, then ``.name`` or ``[0]``.
        time_path: where its epoch seconds lie; empty for the time of arrival.
    """

    channel: Annotated[str, Field(min_length=1, max_length=60)]
    topic: Annotated[str, Field(min_length=1, max_length=512)]
    path: Annotated[str, Field(max_length=256)] = "$"
    time_path: Annotated[str, Field(max_length=256)] = ""


class SensorBrokerSection(Section):
    """The broker that the site's sensors publish to; it is not Vedette's own.

    Attributes:
        host: name or address.
        port: TCP port.
        client_id: what this node calls itself there.
        ca: certificates that its TLS certificate is checked with; without it the session is not encrypted.
        username: where it asks for one.
        password_file: file with the password.
    """

    host: Annotated[str, Field(min_length=1, max_length=253)] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 1883
    client_id: Annotated[str, Field(min_length=1, max_length=60)] = "vedette-sensor"
    ca: Path | None = None
    username: Annotated[str, Field(max_length=256)] = ""
    password_file: Path | None = None


class SensorSection(Section):
    """The sensor-tampering detector.

    Attributes:
        task: federated task that its model belongs to.
        source: ``file`` (CSV) or ``mqtt`` (topics of the site's sensors).
        path: the CSV file, for ``file``.
        time_column: the CSV's column of epoch seconds.
        broker: the sensors' broker, for ``mqtt``.
        topics: where each channel's readings come from, for ``mqtt``.
        channels: the channels, in the order of the task's feature schema.
        period_s: seconds between two rows.
        entity: name of the process in alerts.
        training_windows: rows a detector learns from before it takes part.
        calibration_windows: rows behind them that fix its thresholds.
    """

    task: Task = "sensor"
    source: Literal["file", "mqtt"]
    path: Path | None = None
    time_column: Annotated[str, Field(min_length=1, max_length=60)] = "time_s"
    broker: SensorBrokerSection = SensorBrokerSection()
    topics: Annotated[tuple[SensorTopicSection, ...], Field(max_length=64)] = ()
    channels: Annotated[tuple[str, ...], Field(min_length=1, max_length=32)]
    period_s: Annotated[float, Field(gt=0, le=86_400)]
    entity: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")] = "process"
    training_windows: Annotated[int, Field(ge=32)] = 5_760
    calibration_windows: Annotated[int, Field(ge=20)] = 2_880
    replay: ReplaySection = ReplaySection()
    alerts: AlertSection = AlertSection()


class DeviceSettings(Settings):
    """A device node.

    Attributes:
        site: the site's id.
        device: this node's id, as in its certificate.
        state_dir: where spool, models and calibration live.
        telemetry_s: seconds between two node reports.
    """

    site: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    device: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    state_dir: Path
    telemetry_s: Annotated[float, Field(ge=0.5, le=86_400)] = 60.0
    identity: IdentitySection
    broker: BrokerSection = BrokerSection()
    spool: SpoolSection = SpoolSection()
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()
    network: NetworkSection | None = None
    sensor: SensorSection | None = None
