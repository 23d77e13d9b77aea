"""The doors: what a person types becomes a function call. Nothing heavy is imported before the input is checked."""

import argparse
import inspect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from lmjax import __version__, cli_models, presets
from lmjax.checks import check
from lmjax.config import Config, DataConfig, UserError
from lmjax.doors import finish, parse, with_jax
from lmjax.typed import apply_overrides, to_json

EXAMPLES = """\
examples:
  {train}                                         the quickstart: no file, no download, no accelerator
  {train} shakespeare_char_cpu data.files=[shakespeare.txt]
  {train} quickstart model.layers=6 schedule.peak=1e-3 --run-dir runs/deeper
  {train} --resume runs/quickstart                go on where a run was stopped, bit for bit
  {train} --resume runs/quickstart train.updates=2000 --allow-change train.updates
  {train} quickstart --print-config               every key with its value
"""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `lmjax` command."""
    parser = argparse.ArgumentParser(
        prog="lmjax",
        description="Pretrain language models in JAX. A run is a pure function of (config, seed, journal).",
        epilog="`lmjax COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, add, summary in (
        ("train", _train_arguments, "train a model, or resume a run"),
        ("plan", _plan_arguments, "what a run will do and need; nothing is trained"),
        (
            "generate",
            cli_models.generate_arguments,
            "let a trained model continue, translate, fill in or classify a text",
        ),
        ("evaluate", cli_models.evaluate_arguments, "measure zero-, one- and few-shot prompting"),
        ("compare", cli_models.compare_arguments, "two results of evaluate, with paired tests"),
        ("export", cli_models.export_arguments, "write a run as a folder for transformers"),
        ("plot", _plot_arguments, "draw the curves of one or several runs"),
        ("audit", _audit_arguments, "check a run and say what happened to it"),
        ("rehearse", _rehearse_arguments, "prove on a small copy of a configuration that its run survives faults"),
        ("ladder", _ladder_arguments, "the history of language models, side by side at equal compute"),
        ("tokenizer", _tokenizer_arguments, "train a tokenizer"),
    ):
        add(
            commands.add_parser(
                name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
            )
        )
    finish(parse(parser, arguments))


def train_main(arguments: Sequence[str] | None = None) -> NoReturn:
    """What train.py runs."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a language model, or resume a run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _train_arguments(parser, program="python train.py")
    finish(parse(parser, arguments))


# ---- Training -------------------------------------------------------------------------------------------------------


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key.path=value",
        help="a configuration (a name below, a .py file or a config.json; default: quickstart) and changes to it",
    )


def _train_arguments(parser: argparse.ArgumentParser, program: str = "lmjax train") -> None:
    _config_arguments(parser)
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where to write the run (default: runs/NAME)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in DIR")
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="with --resume: let this key differ from the run's configuration (journaled)",
    )
    parser.add_argument("--print-config", action="store_true", help="print the configuration as JSON and stop")
    parser.epilog = f"{_preset_table()}\n{_key_table()}\n{EXAMPLES.format(train=program)}"
    parser.set_defaults(function=_train)


def _preset_table() -> str:
    width = max(map(len, presets.names()))
    lines = (f"  {name:<{width}}  {summary}" for name, (_, summary) in presets.names().items())
    return "configurations:\n" + "\n".join(lines) + "\n"


def _key_table() -> str:
    """The groups of keys, with what each is about."""
    groups = [
        (name if i == 0 else "", member)
        for name, hint in get_type_hints(Config).items()
        for i, member in enumerate(get_args(hint) or (hint,))
        if is_dataclass(member)
    ]
    lines = (
        f"  {name + '.*' if name else '  or':<13} {(inspect.getdoc(hint) or '').splitlines()[0]}"
        for name, hint in groups
    )
    return "keys (--print-config shows them all, lmjax/config.py explains them):\n" + "\n".join(lines) + "\n"


def _load(words: Sequence[str], *, default: str = "quickstart") -> Config:
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UserError(f"one configuration at a time, got {' and '.join(names)} (a change is written key.path=value)")
    config = presets.load(names[0] if names else default)
    return apply_overrides(config, [word for word in words if "=" in word])


def _saved(run_dir: Path) -> str:
    """The file with the configuration of a run. UserError: it is not one."""
    saved = run_dir / "config.json"
    if not saved.is_file():
        raise UserError(f"{run_dir} is not a run: it has no config.json")
    return str(saved)


def _train(options: argparse.Namespace) -> int:
    if options.resume is not None:
        if options.run_dir is not None:
            raise UserError("--resume DIR goes on in DIR; leave out --run-dir")
        config = _load(options.words, default=_saved(options.resume))
    else:
        if options.allow_change:
            raise UserError("--allow-change goes with --resume")
        config = _load(options.words)
    check(config)
    if options.print_config:
        print(to_json(config), end="")
        return 0
    return with_jax(
        lambda launch: (
            launch.resume(config, options.resume, allow=tuple(options.allow_change))
            if options.resume is not None
            else launch.start(config, options.run_dir or Path("runs") / config.name)
        ),
        config.runtime,
    )


