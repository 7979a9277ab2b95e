"""An export on the hub: its files and its card, in one commit."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from coadapt._errors import InputError
from coadapt._files import MANIFEST
from coadapt.exporting.layout import CARD, ROUTES

# Of the HTTP client that this huggingface_hub is built on, which has changed twice.
_ClientError: type[Exception] = HfHubHTTPError.__bases__[0]  # pyright: ignore[reportAssignmentType]


def push_export(folder: str | Path, repo: str, *, public: bool = False) -> str:
    """Upload an export, its card included, and return the address of what was made.

    The account is that of ``hf auth login`` or ``HF_TOKEN``, the hub that of ``HF_ENDPOINT``.

    Args:
        folder: of an export.
        repo: ``OWNER/NAME``; made if it is not there, else its files of these names are replaced.
        public: whether everybody may see a repository that is made; one that is there stays as it
            is.

    Raises:
        InputError: if the folder is no export, or the hub cannot be reached or refuses; the folder
            stays as it is.
    """
    folder = Path(folder)
    if not all((folder / name).is_file() for name in (CARD, ROUTES, MANIFEST)):
        raise InputError(f"{folder} is no export of coadapt; name one (coadapt export)")
    check_repo(repo)
    api = HfApi()
    try:
        made = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Export of coadapt"
        )
    except LocalTokenNotFoundError as error:
        raise _unpushed(
            folder, repo, "there is no token; `hf auth login` or set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            why = "the hub knows no such token; `hf auth login` or set HF_TOKEN"
        elif status == 403:
            why = f"the token may not write to {repo}; use one with write access"
        else:
            why = f"the hub answered {status}: {_one_line(error)}"
        raise _unpushed(folder, repo, why) from error
    except (_ClientError, OSError) as error:
        why = f"{api.endpoint} cannot be reached: {_one_line(error)}"
        raise _unpushed(folder, repo, why) from error
    return str(made)


def check_repo(repo: str) -> None:
    """Refuse a name that the hub would refuse, before anything is exported."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"'{repo}' is no name for the hub, OWNER/NAME: {error}") from error
    if "/" not in repo:
        raise InputError(f"'{repo}' has no owner; give OWNER/NAME")


def _unpushed(folder: Path, repo: str, why: str) -> InputError:
    return InputError(
        f"not pushed to {repo}: {why}. The export is in {folder}; push it later by "
        f"`hf upload {repo} {folder}`"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
