"""What the dashboards show: sections, panels and their queries, without a word about how Grafana stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

SELECTOR: Final = 'job=~"$job", instance=~"$instance"'
"""Every query goes through the chosen scrape jobs and instances."""

Kind = Literal["timeseries", "stat", "heatmap"]


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel.

    Attributes:
        expr: PromQL; ``@`` stands for the selector of job and instance, ``[rate]`` for Grafana's rate interval.
        legend: legend of a series.
    """

    expr: str
    legend: str = ""

    @property
    def promql(self) -> str:
        """The query with both put in."""
        return self.expr.replace("@", SELECTOR).replace("[rate]", "[$__rate_interval]")


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: what is seen, in a few words.
        description: what it means and when to worry.
        unit: Grafana's unit id.
        queries: at least one.
        kind: how it is drawn.
        width: of 24 columns.
        stacked: series are parts of a whole.
        decimals: places shown, or None for Grafana's choice.
    """

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: Kind = "timeseries"
    width: int = 8
    stacked: bool = False
    decimals: int | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """A row of the dashboard and the panels under it."""

    title: str
    panels: Sequence[Panel] = field(default_factory=tuple)


FLEET: Final = (
    Section(
        "At a glance",
        (
            Panel(
                "Devices online",
                "Devices whose last retained state says online. A lost one did not say goodbye.",
                "short",
                (Query('sum(vedette_devices{@, state="online"})'),),
                "stat",
                4,
            ),
            Panel(
                "Alerts opened",
                "Alerts that devices opened in the shown time. Updates of an open alert are not counted again.",
                "short",
                (Query('sum(increase(vedette_alerts_received_total{@, state="open"}[$__range]))'),),
                "stat",
                4,
                decimals=0,
            ),
            Panel(
                "Windows scored",
                "Feature windows that the fleet scored in the shown time, from the devices' node reports.",
                "short",
                (Query("sum(increase(vedette_fleet_windows_scored_total{@}[$__range]))"),),
                "stat",
                4,
                decimals=0,
            ),
            Panel(
                "Rounds completed",
                "Federated rounds that ended with a signed release in the shown time.",
                "short",
                (Query('sum(increase(vedette_rounds_total{@, outcome="released"}[$__range]))'),),
                "stat",
                4,
                decimals=0,
            ),
            Panel(
                "Newest release",
                "Version of the newest signed release of each task.",
                "none",
                (Query("max by (task) (vedette_release_version{@})", "{{task}}"),),
                "stat",
                4,
            ),
            Panel(
                "Trust expires in",
                "Time until the timestamp metadata, and the aggregator's own certificate, end. Detection goes on.",
                "s",
                (
                    Query("min(vedette_trust_expiry_timestamp_seconds{@}) - time()", "metadata"),
                    Query("min(vedette_certificate_expiry_timestamp_seconds{@}) - time()", "aggregator's certificate"),
                ),
                "stat",
                4,
            ),
        ),
    ),
    Section(
        "Detection",
        (
            Panel(
                "Alerts by severity",
                "Alerts opened, by severity. A jump of every device at once is rather a bad release than an attack.",
                "short",
                (
                    Query(
                        'sum by (severity) (increase(vedette_alerts_received_total{@, state="open"}[rate]))',
                        "{{severity}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Alerts by detector and rule",
                "Alerts opened, by task and by the rule that fired: one extreme window, or several in a row.",
                "short",
                (
                    Query(
                        'sum by (task, kind) (increase(vedette_alerts_received_total{@, state="open"}[rate]))',
                        "{{task}} {{kind}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Alert delay",
                "From a device's publication to the aggregator. A long tail is a spool that empties after an outage.",
                "s",
                tuple(
                    Query(
                        f"histogram_quantile({q}, sum by (le) (rate(vedette_alert_delay_seconds_bucket{{@}}[rate])))",
                        legend,
                    )
                    for q, legend in ((0.5, "median"), (0.95, "95th percentile"))
                ),
            ),
            Panel(
                "Windows scored a second",
                "How fast the fleet scores, by task. A task that falls to nothing has lost its sources.",
                "cps",
                (Query("sum by (task) (rate(vedette_fleet_windows_scored_total{@}[rate]))", "{{task}}"),),
            ),
            Panel(
                "Time to score a window",
                "Distribution of the devices' median time for one window, over all tasks.",
                "s",
                (Query("sum by (le) (increase(vedette_fleet_score_seconds_bucket{@}[rate]))", "{{le}}"),),
                "heatmap",
            ),
            Panel(
                "Devices by state",
                "Devices by their last state: online, stopped (on purpose) or lost (the connection died).",
                "short",
                (Query("sum by (state) (vedette_devices{@})", "{{state}}"),),
                stacked=True,
            ),
        ),
    ),
    Section(
        "Drift and fleet events",
        (
            Panel(
                "Drift of scores",
                "Stability index of p-values. From 0.25 on they are others, unless a device has seen few windows.",
                "none",
                (Query("sum by (le) (increase(vedette_fleet_drift_psi_bucket{@}[rate]))", "{{le}}"),),
                "heatmap",
                6,
            ),
            Panel(
                "Drifting devices",
                "Devices whose scores have drifted, or whose records have: unreadable, incomplete, stuck, elsewhere.",
                "short",
                (Query("sum by (task, kind) (vedette_drifting_devices{@})", "{{task}} {{kind}}"),),
                width=6,
            ),
            Panel(
                "Changes of the mean p-value",
                "Changes that the devices' adaptive windows found. Many at once: a release, or the world has changed.",
                "short",
                (Query("sum by (task) (increase(vedette_fleet_drift_changes_total{@}[rate]))", "{{task}}"),),
                width=6,
            ),
            Panel(
                "Fleet events",
                "Events in which many devices of a kind fired together, and the alerts that belong to them.",
                "short",
                (
                    Query(
                        'sum by (task) (increase(vedette_fleet_events_total{@, outcome="opened"}[rate]))',
                        "{{task}} events",
                    ),
                    Query("sum by (task) (increase(vedette_fleet_event_alerts_total{@}[rate]))", "{{task}} alerts"),
                ),
                width=6,
            ),
        ),
    ),
    Section(
        "Learning together",
        (
            Panel(
                "Rounds by outcome",
                "Rounds by what became of them. Failed and retried ones: too few devices check in or come back.",
                "short",
                (Query("sum by (task, outcome) (increase(vedette_rounds_total{@}[rate]))", "{{task}} {{outcome}}"),),
                stacked=True,
            ),
            Panel(
                "Participants",
                "Updates that are in the last aggregate of each task.",
                "short",
                (Query("max by (task) (vedette_round_participants{@})", "{{task}}"),),
            ),
            Panel(
                "Loss before and after local training",
                "Weighted mean loss on participants' own data, last round. After above before: stop and look.",
                "none",
                (Query("max by (task, stage) (vedette_round_loss{@})", "{{task}} {{stage}}"),),
            ),
            Panel(
                "Round under way",
                "Number of the round that each task is in.",
                "none",
                (Query("max by (task) (vedette_round_number{@})", "{{task}}"),),
            ),
            Panel(
                "Phase of the round",
                "1 for the phase that a task's round is in: check-in, collect, done or failed.",
                "none",
                (Query("max by (task, state) (vedette_round_phase{@})", "{{task}} {{state}}"),),
            ),
            Panel(
                "Uploads taken in",
                "Bytes of updates that the aggregator received.",
                "Bps",
                (Query("sum by (task) (rate(vedette_update_bytes_total{@}[rate]))", "{{task}}"),),
            ),
            Panel(
                "Releases published",
                "Releases that were signed and published.",
                "short",
                (Query("sum by (task) (increase(vedette_releases_total{@}[rate]))", "{{task}}"),),
                width=12,
            ),
            Panel(
                "Devices by release",
                "Devices that run each release version. Old versions that stay are devices that cannot update.",
                "short",
                (
                    Query(
                        "sum by (task, model_version) (vedette_release_devices{@})",
                        "{{task}} version {{model_version}}",
                    ),
                ),
                width=12,
                stacked=True,
            ),
        ),
    ),
    Section(
        "Rollouts",
        (
            Panel(
                "Rollout phase",
                "1 for the phase that a task's rollout is in. Paused waits for a person: `vedette rollout show`.",
                "none",
                (Query("max by (task, state) (vedette_rollout_phase{@})", "{{task}} {{state}}"),),
                width=12,
            ),
            Panel(
                "Fleet that runs a candidate",
                "Part of the fleet that the rollout's stage is about.",
                "percentunit",
                (Query("max by (task) (vedette_rollout_stage_ratio{@})", "{{task}}"),),
                width=12,
            ),
            Panel(
                "Devices that run a candidate",
                "Devices that the rollout under way has exposed to its candidate.",
                "short",
                (Query("max by (task) (vedette_rollout_exposed_devices{@})", "{{task}}"),),
                width=12,
            ),
            Panel(
                "Rollouts by outcome",
                "Rollouts that were created, paused, promoted, aborted or rolled back.",
                "short",
                (Query("sum by (task, outcome) (increase(vedette_rollouts_total{@}[rate]))", "{{task}} {{outcome}}"),),
                width=12,
            ),
        ),
    ),
    Section(
        "Protection of updates",
        (
            Panel(
                "Rostered and aggregated devices",
                "Devices in the rosters of the last round, and updates in its aggregate. The gap dropped out.",
                "short",
                (
                    Query("max by (task) (vedette_round_members{@})", "{{task}} rostered"),
                    Query("max by (task) (vedette_round_participants{@})", "{{task}} aggregated"),
                ),
            ),
            Panel(
                "Groups dropped by reason",
                "Groups whose sum did not count: no encoding could have it (limit, weight, canary), or the defence.",
                "short",
                (
                    Query(
                        "sum by (task, outcome) (increase(vedette_groups_dropped_total{@}[rate]))",
                        "{{task}} {{outcome}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Committee work by outcome",
                "Votes and shares of unmasking committees, by the aggregator's answer.",
                "cps",
                (
                    Query(
                        'sum by (kind, outcome) (rate(vedette_machine_events_total{@, kind=~"vote|shares"}[rate]))',
                        "{{kind}}: {{outcome}}",
                    ),
                ),
            ),
            Panel(
                "Epsilon of the most exposed device",
                "Privacy spent in the current budget period, and its limit. Infinity: no noise, nothing is promised.",
                "none",
                (
                    Query("max by (task) (vedette_privacy_epsilon{@})", "{{task}} spent"),
                    Query("max by (task) (vedette_privacy_epsilon_max{@})", "{{task}} limit"),
                ),
            ),
            Panel(
                "Highest suspicion",
                "Suspicion of the device whose groups stand out most, in standard deviations. Above 3: look at it.",
                "none",
                (
                    Query("max by (task) (vedette_suspicion_max{@})", "{{task}}"),
                    Query("max by (task) (vedette_suspects{@})", "{{task}} to look at"),
                ),
            ),
            Panel(
                "Devices that run foreign releases",
                "Devices that run a release that this site's repository never signed: the release keys may be stolen.",
                "short",
                (Query("max by (task) (vedette_foreign_release_devices{@})", "{{task}}"),),
            ),
            Panel(
                "Quarantined devices",
                "Devices that a person keeps out of rounds, and revoked ones; number of the newest revocation list.",
                "short",
                (
                    Query("max by (instance) (vedette_quarantined_devices{@})", "{{instance}}"),
                    Query("max by (instance) (vedette_revoked_devices{@})", "{{instance}} revoked"),
                    Query("max by (instance) (vedette_revocation_list_number{@})", "{{instance}} revocation list"),
                ),
            ),
            Panel(
                "Beacon epochs left",
                "Epochs left of the chain that puts devices into groups. Without one no round can be had.",
                "none",
                (Query("min by (task) (vedette_beacon_epochs_left{@})", "{{task}}"),),
            ),
            Panel(
                "Attestations",
                "Evidence and check-ins by the verifier's answer: accepted, challenged, or the rule that refused.",
                "short",
                (Query("sum by (outcome) (increase(vedette_attestations_total{@}[rate]))", "{{outcome}}"),),
            ),
        ),
    ),
    Section(
        "What it costs",
        (
            Panel(
                "Memory of device nodes",
                "Distribution of the device nodes' resident memory. A node should stay below 150 MB.",
                "bytes",
                (Query("sum by (le) (increase(vedette_fleet_resident_memory_bytes_bucket{@}[rate]))", "{{le}}"),),
                "heatmap",
            ),
            Panel(
                "Processors used by device nodes",
                "Processor time of all device nodes together, in processors.",
                "none",
                (Query("sum(rate(vedette_fleet_cpu_seconds_total{@}[rate]))", "processors"),),
            ),
            Panel(
                "Memory of the aggregator",
                "Resident memory of the aggregator's process.",
                "bytes",
                (Query("max by (instance) (vedette_resident_memory_bytes{@})", "{{instance}}"),),
            ),
        ),
    ),
    Section(
        "Messages",
        (
            Panel(
                "Messages accepted",
                "Messages that the aggregator took in, by kind.",
                "cps",
                (Query('sum by (kind) (rate(vedette_messages_total{@, outcome="accepted"}[rate]))', "{{kind}}"),),
            ),
            Panel(
                "Messages rejected by reason",
                "Messages that were dropped, by the reason. A wrong signature or sender is never harmless.",
                "cps",
                (
                    Query(
                        'sum by (kind, outcome) (rate(vedette_messages_total{@, outcome!="accepted"}[rate]))',
                        "{{kind}}: {{outcome}}",
                    ),
                ),
            ),
            Panel(
                "Answers of the round machine",
                "Events by the answer of the machine's table: accepted, rejected or discarded.",
                "cps",
                (
                    Query(
                        "sum by (kind, outcome) (rate(vedette_machine_events_total{@}[rate]))", "{{kind}}: {{outcome}}"
                    ),
                ),
            ),
            Panel(
                "Messages waiting in spools",
                "Messages that wait in the devices' spools for a receipt. A level that stays: no receipts.",
                "short",
                (Query("sum(vedette_fleet_spool_messages{@})", "waiting"),),
                width=12,
            ),
            Panel(
                "Connections to the broker",
                "Connections that the aggregator made. More than one means that the broker or the network went away.",
                "short",
                (Query("sum by (instance) (increase(vedette_broker_connects_total{@}[$__range]))", "{{instance}}"),),
                width=12,
            ),
        ),
    ),
)
