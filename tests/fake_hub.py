"""The Hugging Face Hub in memory, in place of the three calls that reach it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest

TOKEN = "hf_token"


class FakeHub:
    """Repositories: ``repos["owner/name"]["file"]`` is a file's content.

    :param folder: for what is downloaded
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.calls: list[str] = []

    def create_repo(self, api: Any, repo_id: str, private: bool, exist_ok: bool) -> None:
        self.calls.append("create_repo")
        if api.token not in (None, TOKEN):
            raise PermissionError("401: invalid username or password")
        assert exist_ok or repo_id not in self.repos
        self.repos.setdefault(repo_id, {})
        self.private.setdefault(repo_id, private)

    def upload_folder(self, api: Any, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        self.calls.append("upload_folder")
        files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        self.repos[repo_id].update(files)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/{commit_message}")

    def hf_hub_download(self, repo_id: str, filename: str, revision: Any, token: Any) -> str:
        self.calls.append("hf_hub_download")
        path = self.folder / filename
        path.write_bytes(self.repos[repo_id][filename])
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that huggingface_hub's functions use; their arguments have to fit the real ones."""
    package = pytest.importorskip("huggingface_hub")
    fake = FakeHub(tmp_path)
    for owner, name in (
        (package.HfApi, "create_repo"),
        (package.HfApi, "upload_folder"),
        (package, "hf_hub_download"),
    ):
        replaced = create_autospec(getattr(owner, name), side_effect=getattr(fake, name))
        monkeypatch.setattr(owner, name, replaced)
    return fake
