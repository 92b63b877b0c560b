"""Load a project file and everything that is reached from its pipeline; reads no data."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

from headrace.core.errors import ConfigurationError, DefinitionError, HeadraceError, did_you_mean
from headrace.core.location import PACKAGE, shown
from headrace.core.settings import Settings, load_settings
from headrace.features.plan import DatasetPlan, plan_dataset
from headrace.pipelines.definition import Pipeline


@dataclass(frozen=True)
class Project:
    """Hold a loaded pipeline, its plan, its settings and the folder that relative paths start from.

    `target` names it wherever it was called from; `asked` is how it is named from the working folder, and `typed` the
    same with the options that say which environment and state folder: what a next command begins with.
    """

    target: str
    name: str
    folder: Path
    pipeline: Pipeline
    settings: Settings
    asked: str
    typed: str

    @cached_property
    def plan(self) -> DatasetPlan:
        """Return the plan of the pipeline's dataset.

        Raises:
            DefinitionError: the dataset has a mistake, or features that no endpoint can compute while the pipeline has one.
        """
        found = plan_dataset(self.pipeline.model.dataset)
        if self.pipeline.endpoint is not None:
            found.refuse_queries("no endpoint can compute it for a request", self.pipeline.location)
        return found


def load_project(
    target: str | None, *, env: str | None = None, folder: Path | None = None, state: str | None = None
) -> Project:
    """Load `module:attribute`, as in "flights:pipeline" (the attribute may be left out: `pipeline`).

    None stands for the one module that `[project] modules` of the folder's `headrace.toml` names.

    The module is a file in `folder` (the working folder by default) or a path to a file. `env` and `state` are what
    the command line says, for the settings and for the commands that messages name.

    Raises:
        ConfigurationError: no such file or attribute, or settings that do not fit.
        DefinitionError: the file has a mistake, with its line.
    """
    if target is None:
        target = _only_module(folder or Path.cwd(), env)
    module_name, _, attribute = target.partition(":")
    path = _find(module_name, folder or Path.cwd())
    module = import_file(path)
    attribute = attribute or "pipeline"
    found = getattr(module, attribute, None)
    if not isinstance(found, Pipeline):
        names = [name for name, value in vars(module).items() if isinstance(value, Pipeline)]
        raise ConfigurationError(
            f"{path.name} has no pipeline named {attribute}",
            where=shown(str(path)),
            got=attribute,
            expected=names or "pipeline = hr.Pipeline(…)",
            next_step=did_you_mean(attribute, names) if names else None,
        )
    settings = load_settings(path.parent, env=env)
    name = path.stem if attribute == "pipeline" else f"{path.stem}.{attribute}"
    asked = f"{path.stem if path.parent == Path.cwd() else shown(str(path))}:{attribute}"
    options = "".join(f" --{option} {given}" for option, given in (("env", env), ("state", state)) if given is not None)
    return Project(f"{path.stem}:{attribute}", name, path.parent, found, settings, asked, asked + options)


def _only_module(folder: Path, env: str | None) -> str:
    modules = load_settings(folder, env=env).project.modules
    if len(modules) != 1:
        raise ConfigurationError(
            "which pipeline?",
            where=str(folder),
            got=modules or "no [project] modules in headrace.toml",
            expected="FILE:NAME, as in flights:pipeline, or one module in headrace.toml",
            next_step=f"headrace run {modules[0]}:pipeline" if modules else "headrace new PROJECT",
        )
    return modules[0]


def _find(module_name: str, folder: Path) -> Path:
    given = Path(module_name)
    path = given if given.suffix == ".py" else folder / f"{module_name}.py"
    path = path if path.is_absolute() else folder / path
    if path.is_file():
        return path.resolve()
    near = [p.stem for p in sorted(folder.glob("*.py"))]
    raise ConfigurationError(
        f"no project file {path.name}",
        where=str(folder),
        got=module_name,
        expected="FILE:NAME, as in flights:pipeline",
        next_step=did_you_mean(given.stem, near) or "headrace new PROJECT",
    )


def import_file(path: Path) -> ModuleType:
    """Import a project file under its own name, so that files beside it can be imported too.

    Raises:
        DefinitionError: the file does not parse, imports itself in a circle, or raises.
    """
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError("not a Python file", got=shown(str(path)))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except HeadraceError:
        raise
    except SyntaxError as error:
        where = f"{shown(error.filename or str(path))}:{error.lineno}"
        raise DefinitionError("the project file does not parse", where=where, got=error.msg) from error
    except ImportError as error:
        # Something that this file imports wanted a name of this file, which is not there yet.
        circular = error.name == path.stem or "circular import" in str(error)
        what = "the project's files import each other in a circle" if circular else "an import of the project failed"
        step = "move what both need into a third file" if circular else f"install it, or check the name: {error.name}"
        raise DefinitionError(what, where=_line(error, path), got=str(error), next_step=step) from error
    except Exception as error:
        raise DefinitionError(
            f"the project file raised {type(error).__name__}", where=_line(error, path), got=str(error)
        ) from error
    return module


def _line(error: BaseException, path: Path) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((PACKAGE, "<"))]
    inside = [f for f in frames if str(path.parent) in f.filename] or frames
    return f"{shown(inside[-1].filename)}:{inside[-1].lineno}" if inside else shown(str(path))
