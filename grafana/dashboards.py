"""The dashboards as code: ``python grafana/dashboards.py`` writes ``grafana/dashboards/*.json``.

Classic schema (42), which both file provisioning and hand import take. Every query goes through ``${datasource}`` and
the chosen scrape jobs and instances, so that one dashboard serves several sites.

Source: Grafana's dashboard JSON model; the rules are those of grafana/dashboard-linter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as dashboard_builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER: Final = Path(__file__).parent / "dashboards"
SCHEMA_VERSION: Final = 42
SELECTOR: Final = 'job=~"$job", instance=~"$instance"'
COLUMNS: Final = 24
HEIGHT_ROWS: Final = 8

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
                "Time until the signed timestamp metadata expires. Past it, no release is taken; detection goes on.",
                "s",
                (Query("min(vedette_trust_expiry_timestamp_seconds{@}) - time()"),),
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


def _datasource() -> Any:
    return common.DataSourceRef(type_val="prometheus", uid="${datasource}")


def _target(query: Query, index: int, kind: Kind) -> Any:
    target = (
        prometheus.Dataquery()
        .expr(query.promql)
        .legend_format(query.legend or "__auto")
        .ref_id(chr(ord("A") + index))
        .datasource(_datasource())
        .format(PromQueryFormat.HEATMAP if kind == "heatmap" else PromQueryFormat.TIME_SERIES)
    )
    return target.instant() if kind == "stat" else target.range()


def _drawn(panel: Panel) -> Any:
    match panel.kind:
        case "stat":
            return stat.Panel().graph_mode(common.BigValueGraphMode.NONE).color_mode(common.BigValueColorMode.NONE)
        case "heatmap":
            return heatmap.Panel().calculate(False)
        case "timeseries":
            drawn = (
                timeseries.Panel()
                .line_width(1)
                .fill_opacity(20 if panel.stacked else 0)
                .show_points(common.VisibilityMode.AUTO)
                .legend(
                    common_builders.VizLegendOptions()
                    .show_legend(True)
                    .display_mode(common.LegendDisplayMode.LIST)
                    .placement(common.LegendPlacement.BOTTOM)
                )
                .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
            )
            if panel.stacked:
                drawn = drawn.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
            return drawn


def _panel(panel: Panel, number: int) -> Any:
    drawn = (
        _drawn(panel)
        .id(number)
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(_datasource())
        .height(4 if panel.kind == "stat" else HEIGHT_ROWS)
        .span(panel.width)
    )
    if panel.decimals is not None:
        drawn = drawn.decimals(panel.decimals)
    for index, query in enumerate(panel.queries):
        drawn = drawn.with_target(_target(query, index, panel.kind))
    return drawn


def _labels(name: str, label: str, query: str) -> Any:
    return (
        dashboard_builders.QueryVariable(name)
        .label(label)
        .query({"query": query, "refId": name})
        .datasource(_datasource())
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(dashboard.VariableOption(text="All", value="$__all", selected=True))
    )


def fleet() -> dict[str, Any]:
    """The dashboard "Vedette fleet" as Grafana imports it."""
    built = (
        dashboard_builders.Dashboard("Vedette fleet")
        .uid("vedette-fleet")
        .description("Detection, federated learning and releases of a site, from the aggregator's metrics.")
        .tags(["vedette"])
        .readonly()
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .annotations([])
        .with_variable(dashboard_builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_labels("job", "Job", "label_values(vedette_devices, job)"))
        .with_variable(_labels("instance", "Instance", 'label_values(vedette_devices{job=~"$job"}, instance)'))
    )
    number = 0
    for section in FLEET:
        number += 1
        built = built.with_row(dashboard_builders.Row(section.title).id(number))
        for panel in section.panels:
            number += 1
            built = built.with_panel(_panel(panel, number))
    plain: dict[str, Any] = json.loads(json.dumps(built.build(), cls=JSONEncoder))
    plain["schemaVersion"] = SCHEMA_VERSION
    plain.pop("id", None)
    return plain


def files() -> dict[str, str]:
    """Name of a file in ``grafana/dashboards`` → its content."""
    return {"fleet.json": json.dumps(fleet(), indent=2, ensure_ascii=False) + "\n"}


def main() -> None:
    """Write every dashboard."""
    for name, content in files().items():
        (FOLDER / name).write_text(content)


if __name__ == "__main__":
    main()
