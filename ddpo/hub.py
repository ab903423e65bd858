"""An export's folder on the Hugging Face Hub. The token is asked for at that moment, and kept nowhere. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(r"([\w-][\w.-]{0,95}/)?[\w-][\w.-]{0,95}")
TOKENS = "https://huggingface.co/settings/tokens"


class HubError(RuntimeError):
    """The Hub does not take it; the message says why and what to do, and never holds the token."""


def check(repo: str, token: str) -> None:
    """
    Raises:
        HubError: the name can be no repository's, or there is no token.
    """
    if not NAME.fullmatch(repo) or ".." in repo or "--" in repo:
        raise HubError(f"{repo!r} can be no repository. Write your name on the Hub, a slash and a name, such as anna/warm-animals.")
    if not re.fullmatch(r"[!-~]+", token):
        raise HubError(f"The Hub needs a token with write access: {TOKENS}")


def push(folder: Path, repo: str, token: str, data: bool, private: bool = True, endpoint: str | None = None) -> str:
    """Put the files of a folder into a repository, which is made where there is none; returns its address.

    Args:
        repo: ``owner/name``, or a name alone for the token's owner.
        data: whether it is a dataset, or a model.
        private: whether a new repository is seen by its owner only; one that is there stays as it is.
        endpoint: another Hub than ``HF_ENDPOINT``'s.

    Raises:
        HubError: it was refused, or the Hub cannot be reached. What was made on this machine is there still.
    """
    check(repo, token)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, kind = HfApi(endpoint=endpoint, token=token), "dataset" if data else "model"
    try:
        made = api.create_repo(repo, private=private, repo_type=kind, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, repo_type=kind, commit_message="From DDPO Studio")
        return str(made)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise HubError(_refusal(status, repo, str(error).replace(token, "…"))) from None
    except Exception as error:
        told = f"{type(error).__name__}: {error}".replace(token, "…")
        raise HubError(f"The Hub cannot be reached, or the files could not be sent ({told}). Try again later.") from None


def _refusal(status: int, repo: str, said: str) -> str:
    if status == 401:
        return f"The Hub does not accept this token. Make one with write access: {TOKENS}"
    if status in (403, 404):
        return f"This token may not write to {repo}. Is the owner right, and has the token write access? {TOKENS}"
    return f"The Hub refused it: {' '.join(said.split())[:300]}"
