"""Command line: `tssr MODE --flags`, or `python -m tssr_jax.main --mode=MODE --flags`.

    tssr train --config=ml100k --workdir=runs/ml100k
    tssr evaluate --workdir=runs/ml100k
    tssr recommend --workdir=runs/ml100k --input=FILE.jsonl --output=FILE.jsonl
    tssr MODE --help
    tssr --version

Without a mode a model is trained. Each mode has its own flags, defined in its command module.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from logging import ERROR, LogRecord
from pathlib import Path
from typing import Any

from absl import flags, logging

from tssr_jax import cli
from tssr_jax.errors import did_you_mean, shown
from tssr_jax.runtime import use_huge_pages

# Mode -> the module with its flags and its `main`, and what it does.
MODES = {
    "train": ("tssr_jax.training.command", "train a model, or resume a run; test its best step"),
    "refit": ("tssr_jax.training.refit_command", "retrain with validation targets, or all targets"),
    "evaluate": ("tssr_jax.evaluation.command", "test a run's best checkpoint again"),
    "recommend": ("tssr_jax.recommending.command", "lists of items for a file of histories"),
    "serve": ("tssr_jax.serving.command", "answer over HTTP, with a page to look at"),
    "export": ("tssr_jax.recommending.export_command", "write the model for other programs"),
    "prepare": ("tssr_jax.tools.prepare_command", "prepare a data set without training"),
    "study": ("tssr_jax.studies.command", "compare several trainings, with statistics"),
    "search": ("tssr_jax.studies.search_command", "search settings by validation NDCG@10"),
    "size": ("tssr_jax.tools.command", "memory and traffic of a training step"),
}

_HELP = {"--help", "-h", "-help"}
# What absl adds to the help of a flag that may be repeated.
_OF_ABSL = "; repeat this option to specify a list of values"
# Modes whose command continues where it was stopped.
RESUMABLE = ("train", "refit", "prepare", "study", "search")


def main(argv: Sequence[str] | None = None, mode: str | None = None) -> None:
    """Hands over to a mode's `main`.

    Args:
      argv: name of the program, maybe the mode, and flags; by default those of the process.
      mode: by default the first word, else what --mode says, else "train".
    """
    argv = list(sys.argv if argv is None else argv)
    if argv[1:] == ["--version"]:
        print(f"tssr_jax {importlib.import_module('tssr_jax').__version__}")
        return
    if mode is None:
        mode, argv = _take_mode(argv)
    if mode is None:
        _print_modes()
        return
    module, purpose = MODES[mode]
    command = importlib.import_module(module)
    if _HELP & set(argv):
        _print_help(mode, purpose, command.__doc__ or "", module)
        return
    _require_own_flags(argv, mode, module)
    cli.run(lambda: _run(command.main), argv, resumable=mode in RESUMABLE)


def console() -> None:
    """Entry point of the command `tssr`."""
    use_huge_pages()
    main()


def _run(command: object) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax logs every file that it writes,
        logging.get_absl_handler().addFilter(_is_news)  # and each error that it raises again
        sys.unraisablehook = functools.partial(_report_unraisable, sys.unraisablehook)
    if sys.stdout.isatty():  # what comes next imports TensorFlow and JAX, for some seconds
        print("Starting ...", flush=True)
    assert callable(command)
    command()


def _report_unraisable(report: Callable[[Any], object], ignored: Any) -> None:
    """Reports it; but writes of a save that has failed, which is told, end without a word."""
    if str(ignored.exc_value) != "Event loop is closed":
        report(ignored)


def _is_news(record: LogRecord) -> bool:
    return record.levelno < ERROR or "orbax" not in Path(record.pathname).parts


def _take_mode(argv: list[str]) -> tuple[str | None, list[str]]:
    """The mode, None where only help is asked for, and the arguments without it."""
    if len(argv) > 1 and argv[1] in MODES:
        return argv[1], [argv[0], *argv[2:]]
    if len(argv) > 1 and not argv[1].startswith("-"):
        if argv[1] == "help":
            return None, argv
        cli.stop(
            f"There is no mode {shown(argv[1])}{did_you_mean(argv[1], MODES)} (See tssr --help.)"
        )
    for i, flag in enumerate(argv):
        name, equals, value = flag.lstrip("-").partition("=")
        if name == "mode" and flag.startswith("-"):
            value, end = (value, i + 1) if equals else ("".join(argv[i + 1 : i + 2]), i + 2)
            if value not in MODES:
                cli.stop(f"--mode is {value!r}; known: {', '.join(MODES)}.")
            return value, argv[:i] + argv[end:]
    return (None if _HELP & set(argv) else "train"), argv


def _require_own_flags(argv: Sequence[str], mode: str, module: str) -> None:
    """Ends the program if a flag of another mode is given, which would have no effect."""
    known = set(flags.FLAGS)
    for flag in argv[1:]:
        name = flag.lstrip("-").partition("=")[0].partition(".")[0]
        if flag.startswith("-") and name not in known and name.removeprefix("no") not in known:
            hint = f"`tssr {mode} --help` lists its flags."
            if name == "config":
                hint = "It reads the configuration that the run in --workdir was trained with."
            near = did_you_mean(name, _own_flags(module))
            cli.stop(f"--{name} is no flag of {mode}{near} {hint}")


def _print_modes() -> None:
    print(__doc__)
    for mode, (_, purpose) in MODES.items():
        print(f"  {mode:<10} {purpose}")


def _print_help(mode: str, purpose: str, text: str, module: str) -> None:
    print(f"tssr {mode}: {purpose}\n\n{text.strip()}\n")
    for _, flag in sorted(_own_flags(module).items()):
        value = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
        default = "" if value in (None, "", False) else f" [{value}]"
        text = " ".join(flag.help.split()).replace(_OF_ABSL, "; may be repeated")
        print(f"  --{flag.name}{default}\n      {text}")


def _own_flags(module: str) -> dict[str, flags.Flag]:
    """The flags of a mode by their names, without those of libraries."""
    own = flags.FLAGS.get_key_flags_for_module(module)
    own += flags.FLAGS.flags_by_module_dict().get(cli.__name__, [])
    own += [flags.FLAGS["config"]] if "config" in flags.FLAGS else []
    return {flag.name: flag for flag in own}


if __name__ == "__main__":
    console()
