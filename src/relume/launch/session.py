"""`Session`: one program under watch, from its start to the verdict after its end.

Nothing is printed until the program has ended, and then on stderr: stdout is the program's.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from relume.errors import RelumeError
from relume.launch.imports import when_imported
from relume.launch.program import NoModuleError, Program

if TYPE_CHECKING:
    from rich.console import Console

    from relume.diagnose import Finding
    from relume.launch.finder import Finder, Root
    from relume.watch import Watch, Window

# Seconds between two live views, and models of which one report shows the history.
_LIVE_EVERY = 2.0
_MODELS_IN_REPORT = 8
_STYLES = {"error": "red", "warning": "yellow"}


@dataclass(frozen=True)
class Options:
    """As given to `relume run`."""

    every: int | Literal["auto"] = 10
    window: int = 100
    out: Path | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    live: bool = False
    as_json: bool = False


class Session:
    """A program, run under watch.

    Raises:
        RelumeError: there is no such program, or the folder for the results is in use.
    """

    def __init__(self, program: Program, options: Options) -> None:
        program.check()
        self.program = program
        self.options = options
        self.out = self._folder()
        self.watches: dict[str, Watch] = {}
        self._finder: Finder | None = None
        self._names: set[str] = set()
        self._said: set[str] = set()
        self._findings: dict[str, list[Finding]] = {}
        self._shown = 0.0
        self._process = os.getpid()

    def _folder(self) -> Path:
        """Absolute, as the program may change its working folder. Made only when there is something to put in."""
        given = self.options.out
        if given is not None:
            if given.exists() and (not given.is_dir() or any(given.iterdir())):
                raise RelumeError(f"{given} is there already, and not empty: choose another folder with --out")
            return given.absolute()
        first = Path("runs", f"{self.program.name}-{time.strftime('%Y-%m-%d_%H%M%S')}").absolute()
        found, n = first, 1
        while found.exists():
            n += 1
            found = first.with_name(f"{first.name}-{n}")
        return found

    def run(self) -> None:
        """Run the program; its own exit and exceptions end this process. The verdict comes after all else."""
        atexit.register(self._finish)
        when_imported("torch", self._begin)
        try:
            self.program.run()
        except NoModuleError as error:
            atexit.unregister(self._finish)
            _say(f"relume: {error}")
            sys.exit(2)

    def _begin(self) -> None:
        try:
            from relume.launch.finder import Finder

            # Of relume's hooks on all modules, which are off while a compiled model runs.
            warnings.filterwarnings("ignore", "Using `torch.compile.*when there are global hooks")
            settings = {
                "every": self.options.every,
                "window": self.options.window,
                "include": self.options.include,
                "exclude": self.options.exclude,
                "on_window": self._window_ended if self.options.live else None,
            }
            self._finder = Finder(settings, self._found, self._trouble)
        except Exception as error:
            self._trouble("starting", error)

    def _found(self, root: Root) -> None:
        from relume.launch.names import unique

        name = unique(root.name, self._names)
        self.watches[name] = root.watch
        root.watch.about["name"] = name
        root.watch.about["script"] = self.program.target
        if _is_first_rank():
            try:
                root.watch.keep(self.out / name)
            except (RelumeError, OSError) as error:
                self._trouble("keeping a run file", error)

    def _trouble(self, doing: str, error: Exception) -> None:
        """relume may fail, the program goes on; each failure is said once."""
        text = f"relume: failed while {doing} ({type(error).__name__}: {error}); the script goes on"
        if text not in self._said:
            self._said.add(text)
            _say(text)

    def _window_ended(self, watch: Watch, window: Window) -> None:
        from rich.console import Console

        from relume.report.terminal import strips

        console = Console(stderr=True, highlight=False)
        now = time.monotonic()
        if not console.is_terminal or now - self._shown < _LIVE_EVERY or not _is_first_rank():
            return
        self._shown = now
        census = watch.census_of(window, "train" if "train" in window.counts else "eval")
        console.print(f"[bold]{watch.about.get('name')}[/], step {watch.step:,}:")
        console.print(strips(census))

    # The end

    def _finish(self) -> None:
        """Runs when Python exits: after the program's own exit handlers, and when its threads have ended."""
        if os.getpid() != self._process:
            return  # a fork of the program
        try:
            uncaught = getattr(sys, "last_type", None)
            if self._finder is not None:
                self._finder.close()
            for watch in self.watches.values():
                watch._finish("finished" if uncaught is None else f"failed: {uncaught.__name__}")
            if _is_first_rank():
                self._tell()
        except Exception as error:
            self._trouble("ending", error)

    def _tell(self) -> None:
        summary: dict[str, Any] = {"script": self.program.target, "report": None, "models": {}, "why": None}
        for name, watch in self.watches.items():
            self._findings[name] = self._diagnosed(watch)
            summary["models"][name] = _summary(watch, self.out / name, self._findings[name])
        told = [n for n, m in summary["models"].items() if m["census"] is not None]
        if not told:
            summary["why"] = self._why_nothing()
        else:
            try:
                summary["report"] = str(self._report(told))
            except (RelumeError, OSError) as error:
                self._trouble("writing the report", error)
        if self.options.as_json:
            _say(json.dumps(summary, ensure_ascii=False))
        elif told:
            self._print(summary)
        else:
            _say(f"relume: {summary['why']}")

    def _diagnosed(self, watch: Watch) -> list[Finding]:
        try:
            return watch.diagnose()
        except RelumeError:  # nothing was seen of its training, which the verdict says
            return []
        except Exception as error:
            self._trouble("diagnosing", error)
            return []

    def _report(self, names: list[str]) -> Path:
        from relume.report import write_html

        shown = [(name, self.watches[name]) for name in names[:_MODELS_IN_REPORT]]
        return write_html(
            shown[0][1],
            self.out / "report.html",
            title=f"{self.program.name}: units over time",
            label=shown[0][0],
            beside=shown[1:],
            findings=self._findings[names[0]],
        )

    def _print(self, summary: dict[str, Any]) -> None:
        from rich.console import Console
        from rich.text import Text

        console: Console = Console(stderr=True, highlight=False, soft_wrap=True)
        for name, model in summary["models"].items():
            about = f" ({model['class']}, {model['steps']:,} steps of {model['optimizer']}): "
            console.print(Text.assemble("relume: ", (name, "bold"), about, model["verdict"]))
            for finding in model["findings"]:
                if finding["severity"] != "note":
                    console.print(Text(f"  {finding['severity']}: {finding['sentence']}", _STYLES[finding["severity"]]))
            for note in model["notes"]:
                console.print(Text(f"  not counted: {note}", style="yellow"))
        if summary["report"] is None:
            return
        more = len(summary["models"]) - _MODELS_IN_REPORT
        rest = f" (of the first {_MODELS_IN_REPORT} models; `relume report` makes the others')" if more > 0 else ""
        console.print(Text(f"relume: report: {_short(summary['report'])}{rest}"))

    def _why_nothing(self) -> str:
        head = "nothing was watched: "
        if self._finder is None:
            return f"{head}the script did not import torch"
        seen = self._finder.seen
        if seen.without_sites:
            return (
                f"{head}{_listed(seen.without_sites)} trained, but applied no activation that relume knows; make your "
                "own known with relume.register_activation"
            )
        if seen.idle:
            return (
                f"{head}{_listed(seen.idle)} ran in training mode, but no optimizer of torch.optim that holds its "
                "parameters made a step"
            )
        if seen.untrained:
            return f"{head}{_listed(seen.untrained)} ran, but only in evaluation mode or without gradients"
        return f"{head}no torch module was called in this process"


def _summary(watch: Watch, folder: Path, findings: Sequence[Finding]) -> dict[str, Any]:
    from relume.errors import EmptyCensusError
    from relume.report import verdict
    from relume.report.diagnosed import Diagnosed

    told: dict[str, Any] = {
        "class": watch.about["model"],
        "optimizer": watch.about["optimizer"],
        "steps": watch.step,
        "run": str(folder),
        "notes": list(watch.notes),
        "findings": [finding.to_dict() for finding in findings],
    }
    try:
        said = verdict(watch, Diagnosed(tuple(findings)))
        return {**told, "verdict": said, "census": watch.census(phase=watch.main_phase).to_dict()}
    except EmptyCensusError as error:
        return {**told, "verdict": str(error), "census": None}


def _is_first_rank() -> bool:
    """Of several processes that train together (torchrun) only the first one writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    if sys.stderr is not None and not sys.stderr.closed:
        print(text, file=sys.stderr, flush=True)


def _short(path: str) -> str:
    try:
        relative = os.path.relpath(path)
    except (ValueError, OSError):
        return path
    return relative if not relative.startswith("..") else path


def _listed(names: dict[str, None]) -> str:
    some = list(names)[:3]
    return ", ".join(some) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
