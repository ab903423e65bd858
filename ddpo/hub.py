"""An export's folder on the Hugging Face Hub. The token is asked for at that moment, and kept nowhere. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOKENS = "https://huggingface.co/settings/tokens"
LONGEST = 4096
"""Characters of a token."""


class HubError(RuntimeError):
    """The Hub does not take it; the message says why and what to do, and never holds the token."""


def is_model(folder: Path) -> bool:
    """Whether an export's folder is a model, or else a dataset."""
    return (folder / "model_index.json").is_file() or any(folder.glob("*.safetensors"))


def prepare(repo: str, token: str, model: bool, private: bool = True, endpoint: str | None = None) -> str:
    """Make a repository where there is none, before anything that takes long; returns its whole name.

    Args:
        repo: ``owner/name``, or a name alone for the token's owner.
        private: whether it is seen by its owner only.
        endpoint: another Hub than ``HF_ENDPOINT``'s.

    Raises:
        HubError: the name can be no repository's, the token may not, everybody sees a repository that is there already and is to be private, or the
            Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    if not token or len(token) > LONGEST or not token.isascii() or not token.isprintable() or " " in token:
        raise HubError(f"The Hub needs a token with write access: {TOKENS}")
    api, kind = HfApi(endpoint=endpoint, token=token), "model" if model else "dataset"
    with _plain(repo, token):
        made = api.create_repo(repo, private=private, repo_type=kind, exist_ok=True).repo_id
        if private and not api.repo_info(made, repo_type=kind).private:
            raise HubError(f"{made} is there already, and everybody may see it. Say that everybody may, or choose another name.")
        return str(made)


def send(folder: Path, repo: str, token: str, model: bool, endpoint: str | None = None) -> str:
    """Put the files of a folder into a repository that is there; returns its address. Files of the same names are replaced: the Hub keeps what they
    were.

    Raises:
        HubError: it was refused, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token)
    with _plain(repo, token):
        api.upload_folder(repo_id=repo, folder_path=folder, repo_type="model" if model else "dataset", commit_message="From DDPO Studio")
    return f"{api.endpoint}/{'' if model else 'datasets/'}{repo}"


@contextmanager
def _plain(repo: str, token: str) -> Iterator[None]:
    """What the Hub's client raises, in plain words and without the token."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except HubError:
        raise
    except HFValidationError:
        raise HubError(f"{repo!r} can be no repository. Write your name on the Hub, a slash and a name, such as anna/warm-animals.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise HubError(_refusal(status, repo, str(error).replace(token, "…"))) from None
    except OfflineModeIsEnabled:
        raise HubError("HF_HUB_OFFLINE is set, so nothing can be sent to the Hub. Unset it and start again.") from None
    except Exception as error:
        told = f"{type(error).__name__}: {error}".replace(token, "…")
        raise HubError(f"The Hub cannot be reached, or the files could not be sent ({told}). Try again later.") from None


def _refusal(status: int, repo: str, said: str) -> str:
    if status == 401:
        return f"The Hub does not accept this token. Make one with write access: {TOKENS}"
    if status in (403, 404):
        return f"This token may not write to {repo}. Is the owner right, and has the token write access? {TOKENS}"
    return f"The Hub refused it: {' '.join(said.split())[:300]}"
