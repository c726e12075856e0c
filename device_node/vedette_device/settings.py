"""Settings of a device node; every key is in ``device_node/device.example.toml`` with its meaning."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from vedette_core.runtime.config import Section, Settings
from vedette_core.runtime.sections import BrokerSection, LogSection, MetricsSection
from vedette_device.detector_settings import ACCEPT_WINDOWS_MIN, WINDOWS_MAX
from vedette_device.participation_budget import ParticipationLimits
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


class EvidenceSection(Section):
    """What is kept of the newest alerts, so that ``vedette device explain`` can tell why they were raised.

    Attributes:
        alerts_max: most alerts; past it the oldest goes; 0 keeps nothing.
        bytes_max: most bytes of all of them; an alert's are some 7 kB (network) to 20 kB.
    """

    alerts_max: Annotated[int, Field(ge=0, le=100_000)] = 200
    bytes_max: Annotated[int, Field(ge=65_536, le=1 << 30)] = 2 * 1024 * 1024


class ParticipationSection(Section):
    """What this device lets learning cost; see `vedette_device.participation_budget.ParticipationLimits`.

    Attributes:
        cohort: what kind of device this is, in the operator's words: selection hears every kind.
        quiet_hours: stretches of the day without learning, ``22:00-06:00`` in UTC or with an offset.
        cpu_s_per_day: processor seconds of training in any 24 hours; 0 is no limit.
        energy_wh_per_day: watt-hours of training in any 24 hours, estimated from processor time; 0 is no limit.
        core_watts: watts of one busy core above idle, for that estimate.
        rounds_every: takes part in at most every n-th round of a task.
        battery_min: least charge to take part with, 0…1, while it is not charging.
    """

    cohort: Annotated[str, Field(pattern=f"^({ID_PATTERN})?$")] = ""
    quiet_hours: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    cpu_s_per_day: Annotated[float, Field(ge=0)] = 0.0
    energy_wh_per_day: Annotated[float, Field(ge=0)] = 0.0
    core_watts: Annotated[float, Field(ge=0, le=1000)] = 3.0
    rounds_every: Annotated[int, Field(ge=1, le=1000)] = 1
    battery_min: Annotated[float, Field(ge=0, le=1)] = 0.0

    def limits(self) -> ParticipationLimits:
        """The limits.

        Raises:
            ConfigError: quiet hours of another form.
        """
        return ParticipationLimits(
            quiet_hours=self.quiet_hours,
            cpu_s_per_day=self.cpu_s_per_day,
            energy_wh_per_day=self.energy_wh_per_day,
            rounds_every=self.rounds_every,
            battery_min=self.battery_min,
        )


class AttestationSection(Section):
    """How this node shows what runs on it; see `vedette_device.attester`.

    Attributes:
        enabled: whether it asks for attestation results, and checks in only with one.
        tier: what stands behind its word: 0 its identity key, 1 a chained boot, 2 a TPM 2.0.
        boot_dir: for tier 1, the folder that the boot stage wrote (`vedette attest boot`).
        tcti: for tier 2, how tpm2-tools reach the TPM; empty for their own choice.
        ak_handle: for tier 2, persistent handle of the attestation key.
        pcrs: for tier 2, registers of the SHA-256 bank that a quote is about, ascending.
    """

    enabled: bool = False
    tier: Annotated[int, Field(ge=0, le=2)] = 0
    boot_dir: Path | None = None
    tcti: Annotated[str, Field(max_length=256)] = ""
    ak_handle: Annotated[str, Field(pattern=r"^0x81[0-9a-fA-F]{6}$")] = "0x81010110"
    pcrs: Annotated[tuple[Annotated[int, Field(ge=0, lt=24)], ...], Field(min_length=1, max_length=24)] = (
        0, 1, 2, 3, 4, 5, 6, 7,
    )  # fmt: skip

    @field_validator("pcrs")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("registers are not ascending, each once")
        return value


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
        cusum_budget_days: days in which the sum of z may fire falsely once an entity; 0 does without it.
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
    cusum_budget_days: Annotated[float, Field(ge=0, le=36_500)] = 0.0


class NetworkSection(Section):
    """The network-flow detector.

    Attributes:
        task: federated task that its model belongs to.
        source: ``file`` (a finished capture), ``follow`` (a capture that still grows), ``live`` (an interface), or a
            log of flows: ``zeek`` (``conn.log``), ``eve`` (Suricata) or ``netflow`` (CSV of a collector). Logs fill
            another feature schema than packets, so that they need a task of their own.
        path: the capture or log, for all but ``live``.
        interface: the interface, for ``live`` (needs CAP_NET_RAW).
        follow: whether a log still grows; a finished one is replayed.
        local_networks: addresses of the devices that are watched.
        training_windows: windows a detector learns from before it takes part.
        calibration_windows: windows behind them that fix its thresholds.
        accept_windows: windows of a host that are learnt when a person accepts it; 0 for a quarter of
            `training_windows`, 240 at least.
    """

    task: Task = "network"
    source: Literal["file", "follow", "live", "zeek", "eve", "netflow"]
    path: Path | None = None
    interface: Annotated[str, Field(max_length=15)] | None = None
    follow: bool = True
    local_networks: Annotated[tuple[str, ...], Field(min_length=1, max_length=64)]
    training_windows: Annotated[int, Field(ge=32)] = 17_280
    calibration_windows: Annotated[int, Field(ge=20)] = 8_640
    accept_windows: Annotated[int, Field(ge=0, le=WINDOWS_MAX)] = 0
    replay: ReplaySection = ReplaySection()
    alerts: AlertSection = AlertSection()

    @field_validator("accept_windows")
    @classmethod
    def _enough(cls, value: int) -> int:
        if 0 < value < ACCEPT_WINDOWS_MIN:
            raise ValueError(f"{value} windows, expected 0 or at least {ACCEPT_WINDOWS_MIN}")
        return value

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


class ModbusSection(Section):
    """The device that registers are read from, over Modbus TCP.

    Attributes:
        host: name or address.
        port: TCP port.
        unit: unit identifier: the serial address behind a gateway, else what the device's manual says.
        timeout_s: longest wait for an answer.
    """

    host: Annotated[str, Field(min_length=1, max_length=253)] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 502
    unit: Annotated[int, Field(ge=0, le=255)] = 1
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 2.0


class SensorRegisterSection(Section):
    """Where one channel's number lies; see `vedette_device.sources.modbus_frames.Register`.

    Attributes:
        channel: its name.
        table: ``holding`` or ``input`` registers.
        address: first register, counted from 0.
        kind: type of the number.
        word_order: which register of a 32-bit number comes first: ``big`` for its upper half.
        scale: the reading is the number times this …
        offset: … plus this.
    """

    channel: Annotated[str, Field(min_length=1, max_length=60)]
    table: Literal["holding", "input"] = "holding"
    address: Annotated[int, Field(ge=0, le=65535)]
    kind: Literal["int16", "uint16", "int32", "uint32", "float32"] = "uint16"
    word_order: Literal["big", "little"] = "big"
    scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    offset: Annotated[float, Field(allow_inf_nan=False)] = 0.0


class SensorSection(Section):
    """The sensor-tampering detector.

    Attributes:
        task: federated task that its model belongs to.
        source: ``file`` (CSV), ``jsonl`` (a JSON object a line), ``mqtt`` (topics of the site's sensors) or ``modbus``
            (registers of a device).
        path: the file, for ``file`` and ``jsonl``.
        follow: whether that file still grows; a finished one is replayed.
        time_column: the file's column (or key) of epoch seconds.
        modbus: the device, for ``modbus``.
        registers: where each channel's number lies, for ``modbus``.
        broker: the sensors' broker, for ``mqtt``.
        topics: where each channel's readings come from, for ``mqtt``.
        channels: the channels, in the order of the task's feature schema.
        period_s: seconds between two rows.
        entity: name of the process in alerts.
        training_windows: rows a detector learns from before it takes part.
        calibration_windows: rows behind them that fix its thresholds.
    """

    task: Task = "sensor"
    source: Literal["file", "jsonl", "mqtt", "modbus"]
    path: Path | None = None
    follow: bool = False
    time_column: Annotated[str, Field(min_length=1, max_length=60)] = "time_s"
    modbus: ModbusSection = ModbusSection()
    registers: Annotated[tuple[SensorRegisterSection, ...], Field(max_length=64)] = ()
    broker: SensorBrokerSection = SensorBrokerSection()
    topics: Annotated[tuple[SensorTopicSection, ...], Field(max_length=64)] = ()
    channels: Annotated[tuple[str, ...], Field(min_length=1, max_length=32)]
    period_s: Annotated[float, Field(gt=0, le=86_400)]
    entity: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")] = "process"
    training_windows: Annotated[int, Field(ge=32)] = 5_760
    calibration_windows: Annotated[int, Field(ge=20)] = 2_880
    replay: ReplaySection = ReplaySection()
    alerts: AlertSection = AlertSection()


class BehaviourSection(Section):
    """The behaviour detector.

    Attributes:
        task: federated task that its model belongs to.
        source: ``live`` (this host, log files and a file of counts, at every full minute) or ``counts`` (that file
            alone, by the times in it).
        host: for ``live``, whether processes, sockets, traffic and logins of this host are counted.
        logs: for ``live``, log files whose kinds of lines are counted; of a broker's log, what becomes of sessions.
        counts: file of JSON lines with ``name``, ``count`` and, for ``counts``, ``time_s``.
        follow: for ``counts``, whether that file still grows; a finished one is replayed.
        key_file: file with the site's hashing key in hexadecimal; the same on all devices that learn together.
        hash_columns: columns that names are hashed into.
        entity: name of the host in alerts.
        training_windows: minutes a detector learns from before it takes part.
        calibration_windows: minutes behind them that fix its thresholds.
    """

    task: Task = "behaviour"
    source: Literal["live", "counts"]
    host: bool = True
    logs: Annotated[tuple[Path, ...], Field(max_length=16)] = ()
    counts: Path | None = None
    follow: bool = True
    key_file: Path
    hash_columns: Annotated[int, Field(ge=2, le=256)] = 64
    entity: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")] = "host"
    training_windows: Annotated[int, Field(ge=32)] = 2_880
    calibration_windows: Annotated[int, Field(ge=20)] = 1_440
    replay: ReplaySection = ReplaySection()
    alerts: AlertSection = AlertSection()


DetectorSection = NetworkSection | SensorSection | BehaviourSection


class PolicyBrokerSection(SensorBrokerSection):
    """The site's own broker, for the rules that publish; see `SensorBrokerSection`."""

    client_id: Annotated[str, Field(min_length=1, max_length=60)] = "vedette-policy"


class PolicySection(Section):
    """What is done about alerts on the gateway; see `vedette_device.policy_rules`.

    Attributes:
        enabled: whether rules are looked at.
        dry_run: only say and audit what would be done.
        rules: rules file, see ``policy.example.toml``.
        allow: addresses and networks that are never cut off, beside the gateway, its next hops and its brokers.
        quarantine_s_max: longest quarantine or throttle, seconds from its beginning.
        hosts_max: most addresses with one at a time.
        audit_bytes_max: size at which an audit file is closed and the next begun.
        audit_files_max: closed audit files that are kept.
        broker: the site's own broker, for the rules that publish.
    """

    enabled: bool = False
    dry_run: bool = True
    rules: Path | None = None
    allow: Annotated[tuple[str, ...], Field(max_length=256)] = ()
    quarantine_s_max: Annotated[float, Field(ge=1, le=30 * 86_400)] = 14_400.0
    hosts_max: Annotated[int, Field(ge=1, le=1024)] = 8
    audit_bytes_max: Annotated[int, Field(ge=65_536, le=1 << 30)] = 4 * 1024 * 1024
    audit_files_max: Annotated[int, Field(ge=1, le=1000)] = 16
    broker: PolicyBrokerSection | None = None

    @field_validator("allow")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ip_network(network)
        return value


class DeviceSettings(Settings):
    """A device node.

    Attributes:
        site: the site's id.
        device: this node's id, as in its certificate.
        state_dir: where spool, models and calibration live.
        telemetry_s: seconds between two node reports.
        model_bytes_max: largest artifact that this device takes; 0 is no limit.
    """

    site: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    device: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    state_dir: Path
    telemetry_s: Annotated[float, Field(ge=0.5, le=86_400)] = 60.0
    model_bytes_max: Annotated[int, Field(ge=0)] = 0
    identity: IdentitySection
    broker: BrokerSection = BrokerSection()
    participation: ParticipationSection = ParticipationSection()
    spool: SpoolSection = SpoolSection()
    evidence: EvidenceSection = EvidenceSection()
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()
    policy: PolicySection = PolicySection()
    attestation: AttestationSection = AttestationSection()
    network: NetworkSection | None = None
    sensor: SensorSection | None = None
    behaviour: BehaviourSection | None = None

    def detectors(self) -> tuple[DetectorSection, ...]:
        """The tables of the detectors that are there."""
        return tuple(s for s in (self.network, self.sensor, self.behaviour) if s is not None)
