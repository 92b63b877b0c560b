"""Keep versions and features together: a model is served only vectors of the features that it was trained on."""

from __future__ import annotations

from headrace.core.errors import Refused
from headrace.pipelines.project import Project
from headrace.registry.record import Version


def reads(project: Project, version: Version) -> bool:
    """Tell whether a version was trained on the features that the project's file describes."""
    return version.data.get("features") == project.plan.features


def refuse_other_features(project: Project, version: Version) -> None:
    """Raise unless the version reads the project's features.

    Raises:
        Refused: it was trained on others.
    """
    if not reads(project, version):
        raise Refused(
            f"{version.name} was trained on other features than the project describes now",
            where=project.pipeline.model.dataset.location,
            got=f"features {str(version.data.get('features'))[:12]}",
            expected=f"features {project.plan.features[:12]}",
            next_step=f"headrace run {project.typed} trains on these; or take the change back",
        )
