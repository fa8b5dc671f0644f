"""The addresses of the live page. Every answer is made in a worker thread, beside the loop that takes requests."""

from __future__ import annotations

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
from supermask.serve import explorer
from supermask.serve.http import LocalhostMiddleware, StaticAssets
from supermask.serve.run_page import load_masks, loss_curve_plot, mask_png, pixel_map_png, run_page
from supermask.serve.state import ServerState
from supermask.store.files.store import RUN_ID

if TYPE_CHECKING:
    from starlette.types import ASGIApp

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,199}")
"""What a section or a plot of the report may be called."""

PLOT_SCRIPTS = ("plotly.min.js", "serve.js", "plots.js")
REPORT = (*PLOT_SCRIPTS, "tables.js", "page.js", "live.js")
"""Scripts, in this order: `plots.js`, `tables.js` and `page.js` are the report's own."""

CACHE_HEADERS = {"cache-control": "private, max-age=3600"}
"""Of pictures: a run does not change."""


def make_app(store: Path, import_criteria: bool = False) -> ASGIApp:
    """The live page of a store, behind its guard."""
    pages = Routes(ServerState(store, import_criteria), StaticAssets())

    @asynccontextmanager
    async def reading_first(app: Starlette) -> AsyncIterator[None]:
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
        Route("/run/{run_id}/mask/{layer:int}.png", pages.mask),
        Route("/static/{name}", pages.static),
    ]
    handlers: Any = {
        HTTPException: pages.refused,
        UserError: pages.user_error,
        SystemFailure: pages.damaged,
        Exception: pages.internal_error,
    }
    return LocalhostMiddleware(Starlette(routes=routes, lifespan=reading_first, exception_handlers=handlers))


