"""Routes of the dashboard.

The route functions are synchronous, so Starlette runs them in worker threads and the event loop stays responsive.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from supermask.core.errors import SystemFailure, UserError
from supermask.core.text import pluralize
from supermask.core.text_output import ESCAPE
from supermask.serve import explorer
from supermask.serve.http import LocalhostMiddleware, StaticAssets
from supermask.serve.run_page import load_masks, loss_curve_plot, mask_png, pixel_map_png, run_page
from supermask.serve.state import ServerState
from supermask.store.files.store import RUN_ID

if TYPE_CHECKING:
    from starlette.types import ASGIApp

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,199}")
"""Name of a section or plot of the report."""

LAYER = re.compile(r"[0-9]{1,6}")
"""Number of a layer, from 0."""

PLOT_SCRIPTS = ("plotly.min.js", "serve.js", "plots.js")
REPORT_SCRIPTS = (*PLOT_SCRIPTS, "tables.js", "page.js", "live.js")
"""Scripts of the report page in loading order; `plots.js`, `tables.js` and `page.js` are those of the static report."""

CACHE_HEADERS = {"cache-control": "private, max-age=3600"}
"""For images: a committed run never changes."""


def make_app(store: Path, import_criteria: bool = False) -> ASGIApp:
    """Build the dashboard of a store, wrapped in the localhost middleware."""
    pages = Routes(ServerState(store, import_criteria), StaticAssets())

    @asynccontextmanager
    async def start_reading(app: Starlette) -> AsyncIterator[None]:
        # Large stores take seconds to read; the first page must not wait for it.
        threading.Thread(target=pages.state.refresh, daemon=True).start()
        yield

    routes = [
        Route("/", pages.report),
        Route("/live.json", pages.status),
        Route("/report/contents.json", pages.contents),
        Route("/report/section/{name}.json", pages.section),
        Route("/report/data/{name}.json", pages.data),
        Route("/explore", pages.explore),
        Route("/explore/choices.json", pages.choices),
        Route("/explore/curves.json", pages.curves),
        Route("/explore/runs.json", pages.runs),
        Route("/explore/runs.csv", pages.csv),
        Route("/run/{run_id}", pages.run),
        Route("/run/{run_id}/curve.json", pages.curve),
        Route("/run/{run_id}/pixels.png", pages.pixels),
        Route("/run/{run_id}/mask/{layer}.png", pages.mask),
        Route("/static/{name}", pages.static),
    ]
    handlers: Any = {
        HTTPException: pages.http_error,
        UserError: pages.user_error,
        SystemFailure: pages.damaged_entry,
        Exception: pages.internal_error,
    }
    return LocalhostMiddleware(Starlette(routes=routes, lifespan=start_reading, exception_handlers=handlers))


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII: paths may have bytes that are not UTF-8, which JSON can escape and UTF-8 cannot hold."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class Routes:
    """One function per route. Every part of a request is validated before the store is read."""

    def __init__(self, state: ServerState, files: StaticAssets) -> None:
        self.state = state
        self._files = files

    def report(self, request: Request) -> Response:
        """Page with running commands and the report on the studies of the store."""
        return self._page("report.html", here="report", store=str(self.state.store.root), scripts=REPORT_SCRIPTS)

    def status(self, request: Request) -> Response:
        """Status of studies and commands, with a revision for every part of the report."""
        return AsciiJSONResponse(self.state.status())

    def section(self, request: Request) -> Response:
        """One section of the report, as HTML."""
        return AsciiJSONResponse({"html": _or_404(self.state.report.parts.sections.get(_part_name(request)))})

    def contents(self, request: Request) -> Response:
        """Table of contents of the report, as HTML."""
        return AsciiJSONResponse({"html": self.state.report.parts.contents})

    def data(self, request: Request) -> Response:
        """One figure of the report as Plotly JSON, one table, or one study file."""
        return Response(_or_404(self.state.report.data(_part_name(request))), media_type="application/json")

    def explore(self, request: Request) -> Response:
        """Page with all runs as curves and as a table."""
        metrics = [(name, title) for name, (_, _, title) in explorer.METRICS.items()]
        return self._page(
            "explore.html",
            here="explore",
            metrics=metrics,
            columns=explorer.TABLE,
            scripts=(*PLOT_SCRIPTS, "explore.js"),
        )

    def choices(self, request: Request) -> Response:
        """Networks with their datasets, and the treatments of each."""
        self.state.refresh()
        return AsciiJSONResponse(self.state.choices())

    def curves(self, request: Request) -> Response:
        """Plotly figure of one metric against weights remaining, for the selected treatments."""
        metric = explorer.METRICS.get(request.query_params.get("metric", "early_stop_test_accuracy"))
        if metric is None:
            raise UserError("unknown metric.")
        selection = self._selection(request)
        return AsciiJSONResponse(explorer.metric_plot(self.state.run_set(selection), selection.keys, metric))

    def runs(self, request: Request) -> Response:
        """One page of the table of runs."""
        query = request.query_params
        page, order = query.get("page", "0"), query.get("order", "ascending")
        if not re.fullmatch("[0-9]{1,6}", page) or order not in ("ascending", "descending"):
            raise UserError("page must be a number, and order ascending or descending.")
        runs = self._selected_runs(request)
        return AsciiJSONResponse(
            explorer.runs_page(runs, query.get("sort", "treatment"), order == "descending", int(page))
        )

    def csv(self, request: Request) -> Response:
        """All selected runs as CSV, with every column."""
        headers = {"content-disposition": 'attachment; filename="runs.csv"'}
        return Response(explorer.runs_csv(self._selected_runs(request)), media_type="text/csv", headers=headers)

    def run(self, request: Request) -> Response:
        """Page of one run."""
        run_id = self._run_id(request)
        page = run_page(self.state.store, run_id, self.state.find_studies(run_id))
        return self._page("run.html", here="run", run=page, scripts=(*PLOT_SCRIPTS, "run.js"))

    def curve(self, request: Request) -> Response:
        """Validation curve of a run, as a Plotly figure."""
        return AsciiJSONResponse(loss_curve_plot(self.state.store.read(self._run_id(request))))

    def pixels(self, request: Request) -> Response:
        """Kept share of each input pixel in the first layer, as PNG."""
        run_id = self._run_id(request)
        masks = load_masks(self.state.store.read(run_id))
        try:
            png = pixel_map_png(next(iter(masks.values())), self.state.image_shape(run_id))
        except ValueError:
            raise HTTPException(404, "The first layer of this run has no weights per pixel.") from None
        return Response(png, media_type="image/png", headers=CACHE_HEADERS)

    def mask(self, request: Request) -> Response:
        """Mask of one layer, as PNG."""
        masks = list(load_masks(self.state.store.read(self._run_id(request))).values())
        layer = str(request.path_params["layer"])
        # At most six digits: Python refuses to convert thousands of them.
        if not LAYER.fullmatch(layer) or int(layer) >= len(masks):
            raise HTTPException(404, f"This run has {pluralize(len(masks), 'layer')} with a mask.")
        return Response(mask_png(masks[int(layer)]), media_type="image/png", headers=CACHE_HEADERS)

    def static(self, request: Request) -> Response:
        """One script or style sheet. Its address changes with its content, so browsers may keep it for a year."""
        file = self._files.static.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404, "There is no such file.")
        return Response(file.content, media_type=file.media_type, headers={"cache-control": "max-age=31536000"})

    def http_error(self, request: Request, error: Exception) -> Response:
        """Answer an HTTP error, such as 404."""
        assert isinstance(error, HTTPException)
        return self._failed(request, error.status_code, error.detail)

    def user_error(self, request: Request, error: Exception) -> Response:
        """Answer 400: the query is not valid."""
        return self._failed(request, 400, str(error))

    def damaged_entry(self, request: Request, error: Exception) -> Response:
        """Answer 500: an entry of the store is damaged or cannot be read."""
        return self._failed(request, 500, str(error))

    def internal_error(self, request: Request, error: Exception) -> Response:
        """Answer 500: a bug; the traceback goes to the terminal."""
        return self._failed(request, 500, "The server failed; the traceback is in its terminal.")

    def _failed(self, request: Request, status: int, reason: str) -> Response:
        if request.url.path.endswith((".json", ".png", ".csv")):
            return AsciiJSONResponse({"error": reason}, status)
        return self._page("error.html", status, here="", reason=reason, scripts=("serve.js",))

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        # A path may have bytes that are not UTF-8.
        text = self._files.page(template, **values).encode("utf-8", ESCAPE)
        return Response(text, status, media_type="text/html")

    def _selection(self, request: Request) -> explorer.Selection:
        query = request.query_params
        network, dataset = query.get("network", ""), query.get("dataset", "")
        return explorer.parse_selection(network, dataset, query.getlist("treatment"), self.state.subjects())

    def _selected_runs(self, request: Request) -> list[explorer.LabeledRow]:
        selection = self._selection(request)
        return explorer.select_runs(self.state.run_set(selection), selection.keys)

    def _run_id(self, request: Request) -> str:
        run_id = request.path_params["run_id"]
        # An id of any other form must not reach the file system.
        if RUN_ID.fullmatch(run_id):
            if not self.state.store.has(run_id):
                self.state.refresh()
            if self.state.store.has(run_id):
                return str(run_id)
            if run_id in self.state.store.damaged:
                raise HTTPException(404, self.state.store.damaged[run_id])
            if self.state.store.load_progress:
                raise HTTPException(503, "The store is still being read: reload in a moment.")
        raise HTTPException(404, "There is no such run in this store.")


def _part_name(request: Request) -> str:
    name = str(request.path_params["name"])
    if not NAME.fullmatch(name):
        raise HTTPException(404, "The report has no such part.")
    return name


def _or_404(part: str | None) -> str:
    if part is None:
        raise HTTPException(404, "The report no longer has this part.")
    return part
