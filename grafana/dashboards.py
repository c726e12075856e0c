"""The dashboards as code: ``python grafana/dashboards.py`` writes ``grafana/dashboards/*.json``.

Classic schema (42), which both file provisioning and hand import take. Every query goes through ``${datasource}`` and
the chosen scrape jobs and instances, so that one dashboard serves several sites.

Source: Grafana's dashboard JSON model; the rules are those of grafana/dashboard-linter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as dashboard_builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

sys.path.insert(0, str(Path(__file__).parent))  # a script, and in no package

from model_panels import MODELS
from panels import FLEET, Kind, Panel, Query

FOLDER: Final = Path(__file__).parent / "dashboards"
SCHEMA_VERSION: Final = 42
COLUMNS: Final = 24
HEIGHT_ROWS: Final = 8


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
    for section in (*FLEET, MODELS):
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
