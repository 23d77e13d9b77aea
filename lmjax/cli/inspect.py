"""Commands around a run: plan, plot, audit, rehearse, ladder."""

import argparse
import os
from pathlib import Path

from lmjax.cli.entry import start_jax
from lmjax.cli.train import _load, _saved, config_arguments, preset_table
from lmjax.config import Config, RuntimeConfig, UserError, codec, trust
from lmjax.config.checks import check


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax plan`."""
    config_arguments(parser)
    parser.add_argument(
        "--topology",
        metavar="CHIP:SIZE",
        default="",
        help="compile the update for v5e:8x8, v5p:2x2x4, v6e:4x4, 2*v5e:16x16 (slices), h100:8, ... "
        "without such devices, and print its memory, communication and time (extras plan-tpu, plan-gpu)",
    )
    parser.add_argument(
        "--no-search", action="store_true", help="with --topology: do not search for the largest microbatch that fits"
    )
    parser.add_argument(
        "--no-measure", action="store_true", help="do not time updates here: expect the time from the machine's peak"
    )
    parser.epilog = preset_table()
    parser.set_defaults(function=_plan)


def _plan(options: argparse.Namespace) -> int:
    config = _load(options.words, restrict=trust.for_reading)
    check(config)
    if not options.topology:
        start_jax(config.runtime)
        from lmjax.run import launch

        return launch.show_plan(config, measure=not options.no_measure)
    from lmjax.system.runtime import compile_only
    from lmjax.topology import chips

    chips.parse(options.topology)
    if config.train.epochs and not config.train.epoch_tokens:
        raise UserError(
            f"train.epochs = {config.train.epochs:g}: --topology reads no data, which give the length of the run; set "
            "train.updates or train.tokens"
        )
    compile_only()
    start_jax(config.runtime)
    from lmjax.topology.compile import show

    return show(config, options.topology, largest=not options.no_search)


def plot_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax plot`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories; all runs share one picture")
    where = "folder of the pictures (default: plots/ of the run; of several runs, plots/overlaid/ of the first)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=where)
    what = "the horizontal axis; the time is that of the updates"
    parser.add_argument("--x", choices=("updates", "tokens", "time", "flops"), default="tokens", help=what)
    parser.set_defaults(function=_plot)


def _plot(options: argparse.Namespace) -> int:
    out = options.out
    if out and out.suffix.lower() in (".png", ".pdf", ".svg", ".jpg", ".jpeg") and not out.is_dir():
        raise UserError(f"--out {out}: give a folder, because several pictures are drawn (loss.png, health.png)")
    from lmjax.run import curves

    for path in curves.draw(options.runs, options.out, x=options.x):
        print(path)
    return 0


def audit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax audit`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--replay",
        metavar="A:B",
        default="",
        help="also recompute updates A to B from the checkpoint before A, and compare the bits",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="write the configuration of a fresh run with the same bits: skipped data are left out from the start",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="key.path=value",
        help="runtime.*, parallel.* and data.cache on this machine; those of the run are not used",
    )
    parser.set_defaults(function=_audit)


def _audit(options: argparse.Namespace) -> int:
    words = options.replay.split(":")
    if options.replay and not (len(words) == 2 and all(map(_is_update, words))):
        raise UserError(f"--replay {options.replay}: give the first and the last update, as in --replay 100:200")
    updates = (int(words[0]), int(words[1])) if options.replay else None
    _saved(options.run)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a run that names a dataset of the hub downloads nothing
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    start_jax(_runtime_of(options.words))
    from lmjax.diagnose import audit

    return audit.show(options.run, replay=updates, config_file=options.config, changes=options.words)


def _is_update(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18


def _runtime_of(changes: list[str]) -> RuntimeConfig:
    """The settings of this machine that an audit is given; raise UserError at another change."""
    for change in changes:
        key = change.partition("=")[0].strip()
        if not key.startswith(("runtime.", "parallel.")) and key != "data.cache":
            raise UserError(f"{change}: an audit takes changes of runtime.*, parallel.* and data.cache only")
    config = codec.apply_overrides(Config(), changes)
    check(config)
    return config.runtime


def rehearse_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax rehearse`."""
    config_arguments(parser)
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the rehearsed runs in DIR (default: a temporary folder)"
    )
    parser.epilog = preset_table()
    parser.set_defaults(function=_rehearse)


def _rehearse(options: argparse.Namespace) -> int:
    config = _load(options.words)
    check(config)
    start_jax(config.runtime)
    from lmjax.diagnose import rehearsal

    return rehearsal.show(config, keep=options.keep)


def ladder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax ladder`."""
    parser.add_argument(
        "words", nargs="*", metavar="key.path=value", help="changes to every rung (the presets ladder_NAME)"
    )
    parser.add_argument("--compute", type=float, metavar="FLOPS", help="training FLOPs of each rung (default: 2e13)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/ladder; with --post runs/post_ladder")
    parser.add_argument("--rungs", metavar="A,B", help="only these rungs of ngram,nnlm,rnn,lstm,gpt")
    parser.add_argument("--bert", type=Path, metavar="RUN", help="also show the pseudo-likelihood of this BERT run")
    parser.add_argument(
        "--post",
        action="store_true",
        help="the ladder of post-training: fine-tuning, reward model, PPO, DPO, best of n",
    )
    parser.set_defaults(function=_ladder)


def _ladder(options: argparse.Namespace) -> int:
    unused = [name for name in ("compute", "rungs", "bert") if options.post and getattr(options, name) is not None]
    if unused:
        raise UserError(f"--{unused[0]} does not apply to --post, whose stages are presets; leave it out")
    start_jax()
    from lmjax.studies import ladder, post_ladder

    if options.post:
        return post_ladder.show(options.out or Path("runs/post_ladder"), changes=options.words)
    return ladder.show(
        options.rungs.split(",") if options.rungs is not None else ladder.ALL,
        options.out or Path("runs/ladder"),
        compute=ladder.COMPUTE if options.compute is None else options.compute,
        changes=options.words,
        bert=options.bert,
    )
