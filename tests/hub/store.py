"""What the local Hub holds: files, commits, branches, and the check of a model card's metadata."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

LARGE = (".safetensors", ".bin", ".pt", ".png", ".pkl")
# Some of the identifiers that the Hub's metadata check accepts.
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "other")
PIPELINES = ("image-classification", "image-segmentation", "image-feature-extraction")


@dataclass(frozen=True)
class File:
    """Content of a file; a large one is known by its SHA-256, a small one by its git id."""

    data: bytes
    large: bool

    @property
    def git_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_id

    def described(self, name: str, size: str) -> dict[str, Any]:
        large = {"lfs": {name: self.sha256, "size": len(self.data), "pointerSize": 130}} if self.large else {}
        return {"size": len(self.data), size: self.git_id, **large}


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        told = f"{message}{len(self.commits)}{[(name, file.git_id) for name, file in sorted(files.items())]}"
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


def metadata(card: str) -> dict[str, Any]:
    """The YAML at the head of a model card."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    return yaml.safe_load(match[1]) if match else {}


def metadata_problems(card: str) -> list[str]:
    """What the Hub's check of a model card's metadata says."""
    data, problems = metadata(card), []
    if data.get("license") not in (None, *LICENCES):
        problems.append(f'"license" must be one of {LICENCES}')
    if data.get("pipeline_tag") not in (None, *PIPELINES):
        problems.append(f'"pipeline_tag" must be one of {PIPELINES}')
    bases = data.get("base_model") or []
    for base in [bases] if isinstance(bases, str) else bases:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
            problems.append(f'"base_model" with value "{base}" is not valid. Use a model id from the Hub')
    for model in data.get("model-index", []):
        for result in model.get("results", []):
            if not {"task", "dataset", "metrics"} <= result.keys():
                problems.append('"model-index" results need task, dataset and metrics')
            elif not all({"type", "value"} <= metric.keys() for metric in result["metrics"]):
                problems.append('"model-index" metrics need type and value')
    return problems
