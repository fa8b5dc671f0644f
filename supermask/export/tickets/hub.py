"""Download and upload of ticket folders with huggingface_hub, the extra `hub`.

The address of the Hub, the token and the cache are those of huggingface_hub (`HF_ENDPOINT`, `HF_TOKEN` or `hf auth
login`, `HF_HOME`); no token is read or stored here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from supermask.core.errors import SystemFailure, UserError, quote, sanitize
from supermask.export.tickets.checks import check_ticket
from supermask.export.tickets.files import load_ticket
from supermask.export.tickets.folders import FOLDER_FILES
from supermask.export.tickets.model_card import card_title
from supermask.export.tickets.sources import TICKET_FILE, Repository, parse_repository


def download_ticket(repository: Repository, endpoint: str | None = None) -> Path:
    """Download the ticket of a repository into the Hub's cache; return its path. It is not read here.

    `endpoint`: address of the Hub (default: `HF_ENDPOINT`, else https://huggingface.co).
    Raises UserError, SystemFailure.
    """
    _check_installed(f"load the repository {quote(repository.id)}")
    from huggingface_hub import hf_hub_download

    with _translated_errors(repository.id):
        return Path(hf_hub_download(repository.id, TICKET_FILE, revision=repository.revision, endpoint=endpoint))


def push_ticket(
    folder: str | Path, repo_id: str, private: bool = False, message: str | None = None, endpoint: str | None = None
) -> str:
    """Upload the folder that `save_ticket_folder` wrote to a repository, created if it is missing; return its address.

    Only `FOLDER_FILES` are sent, in one commit. The ticket is read and checked first.
    Raises UserError for a folder without a valid ticket or a repository that cannot be used, SystemFailure if the
    network fails.
    """
    repository = parse_repository(repo_id)
    if repository.revision is not None:
        raise UserError(f"{quote(repo_id)}: a ticket is pushed to the branch main; leave out the revision.")
    _check_installed("push a ticket")
    folder = Path(folder)
    missing = [name for name in FOLDER_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{sanitize(str(folder))} has no {missing[0]}: give a folder that `supermask pack --to-folder` wrote."
        )
    ticket = load_ticket(folder / TICKET_FILE)
    if broken := [check.name for check in check_ticket(ticket) if check.status == "BROKEN"]:
        raise UserError(f"{sanitize(str(folder))}: a check of the ticket is broken ({broken[0]}), so it is not pushed.")
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=endpoint)
    with _translated_errors(repository.id):
        hub.create_repo(repository.id, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository.id,
            folder_path=folder,
            allow_patterns=list(FOLDER_FILES),
            commit_message=message or f"Add the ticket: {card_title(ticket)}",
        )
    return f"{hub.endpoint}/{repository.id}"


def _check_installed(purpose: str) -> None:
    if find_spec("huggingface_hub") is None:
        raise UserError(
            f"huggingface_hub, which is needed to {purpose}, is not installed: pip install 'supermask[hub]'. "
            "A ticket file or folder needs no extra."
        )


@contextmanager
def _translated_errors(repo_id: str) -> Iterator[None]:
    """Raise UserError for what the user can change, SystemFailure for the network and the disk."""
    from huggingface_hub import errors

    name = quote(repo_id)
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"{name} asks for permission: accept its terms on the Hub and log in (`hf auth login`).") from (
            error
        )
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no file, folder or repository {name}, or it is private: check the name, and log in "
            "(`hf auth login`) if it is private."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"the repository {name} has no such revision: give a branch, a tag or a commit.") from error
    except errors.RemoteEntryNotFoundError as error:
        raise UserError(f"the repository {name} has no {TICKET_FILE}, so it is not a ticket of supermask.") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"the Hub refused access to {name} (status {status}): log in with a token that may write there "
                "(`hf auth login`, or HF_TOKEN)."
            ) from error
        raise SystemFailure(f"the Hub answered with status {status} for {name}: try again later.") from error
    except (errors.HFValidationError, ValueError) as error:
        raise UserError(f"the Hub cannot use this for {name}: {_one_line(error)}") from error
    except Exception as error:
        # The HTTP client of huggingface_hub is an implementation detail; its errors have no common public base class.
        # RuntimeError: a file of a commit that could not be uploaded.
        is_http = type(error).__module__.startswith(("httpx", "httpcore", "requests"))
        if not is_http and not isinstance(error, OSError | RuntimeError):
            raise
        raise SystemFailure(
            f"the Hub cannot be reached for {name} ({_one_line(error)}): check the connection and HF_ENDPOINT."
        ) from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:196] + " ..."