class Routes:
    """A function an address. What comes with a request is checked before the store is asked."""

    def __init__(self, state: ServerState, files: StaticAssets) -> None:
        self.state = state
        self._files = files

    def report(self, request: Request) -> Response:
        """The report over the studies of the store, and what is going on."""
        return self._page("report.html", here="report", store=str(self.state.shelf.root), scripts=REPORT)

    def status(self, request: Request) -> Response:
        """What has changed."""
        return JSONResponse(self.state.status())

    def section(self, request: Request) -> Response:
        """A part of the report, as HTML."""
        return JSONResponse({"html": _or_404(self.state.report.parts.sections.get(_name(request)))})

    def contents(self, request: Request) -> Response:
        """The report's table of contents, as HTML."""
        return JSONResponse({"html": self.state.report.parts.contents})

    def data(self, request: Request) -> Response:
        """A figure of the report as Plotly reads it, a table, or a study file."""
        return Response(_or_404(self.state.report.data(_name(request))), media_type="application/json")

    def explore(self, request: Request) -> Response:
        """The page of all runs."""
        metrics = [(name, title) for name, (_, _, title) in explorer.METRICS.items()]
        return self._page(
            "explore.html",
            here="explore",
            metrics=metrics,
            columns=explorer.TABLE,
            scripts=(*PLOT_SCRIPTS, "explore.js"),
        )

    def choices(self, request: Request) -> Response:
        """What can be chosen: networks with their data sets, and the treatments of each."""
        self.state.refresh()
        return JSONResponse(self.state.choices())

    def curves(self, request: Request) -> Response:
        """A metric of some treatments against the weights that remain."""
        metric = explorer.METRICS.get(request.query_params.get("metric", "early_stop_test_accuracy"))
        if metric is None:
            raise UserError("there is no such metric.")
        choice = self._choice(request)
        return JSONResponse(explorer.metric_plot(self.state.view(choice), choice.keys, metric))

    def runs(self, request: Request) -> Response:
        """A page of the table of runs."""
        asked = request.query_params
        page, order = asked.get("page", "0"), asked.get("order", "ascending")
        if not re.fullmatch("[0-9]{1,6}", page) or order not in ("ascending", "descending"):
            raise UserError("a page of the table is a number, and its order ascending or descending.")
        runs = self._chosen(request)
        return JSONResponse(explorer.runs_page(runs, asked.get("sort", "treatment"), order == "descending", int(page)))

    def csv(self, request: Request) -> Response:
        """The table of runs, whole, every column."""
        headers = {"content-disposition": 'attachment; filename="runs.csv"'}
        return Response(explorer.runs_csv(self._chosen(request)), media_type="text/csv", headers=headers)

    def run(self, request: Request) -> Response:
        """A run."""
        run_id = self._run_id(request)
        page = run_page(self.state.shelf, run_id, self.state.studies_of(run_id))
        return self._page("run.html", here="run", run=page, scripts=(*PLOT_SCRIPTS, "run.js"))

    def curve(self, request: Request) -> Response:
        """A run's validation curve."""
        return JSONResponse(loss_curve_plot(self.state.shelf.read(self._run_id(request))))

    def pixels(self, request: Request) -> Response:
        """How much of each pixel a run's first layer keeps."""
        run_id = self._run_id(request)
        masks = load_masks(self.state.shelf.read(run_id))
        try:
            png = pixel_map_png(next(iter(masks.values())), self.state.image_shape(run_id))
        except ValueError:
            raise HTTPException(404, "The first layer of this run has no weights of a pixel's own.") from None
        return Response(png, media_type="image/png", headers=CACHE_HEADERS)

    def mask(self, request: Request) -> Response:
        """A layer's mask."""
        masks = list(load_masks(self.state.shelf.read(self._run_id(request))).values())
        layer = int(request.path_params["layer"])
        if layer >= len(masks):
            raise HTTPException(404, f"This run has {len(masks)} layers with a mask.")
        return Response(mask_png(masks[layer]), media_type="image/png", headers=CACHE_HEADERS)

    def static(self, request: Request) -> Response:
        """A script or a style sheet."""
        file = self._files.static.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404, "There is no such file.")
        return Response(file.content, media_type=file.media_type, headers={"cache-control": "max-age=31536000"})

    def refused(self, request: Request, error: Exception) -> Response:
        """A request that nothing is there for."""
        assert isinstance(error, HTTPException)
        return self._failed(request, error.status_code, error.detail)

    def user_error(self, request: Request, error: Exception) -> Response:
        """A request that asks for what cannot be."""
        return self._failed(request, 400, str(error))

    def damaged(self, request: Request, error: Exception) -> Response:
        """Something in the store is not what was committed, or cannot be read."""
        return self._failed(request, 500, str(error))

    def internal_error(self, request: Request, error: Exception) -> Response:
        """A fault of ours, whose traceback goes to the terminal."""
        return self._failed(request, 500, "The server has failed at this; its terminal says where.")

    def _failed(self, request: Request, status: int, why: str) -> Response:
        if request.url.path.endswith((".json", ".png", ".csv")):
            return JSONResponse({"error": why}, status)
        return self._page("error.html", status, here="", why=why, scripts=("serve.js",))

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        return Response(self._files.page(template, **values), status, media_type="text/html")

    def _choice(self, request: Request) -> explorer.Selection:
        asked = request.query_params
        network, dataset = asked.get("network", ""), asked.get("dataset", "")
        return explorer.parse_selection(network, dataset, asked.getlist("treatment"), self.state.subjects())

    def _chosen(self, request: Request) -> list[explorer.Labelled]:
        choice = self._choice(request)
        return explorer.select_runs(self.state.view(choice), choice.keys)

    def _run_id(self, request: Request) -> str:
        run_id = request.path_params["run_id"]
        if RUN_ID.fullmatch(run_id):
            if not self.state.shelf.has(run_id):
                self.state.refresh()
            if self.state.shelf.has(run_id):
                return str(run_id)
            if run_id in self.state.shelf.damaged:
                raise HTTPException(404, self.state.shelf.damaged[run_id])
            if self.state.shelf.load_progress:
                raise HTTPException(503, "The store is still being read: look again in a moment.")
        raise HTTPException(404, "There is no such run in this store.")


def _name(request: Request) -> str:
    name = str(request.path_params["name"])
    if not NAME.fullmatch(name):
        raise HTTPException(404, "The report has no such part.")
    return name


def _or_404(part: str | None) -> str:
    if part is None:
        raise HTTPException(404, "The report has no such part any more.")
    return part
