"""A study that is run in a real Jupyter kernel: one line of progress that is updated in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

CELL = """
import supermask as sm
study = sm.Study("tiny", network="fc-8", dataset="digits", seeds=1, train={"epochs": 0.6, "evaluate_every": 4},
                 prune={"levels": 1}, treatments=[{"criterion": ["large_final", "random"]}])
sm.run(study, workers=1)
"""


def execute(client: Any, code: str) -> list[dict[str, Any]]:
    """Run a cell; return its messages up to the end."""
    request, messages = client.execute(code), []
    while True:
        message = client.get_iopub_msg(timeout=120)
        if message["parent_header"].get("msg_id") == request:
            messages.append(message)
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return messages


def test_progress_in_a_kernel(tmp_path: Path) -> None:
    manager = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    kernel, client = manager.start_new_kernel(kernel_name="python3", cwd=str(tmp_path), startup_timeout=120)
    try:
        messages = execute(client, CELL)
        again = execute(client, CELL)
        code = "sm.Study('a', tre"
        completed = client.complete(code, len(code), reply=True, timeout=120)["content"]["matches"]
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert "treatments=" in completed
    kinds = [message["msg_type"] for message in messages]
    assert "error" not in kinds, messages
    assert kinds.count("display_data") == 1
    updates = [m["content"]["data"]["text/plain"] for m in messages if m["msg_type"] == "update_display_data"]
    assert updates
    assert all("\n" not in text and "\r" not in text for text in updates)
    assert updates[-1].startswith("tiny")
    result = next(m["content"]["data"]["text/plain"] for m in messages if m["msg_type"] == "execute_result")
    assert result.startswith("tiny: 3 runs: 3 finished")
    # Nothing is written under the cell: no bar, no escape codes.
    assert not [m for m in messages if m["msg_type"] == "stream"]
    # Nothing is left to do: no progress is shown.
    assert not [m for m in again if m["msg_type"] in ("display_data", "update_display_data")]