# ---- The other commands ---------------------------------------------------------------------------------------------


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    parser.add_argument(
        "--topology",
        metavar="CHIP:SIZE",
        default="",
        help="compile the update for v5e:8x8, v5p:2x2x4, v6e:4x4, 2*v5e:16x16 (slices), h100:8, ... "
        "without such devices, and say what it needs, sends and takes (extras plan-tpu, plan-gpu)",
    )
    parser.add_argument(
        "--no-search", action="store_true", help="with --topology: do not look for the largest microbatch that fits"
    )
    parser.epilog = _preset_table()
    parser.set_defaults(function=_plan)


def _plan(options: argparse.Namespace) -> int:
    config = _load(options.words)
    check(config)
    if not options.topology:
        return with_jax(lambda launch: launch.show_plan(config), config.runtime)
    from lmjax import chips, runtime

    chips.parse(options.topology)
    runtime.compile_only()

    def call(launch: Any) -> int:
        from lmjax import compiled

        return compiled.show(config, options.topology, largest=not options.no_search)

    return with_jax(call, config.runtime)


def _plot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories; several share one picture")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to draw (default: plots/ of the first run)")
    parser.set_defaults(function=_plot)


def _plot(options: argparse.Namespace) -> int:
    from lmjax import plots

    for path in plots.draw(options.runs, options.out or options.runs[0] / "plots"):
        print(path)
    return 0


def _audit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--replay",
        metavar="A:B",
        default="",
        help="also compute updates A to B again, from the checkpoint before A, and compare the bits",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="write the configuration of a fresh run with the same bits: what was skipped is left out from the start",
    )
    parser.set_defaults(function=_audit)


def _audit(options: argparse.Namespace) -> int:
    words = options.replay.split(":")
    if options.replay and not (len(words) == 2 and all(word.isdecimal() for word in words)):
        raise UserError(f"--replay {options.replay}: give the first and the last update, as in --replay 100:200")
    updates = (int(words[0]), int(words[1])) if options.replay else None

    def call(launch: Any) -> int:
        from lmjax import audit

        return audit.show(options.run, replay=updates, config_file=options.config)

    runtime = None
    with suppress(UserError, OSError):  # where it cannot be read, the audit itself says so
        runtime = presets.load(_saved(options.run)).runtime
    return with_jax(call, runtime)


def _rehearse_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the rehearsed runs in DIR (default: a temporary one)"
    )
    parser.epilog = _preset_table()
    parser.set_defaults(function=_rehearse)


def _rehearse(options: argparse.Namespace) -> int:
    config = _load(options.words)
    check(config)

    def call(launch: Any) -> int:
        from lmjax import rehearse

        return rehearse.show(config, keep=options.keep)

    return with_jax(call, config.runtime)


def _ladder_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="key.path=value", help="changes to every rung (the presets ladder_NAME)"
    )
    parser.add_argument("--compute", type=float, metavar="FLOPS", help="training FLOPs of each rung (default: 2e13)")
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"), metavar="DIR", help="default: runs/ladder")
    parser.add_argument("--rungs", metavar="A,B", help="only these of ngram,nnlm,rnn,lstm,gpt")
    parser.add_argument("--bert", type=Path, metavar="RUN", help="put the pseudo-likelihood of this run of BERT beside")
    parser.set_defaults(function=_ladder)


def _ladder(options: argparse.Namespace) -> int:
    def call(launch: Any) -> int:
        from lmjax import ladder

        return ladder.show(
            options.rungs.split(",") if options.rungs is not None else ladder.ALL,
            options.out,
            compute=ladder.COMPUTE if options.compute is None else options.compute,
            changes=options.words,
            bert=options.bert,
        )

    return with_jax(call)


def _tokenizer_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    train = actions.add_parser("train", help="train a byte-level BPE on the data of a configuration")
    _config_arguments(train)
    train.add_argument("--out", type=Path, default=Path("tokenizer.json"), metavar="FILE")
    train.set_defaults(function=_train_tokenizer)


def _train_tokenizer(options: argparse.Namespace) -> int:
    from lmjax import runtime
    from lmjax.data import records, sources, tokenizer

    runtime.prepare()
    data = _load(options.words).data
    trained = tokenizer.build(
        data.tokenizer, lambda: sources.texts(data) if isinstance(data, DataConfig) else records.texts(data)
    )
    trained.save(options.out)
    print(f"{options.out}: {trained.vocab_size} entries, sha256 {trained.sha256}")
    return 0


if __name__ == "__main__":
    main()
